import asyncio
import contextvars
import copy
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from headrace import context, runtime
from headrace.context import RequestContext
from headrace.handle import DeploymentHandle, cancel_calls
from headrace.observe.tally import Tallies
from headrace.runtime import Runtime
from headrace.spec.errors import (
    InstanceError,
    LoopBlockedError,
    OptionError,
    OptionTypeError,
    PayloadError,
    RemoteTraceback,
    RequestCancelledError,
    RequestTimeoutError,
)
from headrace.spec.snapshot import Snapshot
from headrace.wire import payload
from headrace.wire.frames import CallMeta


class LocalRouter:
    """A router whose replicas are functions by name, called in the next turn of the loop, or when the test says."""

    def __init__(self, loop, **deployments):
        self.loop = loop
        self.deployments = deployments
        self.snapshot = Snapshot()
        self.tallies = Tallies()
        self.calls = []
        self.cancelled = []
        self.held = []
        self.hold = False

    def submit(self, call):
        assert threading.get_ident() == self.thread_id
        self.calls.append(call)
        if self.hold:
            self.held.append(call)
        else:
            self.loop.call_soon(self.answer, call)

    def cancel(self, call):
        assert threading.get_ident() == self.thread_id
        self.cancelled.append(call)

    def answer(self, call):
        args, kwargs = payload.decode(call.body, call.buffers)
        try:
            result = self.deployments[call.deployment](call.method, *args, **kwargs)
        except Exception as error:
            call.on_error(payload.encode_error(error))
        else:
            encoded = payload.encode(result)
            call.buffers = encoded.buffers
            call.on_reply(0, b"", encoded.data)

    def release(self):
        self.hold = False
        held, self.held = self.held, []
        for call in held:
            self.answer(call)

    def thread_id_is(self, ident):
        self.thread_id = ident
        return self


def echo(method, *args, **kwargs):
    return (method, args, kwargs)


def add(method, a, b=0):
    return a + b


def fail(method, message):
    raise KeyError(message)


def local_runtime(loop):
    router = LocalRouter(loop, Echo=echo, Add=add, Fail=fail).thread_id_is(threading.get_ident())
    return Runtime(router, loop, threading.get_ident())


@pytest.fixture
def driver():
    """A runtime on a loop of another thread, as a script has one."""
    ready = threading.Event()
    made = []

    async def main():
        made.append((local_runtime(asyncio.get_running_loop()), asyncio.Event()))
        ready.set()
        await made[0][1].wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    ready.wait()
    installed, stop = made[0]
    runtime.install(installed)
    yield installed
    runtime.install(None)
    installed.loop.call_soon_threadsafe(stop.set)
    thread.join()


def on_own_loop(test):
    """Run an async test with a runtime on its own loop, as a replica has one."""

    async def run(self):
        installed = local_runtime(asyncio.get_running_loop())
        runtime.install(installed)
        try:
            await test(self, installed)
        finally:
            runtime.install(None)

    def wrapper(self):
        asyncio.run(run(self))

    wrapper.__name__ = test.__name__
    return wrapper


def until_seen(router, count=1):
    """Wait until the router's thread has seen so many calls."""
    seen = threading.Event()

    def look():
        if len(router.calls) >= count:
            seen.set()
        else:
            router.loop.call_soon(look)

    router.loop.call_soon_threadsafe(look)
    assert seen.wait(10)


class TestHandle:
    def test_it_is_equal_and_hashes_alike_for_the_same_deployment(self):
        one = DeploymentHandle("A", "app")
        assert one == DeploymentHandle("A", "app") == one.method == one.options(session_id="s")
        assert len({one, DeploymentHandle("A", "app"), DeploymentHandle("A", "other")}) == 2
        assert one != DeploymentHandle("B", "app")
        assert one != "A"

    def test_it_pickles_also_nested_and_with_its_options(self):
        handle = DeploymentHandle("A", "app").options(method_name="m", timeout_s=2, session_id="s")
        back = pickle.loads(pickle.dumps({"h": [handle]}))["h"][0]
        assert back == handle
        assert back._options == handle._options
        assert copy.deepcopy(handle)._options == handle._options

    def test_repr(self):
        handle = DeploymentHandle("A", "app")
        assert repr(handle) == "DeploymentHandle(deployment='A', app='app')"
        assert repr(handle.predict) == "DeploymentHandle(deployment='A', app='app', method='predict')"

    def test_special_names_are_no_methods(self):
        with pytest.raises(AttributeError):
            DeploymentHandle("A").__array__  # noqa: B018

    def test_calling_it_directly_says_what_to_do(self):
        with pytest.raises(TypeError, match=r"handle.predict.remote\("):
            DeploymentHandle("A").predict(1)

    def test_a_stream_is_asked_for_by_an_option(self):
        with pytest.raises(OptionTypeError, match="stream='yes' of a handle must be True or False"):
            DeploymentHandle("A").options(stream="yes")
        assert DeploymentHandle("A").options(stream=False) == DeploymentHandle("A")

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"method": "x"}, "did you mean 'method_name'"),
            ({"method_name": 3}, "must be a string"),
            ({"session_id": 7}, "must be a string"),
            ({"timeout_s": "1"}, "number of seconds"),
            ({"timeout_s": True}, "number of seconds"),
        ],
    )
    def test_wrong_options(self, changes, match):
        with pytest.raises(OptionTypeError, match=match):
            DeploymentHandle("A").options(**changes)

    @pytest.mark.parametrize("name", ["method_name", "session_id", "multiplexed_model_id"])
    def test_texts_that_no_call_could_carry(self, name):
        with pytest.raises(OptionError, match=f"{name}=.* cannot be sent"):
            DeploymentHandle("A").options(**{name: "\ud800"})
        with pytest.raises(OptionError, match=f"{name}=.* takes 4098 bytes, and 4096 at most"):
            DeploymentHandle("A").options(**{name: "é" * 2049})

    @pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
    def test_wrong_timeouts(self, timeout_s):
        with pytest.raises(OptionError, match="greater than 0"):
            DeploymentHandle("A").options(timeout_s=timeout_s)

    def test_without_an_instance(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
        monkeypatch.delenv("HEADRACE_RUNTIME_DIR", raising=False)
        monkeypatch.setenv("HEADRACE_INSTANCE", "nobody")
        with pytest.raises(InstanceError, match="no instance 'nobody' is running"):
            DeploymentHandle("A").remote()


class TestFromAThread:
    def test_result(self, driver):
        assert DeploymentHandle("Echo").remote(1, b=2).result() == ("__call__", (1,), {"b": 2})

    def test_methods(self, driver):
        handle = DeploymentHandle("Echo")
        assert handle.predict.remote().result() == ("predict", (), {})
        assert handle.options(method_name="other").remote().result() == ("other", (), {})
        assert handle.predict is handle.predict

    def test_the_result_again(self, driver):
        response = DeploymentHandle("Add").remote([1], [2])
        assert response.result() is response.result()
        assert response.done()
        assert not response.cancelled()
        assert "done" in repr(response)

    def test_an_error_keeps_its_type_and_brings_its_traceback(self, driver):
        response = DeploymentHandle("Fail").remote("gone")
        for _ in range(2):
            with pytest.raises(KeyError, match="gone") as caught:
                response.result()
            assert isinstance(caught.value.__cause__, RemoteTraceback)
            assert "raise KeyError(message)" in str(caught.value.__cause__)

    def test_raising_again_does_not_pile_up_frames(self, driver):
        response = DeploymentHandle("Fail").remote("gone")
        lengths = []
        for _ in range(3):
            with pytest.raises(KeyError) as caught:
                response.result()
            lengths.append(len(caught.traceback))
        assert lengths[0] == lengths[2]

    def test_a_timeout_is_the_builtin_one_and_the_call_goes_on(self, driver):
        router = driver.router
        router.hold = True
        response = DeploymentHandle("Add").remote(1, 2)
        with pytest.raises(TimeoutError, match=r"no result of Add.__call__ within 0.01 s"):
            response.result(timeout_s=0.01)
        until_seen(router)
        router.loop.call_soon_threadsafe(router.release)
        assert response.result(timeout_s=10) == 3
        assert response._waiters == []

    def test_the_call_is_made_whether_or_not_anybody_waits(self, driver):
        DeploymentHandle("Add").remote(1, 2)
        until_seen(driver.router)

    def test_calls_of_one_thread_keep_their_order(self, driver):
        responses = [DeploymentHandle("Add").remote(n) for n in range(200)]
        assert [r.result() for r in responses] == list(range(200))
        assert driver.router.calls == responses

    def test_many_threads(self, driver):
        handle = DeploymentHandle("Add")
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda n: handle.remote(n, 1).result(timeout_s=30), range(400)))
        assert results == [n + 1 for n in range(400)]

    def test_several_threads_wait_for_one(self, driver):
        driver.router.hold = True
        response = DeploymentHandle("Add").remote(1, 2)
        until_seen(driver.router)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(response.result) for _ in range(4)]
            driver.loop.call_soon_threadsafe(driver.router.release)
            assert [w.result(10) for w in waiting] == [3, 3, 3, 3]

    def test_cancel(self, driver):
        driver.router.hold = True
        response = DeploymentHandle("Add").remote(1, 2)
        until_seen(driver.router)
        response.cancel()
        assert response.cancelled()
        with pytest.raises(RequestCancelledError, match=r"Add.__call__ was cancelled"):
            response.result()
        done = threading.Event()
        driver.loop.call_soon_threadsafe(done.set)
        done.wait(10)
        assert driver.router.cancelled == [response]

    def test_cancel_wakes_who_waits(self, driver):
        driver.router.hold = True
        response = DeploymentHandle("Add").remote(1, 2)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(response.result)
            until_seen(driver.router)
            response.cancel()
            with pytest.raises(RequestCancelledError):
                waiting.result(10)

    def test_cancel_after_the_end_changes_nothing(self, driver):
        response = DeploymentHandle("Add").remote(1, 2)
        assert response.result() == 3
        response.cancel()
        assert not response.cancelled()
        assert response.result() == 3

    def test_closing_the_runtime_wakes_who_waits(self, driver):
        driver.router.hold = True
        response = DeploymentHandle("Add").remote(1, 2)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(response.result)
            until_seen(driver.router)
            driver.alive = False
            driver.loop.call_soon_threadsafe(driver.fail_waiting, InstanceError("closed"))
            with pytest.raises(InstanceError, match="closed"):
                waiting.result(10)

    def test_an_argument_that_cannot_be_pickled_fails_the_remote(self, driver):
        with pytest.raises(PayloadError, match=r"^Add.__call__: argument 0: a lock cannot be sent"):
            DeploymentHandle("Add").remote(threading.Lock())
        with pytest.raises(PayloadError, match=r"^Add.plus: argument 'b': a list cannot be sent"):
            DeploymentHandle("Add").plus.remote(1, b=[threading.Lock()])


class TestOnALoop:
    @on_own_loop
    async def test_await(self, installed):
        handle = DeploymentHandle("Add")
        response = handle.remote(1, b=2)
        assert await response == 3
        assert await response == 3
        assert installed.router.calls == [response]

    @on_own_loop
    async def test_result_is_refused(self, installed):
        response = DeploymentHandle("Add").remote(1)
        with pytest.raises(LoopBlockedError, match="await"):
            response.result()
        with pytest.raises(RuntimeError):
            response.result()
        assert await response == 1

    @on_own_loop
    async def test_gather_and_tasks(self, installed):
        handle = DeploymentHandle("Add")
        assert await asyncio.gather(*[handle.remote(n) for n in range(50)]) == list(range(50))
        assert await asyncio.wait_for(handle.remote(7), 10) == 7

    @on_own_loop
    async def test_the_call_leaves_at_once(self, installed):
        DeploymentHandle("Add").remote(1)
        assert len(installed.router.calls) == 1

    @on_own_loop
    async def test_an_error(self, installed):
        response = DeploymentHandle("Fail").remote("gone")
        for _ in range(2):
            with pytest.raises(KeyError, match="gone"):
                await response

    @on_own_loop
    async def test_cancelling_who_awaits_cancels_the_call(self, installed):
        installed.router.hold = True
        response = DeploymentHandle("Add").remote(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response, 0.01)
        assert installed.router.cancelled == [response]
        with pytest.raises(RequestCancelledError):
            await response

    @on_own_loop
    async def test_unless_others_wait_too(self, installed):
        installed.router.hold = True
        response = DeploymentHandle("Add").remote(1)

        async def wait():
            return await response

        first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert installed.router.cancelled == []
        installed.router.release()
        assert await second == 1

    @on_own_loop
    async def test_cancel(self, installed):
        installed.router.hold = True
        response = DeploymentHandle("Add").remote(1)
        task = asyncio.ensure_future(response)
        await asyncio.sleep(0)
        response.cancel()
        with pytest.raises(RequestCancelledError):
            await task
        assert installed.router.cancelled == [response]

    @on_own_loop
    async def test_an_answer_after_the_cancellation_is_dropped(self, installed):
        installed.router.hold = True
        response = DeploymentHandle("Add").remote(1)
        response.cancel()
        installed.router.release()
        with pytest.raises(RequestCancelledError):
            await response

    def test_from_another_loop(self, driver):
        async def main():
            response = DeploymentHandle("Add").remote(1, 2)
            assert await response == 3
            assert await response == 3
            assert await asyncio.gather(*[DeploymentHandle("Add").remote(n) for n in range(50)]) == list(range(50))

        asyncio.run(main())

    def test_one_response_in_two_loops(self, driver):
        response = DeploymentHandle("Add").remote(1, 2)

        async def main():
            return await response

        assert asyncio.run(main()) == 3
        assert asyncio.run(main()) == 3

    def test_a_loop_that_is_gone_is_not_woken(self, driver):
        driver.router.hold = True
        response = DeploymentHandle("Add").remote(1, 2)
        loop = asyncio.new_event_loop()

        async def wait():
            return await response

        task = loop.create_task(wait())
        loop.call_soon(loop.stop)
        loop.run_forever()  # the task waits now
        task.get_coro().close()
        task.cancel()
        loop.close()
        until_seen(driver.router)
        driver.loop.call_soon_threadsafe(driver.router.release)
        assert response.result(10) == 3


class TestResponsesAsArguments:
    def test_they_are_resolved_for_the_callee(self, driver):
        handle = DeploymentHandle("Add")
        first = handle.remote(1, 2)
        second = handle.remote(first, b=first)
        assert handle.remote(second, 1).result(10) == 7

    @on_own_loop
    async def test_without_blocking(self, installed):
        handle = DeploymentHandle("Add")
        installed.router.hold = True
        one, two = handle.remote(1), handle.remote(2)
        both = handle.remote(one, two)
        assert installed.router.calls == [one, two]
        installed.router.release()
        assert await both == 3

    @on_own_loop
    async def test_one_that_failed_fails_the_call(self, installed):
        both = DeploymentHandle("Add").remote(DeploymentHandle("Fail").remote("gone"), 1)
        with pytest.raises(KeyError, match="gone"):
            await both
        assert len(installed.router.calls) == 1

    def test_one_that_failed_fails_the_call_of_a_thread(self, driver):
        with pytest.raises(KeyError, match="gone"):
            DeploymentHandle("Add").remote(DeploymentHandle("Fail").remote("gone"), 1).result(10)

    @on_own_loop
    async def test_a_call_cancelled_meanwhile_is_not_made(self, installed):
        installed.router.hold = True
        one = DeploymentHandle("Add").remote(1)
        both = DeploymentHandle("Add").remote(one, 2)
        both.cancel()
        installed.router.release()
        assert await one == 1
        with pytest.raises(RequestCancelledError):
            await both
        assert installed.router.calls == [one]
        assert installed.router.cancelled == []

    def test_inside_of_a_list_they_say_what_to_do(self, driver):
        response = DeploymentHandle("Add").remote(1)
        with pytest.raises(PayloadError, match=r"^Add.__call__: argument 0: a DeploymentResponse does not pickle"):
            DeploymentHandle("Add").remote([response])
        with pytest.raises(PayloadError, match="does not pickle"):
            pickle.dumps(response)

    def test_chains_from_many_threads(self, driver):
        handle = DeploymentHandle("Add")

        def chain(n):
            response = handle.remote(n)
            for _ in range(20):
                response = handle.remote(response, 1)
            return response.result(30)

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(chain, range(40))) == [n + 20 for n in range(40)]


class TestRequestContext:
    @on_own_loop
    async def test_outside_of_a_request(self, installed):
        one, two = DeploymentHandle("Echo").remote(), DeploymentHandle("Echo").remote()
        assert one.request_id != two.request_id
        assert len(one.request_id) == 36
        assert (one.revision, one.deadline, one.sticky, one.trace) == (0, None, None, None)

    @on_own_loop
    async def test_inside_of_a_request(self, installed):
        meta = CallMeta("r1", "app", 7, 3, "app/D@0", "__call__", sticky="user-1", trace="t", model_id="m")
        token = context.request_variable.set(RequestContext(meta, deadline=99.0))
        try:
            same = DeploymentHandle("Echo", "app").remote()
            other = DeploymentHandle("Echo", "other").remote()
            own = DeploymentHandle("Echo", "app").options(session_id="s2", multiplexed_model_id="m2").remote()
        finally:
            context.request_variable.reset(token)
        assert (same.request_id, same.revision, same.deadline, same.sticky, same.trace) == (
            "r1",
            7,
            99.0,
            "user-1",
            "t",
        )
        assert same.model_id is None
        assert (other.request_id, other.revision) == ("r1", 0)
        assert (own.sticky, own.model_id) == ("s2", "m2")

    @on_own_loop
    async def test_a_timeout_is_a_deadline_and_never_later_than_that_of_the_request(self, installed):
        now = installed.loop.time()
        alone = DeploymentHandle("Echo").options(timeout_s=5).remote()
        assert now + 5 <= alone.deadline < now + 60
        meta = CallMeta("r1", "app", 7, 3, "app/D@0", "__call__")
        token = context.request_variable.set(RequestContext(meta, deadline=now + 1))
        try:
            within = DeploymentHandle("Echo").options(timeout_s=50).remote()
        finally:
            context.request_variable.reset(token)
        assert within.deadline == now + 1


def test_a_response_of_the_parent_is_refused_in_a_forked_child(driver):
    driver.router.hold = True
    response = DeploymentHandle("Add").remote(1)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            response.result(5)
        except InstanceError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as file:
        assert b"belongs to a connection that was closed, or to the parent" in file.read()
    assert runtime.installed() is driver


class TestTimeout:
    @on_own_loop
    async def test_a_call_that_is_late_is_cancelled(self, installed):
        installed.router.hold = True
        response = DeploymentHandle("Add").options(timeout_s=0.01).remote(1)
        with pytest.raises(RequestTimeoutError, match=r"Add.__call__ did not answer in time"):
            await response
        assert installed.router.cancelled == [response]
        response.on_reply(0, b"", payload.encode(1).data)
        with pytest.raises(TimeoutError):
            await response

    @on_own_loop
    async def test_one_that_is_not_late_leaves_no_timer(self, installed):
        response = DeploymentHandle("Add").options(timeout_s=60).remote(1)
        assert await response == 1
        assert response._timer.cancelled()

    def test_from_a_thread(self, driver):
        driver.router.hold = True
        with pytest.raises(RequestTimeoutError):
            DeploymentHandle("Add").options(timeout_s=0.01).remote(1).result(10)


class TestCallsOfACancelledRequest:
    @on_own_loop
    async def test_those_that_have_not_ended_are_cancelled(self, installed):
        request = RequestContext(CallMeta("r1", "app", 7, 3, "app/D@0", "__call__"))
        token = context.request_variable.set(request)
        try:
            ended = DeploymentHandle("Add").remote(1)
            assert await ended == 1
            installed.router.hold = True
            first, second = DeploymentHandle("Add").remote(1), DeploymentHandle("Add").remote(2)
        finally:
            context.request_variable.reset(token)
        outside = DeploymentHandle("Add").remote(3)
        assert request.calls == {first, second}
        cancel_calls(request)
        assert request.calls == set()
        assert (first.cancelled(), second.cancelled(), ended.cancelled(), outside.cancelled()) == (
            True,
            True,
            False,
            False,
        )
        assert set(installed.router.cancelled) == {first, second}

    def test_a_thread_that_waits_for_one_is_woken(self, driver):
        driver.router.hold = True
        request = RequestContext(CallMeta("r1", "app", 7, 3, "app/D@0", "__call__"))

        def work():
            context.request_variable.set(request)
            return DeploymentHandle("Add").remote(1).result()

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(contextvars.Context().run, work)
            until_seen(driver.router)
            driver.loop.call_soon_threadsafe(cancel_calls, request)
            with pytest.raises(RequestCancelledError):
                waiting.result(10)

    def test_outside_of_a_request_there_is_nothing_to_cancel(self):
        cancel_calls(None)
        cancel_calls(RequestContext(CallMeta("r1", "app", 7, 3, "app/D@0", "__call__")))
