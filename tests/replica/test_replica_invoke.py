"""Running calls: coroutines on the loop, plain functions in threads, and errors of every kind."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from typing import Any

import numpy as np
import pytest
from fake_incoming import FakeIncoming, handle_call, http_call, invoker_of, run, served

from headrace.context import current_request, get_replica_context
from headrace.replica.methods import find_method
from headrace.spec.errors import (
    BackPressureError,
    GeneratorError,
    MethodNotFound,
    PayloadError,
    RemoteTraceback,
    RequestTimeoutError,
    UserCodeError,
)
from headrace.wire.frames import HTTP


class Model:
    """Methods of both kinds."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    async def __call__(self, request: Any) -> Any:
        return {"path": request.url.path, "body": (await request.body()).decode()}

    async def double(self, x: Any, *, plus: int = 0) -> Any:
        return x * 2 + plus

    def triple(self, x: Any, plus: int = 0) -> Any:
        self.threads.add(threading.current_thread().name)
        return x * 3 + plus

    async def context(self) -> Any:
        request = current_request()
        assert request is not None
        return request.request_id, request.app, request.revision, request.deadline, get_replica_context().replica_id

    def context_in_thread(self) -> Any:
        request = current_request()
        assert request is not None
        return request.request_id, request.app, request.revision, request.deadline, get_replica_context().replica_id

    def hands_back_a_coroutine(self, x: int) -> Any:
        return self.double(x)

    async def stream(self) -> Any:
        yield 1

    def items(self) -> Any:
        yield 1

    _hidden = triple
    not_callable = 7


def result_of(servable: object, method: str, *args: Any, **kwargs: Any) -> Any:
    async def check() -> FakeIncoming:
        call = handle_call(method, *args, **kwargs)
        await served(servable, call)
        return call

    call = run(check())
    if call.error is not None:
        raise call.raised
    return call.result


def http_result_of(servable: object, **request: Any) -> FakeIncoming:
    async def check() -> FakeIncoming:
        call = http_call(**request)
        await served(servable, call)
        return call

    return run(check())


# ---- what is called, and with what


def test_methods_of_both_kinds_get_their_arguments() -> None:
    model = Model()
    assert result_of(model, "double", 4, plus=1) == 9
    assert result_of(model, "triple", 4, plus=1) == 13
    assert model.threads == {"headrace-call-0"}
    assert result_of(model, "hands_back_a_coroutine", 4) == 8


def test_arrays_come_and_go() -> None:
    array = np.arange(100_000.0)
    assert np.array_equal(result_of(Model(), "double", array), array * 2)
    assert np.array_equal(result_of(Model(), "triple", array), array * 3)


def test_an_http_call_gets_the_request() -> None:
    assert http_result_of(Model(), body=b"hi").payload == b'{"path":"/","body":"hi"}'


async def async_function(request: Any) -> Any:
    return "async"


def plain_function(request: Any) -> Any:
    return "plain"


async def async_without() -> Any:
    return "async"


def plain_without() -> Any:
    return "plain"


class AsyncWithout:
    async def __call__(self) -> Any:
        return "async"


class PlainWithout:
    def __call__(self) -> Any:
        return "plain"


class Static:
    @staticmethod
    async def __call__(request: Any) -> Any:
        return "async"


class Defaults:
    def __call__(self, request: Any = None) -> Any:
        return "plain" if request is not None else "nothing"


@pytest.mark.parametrize(
    "servable",
    [
        async_function,
        plain_function,
        async_without,
        plain_without,
        AsyncWithout(),
        PlainWithout(),
        Static(),
        Defaults(),
    ],
    ids=lambda s: getattr(s, "__name__", type(s).__name__),
)
def test_what_is_deployed_may_be_a_function_or_an_instance_and_may_take_no_request(servable: Any) -> None:
    payload = http_result_of(servable).payload
    assert payload in (b"async", b"plain")
    assert find_method(servable, "__call__").on_loop == (payload == b"async")


def test_functions_are_called_by_handle_too() -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    assert result_of(add, "__call__", 1, b=2) == 3
    assert result_of(plain_without, "__call__") == "plain"


def test_a_wrapped_coroutine_function_is_known_for_one() -> None:
    def doubled(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    class Wrapped:
        @doubled
        async def run(self, x: int) -> int:
            return x + 1

        partly = functools.partialmethod(run, 4)

    assert result_of(Wrapped(), "run", 2) == 3
    assert result_of(Wrapped(), "partly") == 5


def test_an_attribute_that_can_be_called_is_a_method() -> None:
    class Pipeline:
        def __init__(self) -> None:
            self.predict = np.sum

    assert result_of(Pipeline(), "predict", [1, 2, 3]) == 6


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("tripel", "did you mean triple"),
        ("nothing_like_it", "it has context, context_in_thread, double"),
        ("_hidden", "is private"),
        ("__init__", "is private"),
        ("__class__", "is private"),
        ("not_callable", "no method 'not_callable'"),
    ],
)
def test_a_method_that_there_is_not(method: str, message: str) -> None:
    with pytest.raises(MethodNotFound, match=message):
        result_of(Model(), method)


def test_a_property_that_fails_is_that_call_s_error() -> None:
    class Lazy:
        @property
        def model(self) -> Any:
            raise LookupError("not loaded yet")

    with pytest.raises(LookupError, match="not loaded yet"):
        result_of(Lazy(), "model")


class BadBackPressure(BackPressureError):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_error_that_cannot_say_what_it_is_still_ends_its_call() -> None:
    async def check() -> None:
        call = handle_call("coroutine")
        await served(Raises(BadBackPressure), call)
        assert call.error is not None
        assert call.error.status == 503

    run(check())


def test_functions_and_silent_classes_say_what_they_lack() -> None:
    class Silent:
        def predict(self) -> None: ...

    with pytest.raises(MethodNotFound, match=r"is a function and has no method 'predict'"):
        result_of(plain_function, "predict")
    with pytest.raises(MethodNotFound, match=r"has no __call__.*it has predict"):
        result_of(Silent(), "__call__")
    assert http_result_of(Silent()).error.type_name.endswith("MethodNotFound")  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["stream", "items"])
def test_a_generator_called_for_one_result_says_how_to_call_it(method: str) -> None:
    with pytest.raises(GeneratorError, match=rf"Model.{method} is a generator.*stream=True"):
        result_of(Model(), method)


# ---- the context


@pytest.mark.parametrize("method", ["context", "context_in_thread"])
def test_code_knows_its_request_and_its_replica(method: str) -> None:
    assert result_of(Model(), method) == ("r-1", "shop", 3, None, "M#0")


@pytest.mark.parametrize("method", ["context", "context_in_thread"])
def test_the_deadline_is_on_the_loop_s_clock(method: str) -> None:
    async def check() -> None:
        now = asyncio.get_running_loop().time()
        call = handle_call(method, remaining_s=30.0)
        await served(Model(), call)
        assert 29.9 <= call.result[3] - now <= 31

    run(check())


@pytest.mark.parametrize("method", ["double", "triple"])
def test_a_call_whose_time_is_over_does_not_start(method: str) -> None:
    async def check() -> None:
        model = Model()
        call = handle_call(method, 1, remaining_s=0.0)
        await served(model, call)
        assert isinstance(call.raised, RequestTimeoutError)
        assert isinstance(call.raised, TimeoutError)
        assert not model.threads

    run(check())


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("test", default="unset")


def test_context_variables_of_a_call_are_its_own_also_in_threads() -> None:
    class Sets:
        def plain(self, value: str) -> str:
            before = VARIABLE.get()
            VARIABLE.set(value)
            return before

        async def coroutine(self, value: str) -> str:
            return self.plain(value)

    async def check() -> None:
        invoker = invoker_of(Sets(), limit=1)
        for method in ("plain", "coroutine"):
            for value in "ab":
                call = handle_call(method, value)
                invoker.start(call)
                await call.ended.wait()
                assert call.result == "unset"

    run(check())


def test_the_context_goes_on_from_the_thread_to_the_coroutine_that_it_hands_back() -> None:
    class Both:
        def plain(self) -> Any:
            VARIABLE.set("from the thread")
            return self.rest()

        async def rest(self) -> Any:
            request = current_request()
            assert request is not None
            return VARIABLE.get(), request.request_id

    assert result_of(Both(), "plain") == ("from the thread", "r-1")


# ---- threads


def test_plain_calls_run_at_once_as_many_as_the_limit_allows() -> None:
    class Meet:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(8)

        def run(self) -> int:
            return self.barrier.wait(30)

    async def check() -> None:
        calls = [handle_call("run") for _ in range(8)]
        await served(Meet(), *calls)
        assert sorted(call.result for call in calls) == list(range(8))

    run(check())


def test_a_thread_is_used_again_rather_than_started() -> None:
    async def check() -> None:
        model = Model()
        invoker = invoker_of(model)
        for _ in range(20):
            call = handle_call("triple", 1)
            invoker.start(call)
            await call.ended.wait()
        assert model.threads == {"headrace-call-0"}

    run(check())


# ---- errors


class CustomError(Exception):
    def __init__(self, code: int, *, detail: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("has a lock")
        self.lock = threading.Lock()


class BadStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def boom(error: BaseException) -> None:
    raise error


class Raises:
    def __init__(self, make: Any) -> None:
        self.make = make

    def plain(self) -> None:
        boom(self.make())

    async def coroutine(self) -> None:
        await asyncio.sleep(0)
        boom(self.make())

    async def at_once(self) -> None:
        boom(self.make())

    def __call__(self, request: Any) -> None:
        boom(self.make())


METHODS = ["plain", "coroutine", "at_once"]


@pytest.mark.parametrize("method", METHODS)
def test_an_error_keeps_its_type_its_attributes_and_its_traceback(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CustomError) as caught:
        result_of(Raises(lambda: CustomError(7, detail="why")), method)
    assert (caught.value.code, caught.value.detail) == (7, "why")
    remote = caught.value.__cause__
    assert isinstance(remote, RemoteTraceback)
    for text in (str(remote), caplog.text):
        assert "in boom" in text
        assert "CustomError: 7" in text
        assert "/headrace/replica/" not in text
    assert "request r-1: M." + method in caplog.text


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "make",
    [
        SystemExit,
        KeyboardInterrupt,
        GeneratorExit,
        StopIteration,
        StopAsyncIteration,
        asyncio.CancelledError,
        asyncio.TimeoutError,
        Unpicklable,
        BadStr,
        MemoryError,
        RecursionError,
        lambda: ExceptionGroup("many", [ValueError(1), KeyError(2)]),
    ],
    ids=lambda m: getattr(m, "__name__", "group").strip("<>"),
)
def test_any_error_ends_its_own_call_alone(method: str, make: Any) -> None:
    async def check() -> None:
        servable = Raises(make)
        invoker = invoker_of(servable)
        for _ in range(2):
            call = handle_call(method)
            invoker.start(call)
            await call.ended.wait()
            assert call.error is not None
            assert call.error.status == 500
            assert isinstance(call.raised, Exception)
        request = http_call()
        invoker.start(request)
        await request.ended.wait()
        assert request.error is not None

    run(check())


def test_an_error_that_cannot_travel_goes_by_name_and_text() -> None:
    with pytest.raises(UserCodeError, match="Unpicklable: has a lock") as caught:
        result_of(Raises(Unpicklable), "plain")
    assert "in boom" in caught.value.traceback_text


def test_an_error_of_ours_from_further_down_keeps_its_status_and_takes_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check() -> FakeIncoming:
        call = http_call()
        await served(Raises(lambda: BackPressureError("full", 2.5)), call)
        return call

    call = run(check())
    assert call.error is not None
    assert (call.error.status, call.error.retry_after_s) == (503, 2.5)
    assert [len(record.getMessage().splitlines()) for record in caplog.records] == [1]


class ReturnsALock:
    def plain(self) -> Any:
        return threading.Lock()

    async def at_once(self) -> Any:
        return threading.Lock()


@pytest.mark.parametrize("method", ["plain", "at_once"])
def test_a_result_that_cannot_be_sent_takes_one_line(method: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PayloadError, match="a lock cannot be sent"):
        result_of(ReturnsALock(), method)
    (record,) = caplog.records
    assert f"request r-1: arguments or result of M.{method}: a lock cannot be sent" in record.getMessage()
    assert len(record.getMessage().splitlines()) == 1


def test_wrong_arguments_are_the_caller_s_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        result_of(Model(), "double", 1, z=2)
    with pytest.raises(TypeError, match="missing 1 required"):
        result_of(Model(), "triple")


@pytest.mark.parametrize("method", ["lock", "coroutine"])
def test_a_result_that_cannot_be_sent_is_named(method: str) -> None:
    class Locks:
        def lock(self) -> Any:
            return {"a": [threading.Lock()]}

        async def coroutine(self) -> Any:
            return self.lock()

    with pytest.raises(PayloadError, match=r"\['a'\]\[0\].*lock"):
        result_of(Locks(), method)


@pytest.mark.parametrize("body", [b"", b"junk", b"\x80\x05N."])
@pytest.mark.parametrize("method", ["double", "triple"])
def test_bytes_that_are_no_arguments_are_an_error_of_that_call(body: bytes, method: str) -> None:
    async def check() -> None:
        call = handle_call(method)
        call.body = body
        await served(Model(), call)
        assert call.error is not None

    run(check())


def test_an_http_call_may_go_to_another_method() -> None:
    class Other:
        async def predict(self, request: Any) -> str:
            return request.method

    call = http_result_of(Other(), method="predict")
    assert call.flags & HTTP
    assert call.payload == b"POST"
