"""One replica's life, in this process, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import cloudpickle
import deployed_code
import msgspec
import numpy as np
import pytest
from deployed_code import EVENTS, RELEASE
from fake_incoming import run
from hosting import Bound, Hosted, S, order_of, shop, short_directory, spec_of

from headrace.replica.host import TRANSITIONS
from headrace.spec.application import DeploymentSpec, ImportedCode, PickledCode
from headrace.spec.errors import RemoteTraceback, ReplicaDiedError
from headrace.spec.options import DeploymentOptions
from headrace.spec.status import ReplicaState


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    EVENTS.clear()
    RELEASE.clear()
    yield
    RELEASE.set()


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def configured(config: Any, limit: int = 8, code: str = "Configured") -> DeploymentSpec:
    return spec_of(code, limit=limit, options={"user_config": config})


# ---- loading and constructing


def test_it_is_loaded_constructed_and_serves() -> None:
    async def check() -> None:
        async with shop(spec_of("Echo", "hi")) as ((hosted, echo),):
            assert hosted.states == [S.STARTING, S.RUNNING]
            assert await echo.add.remote(1, 2) == 3
            assert (await echo.process.remote())["thread"] == "headrace-init"
            array = np.arange(500_000.0)
            assert np.array_equal(await echo.add.remote(array, 1), array + 1)
        assert hosted.states == [S.STARTING, S.RUNNING, S.STOPPING, S.STOPPED]
        report = hosted.reports[1]
        assert (report.replica_id, report.app, report.key) == ("Echo#0", "shop", "shop/Echo@" + "0" * 16)
        assert report.address.endswith("/Echo-0.sock")

    run(check())


def test_a_deployment_among_the_arguments_is_a_handle() -> None:
    async def check() -> None:
        front = spec_of("Echo", other=Bound("Back"))
        back = spec_of(ImportedCode("deployed_code", "Echo"), name="Back")
        async with shop(front, back) as ((_, handle), _):
            assert await handle.forward.remote(21) == 42

    run(check())


def test_code_of_main_comes_by_value() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(
        "class Model:\n"
        "    def __init__(self, k): self.k = k\n"
        "    async def __call__(self, x): return helper(x) * self.k\n"
        "def helper(x): return x + 1\n",
        namespace,
    )
    code = PickledCode(cloudpickle.dumps(namespace["Model"]))

    async def check() -> None:
        async with shop(spec_of(code, 10)) as ((_, handle),):
            assert await handle.remote(4) == 50

    run(check())


@pytest.mark.parametrize("name", ["function", "Slotted", "AsyncInit"])
def test_functions_slots_and_coroutines_for_constructors(name: str) -> None:
    async def check() -> None:
        args = (7,) if name == "AsyncInit" else ()
        async with shop(spec_of(name, *args)) as ((_, handle),):
            if name != "function":
                assert await handle.remote() == (7 if args else 1)

    run(check())
    expected: dict[str, list[Any]] = {"function": [], "Slotted": ["deleted"], "AsyncInit": [("deleted", 7)]}
    assert expected[name] == EVENTS


def test_the_replica_knows_itself_from_its_constructor_on() -> None:
    async def check() -> None:
        async with shop(spec_of("Nosy")) as ((_, handle),):
            seen, is_itself = await handle.look.remote()
            assert seen == ("Nosy#0", "Nosy", "shop", None)
            assert is_itself

    run(check())


def failure_of(spec: DeploymentSpec, prepare: Any = None, last_error: str = "") -> str:
    async def check() -> str:
        with short_directory() as directory:
            order = msgspec.structs.replace(order_of(directory, spec), last_error=last_error)
            hosted = Hosted(order, prepare)
            report = await hosted.until(S.FAILED)
            await hosted.end()
            assert hosted.states == [S.STARTING, S.FAILED, S.STOPPING, S.STOPPED]
            return report.error

    return run(check())


@pytest.mark.parametrize(
    ("spec", "texts"),
    [
        (spec_of("Fails"), ["Traceback (most recent call last)", "in _load", "ValueError: no such model: weights.bin"]),
        (spec_of("Fails", "SystemExit"), ["sys.exit(3)", "SystemExit: 3"]),
        (spec_of("FailsAsync"), ["in __init__", "KeyboardInterrupt: at once"]),
        (spec_of("Echo", 1, 2, 3), ["TypeError", "positional arguments"]),
        (spec_of("Ech"), ["ImportPathError: ", "deployed_code", "'Ech'"]),
        (spec_of("not_code"), ["neither a class nor a function but 7"]),
        (spec_of(ImportedCode("no_such_module", "X"), name="X"), ["no_such_module", "sys.path"]),
        (spec_of(PickledCode(b"junk"), name="X"), ["Unpickling"]),
        (spec_of("Echo", options={"user_config": 1}), ["no method reconfigure"]),
        (configured("bad"), ["in reconfigure", "ValueError: this will not do"]),
        (configured("bad", code="AsyncConfigured"), ["ValueError: this will not do"]),
    ],
    ids=range(11),
)
def test_a_start_that_fails_tells_why_in_the_user_s_own_terms(
    spec: DeploymentSpec, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    error = failure_of(spec)
    for text in texts:
        assert text in error
        assert text in caplog.text
    assert "/headrace/replica/" not in error


def test_a_start_that_fails_as_the_one_before_is_logged_briefly(caplog: pytest.LogCaptureFixture) -> None:
    error = failure_of(spec_of("Fails"))
    caplog.clear()
    assert failure_of(spec_of("Fails"), last_error=error) == error
    (record,) = caplog.records
    expected = "replica Fails#0 failed as the one before it did: ValueError: no such model: weights.bin"
    assert record.getMessage() == expected
    caplog.clear()
    failure_of(spec_of("Fails"), last_error="another")
    assert error in caplog.text


def test_a_socket_that_cannot_be_bound_fails_the_replica() -> None:
    async def check() -> None:
        with short_directory() as directory:
            hosted = Hosted(order_of(directory / "missing", spec_of("Echo")))
            report = await hosted.until(S.FAILED)
            assert report.error.startswith(f"InstanceError: the replica cannot listen on unix:{directory}/missing/")
            await hosted.end()

    run(check())


def test_what_readies_the_process_fails_the_replica_when_it_fails() -> None:
    def prepare(_: Any) -> None:
        raise OSError("no such directory")

    assert "no such directory" in failure_of(spec_of("Echo"), prepare)


# ---- errors of calls


def test_an_error_keeps_its_type_and_the_replica_s_traceback() -> None:
    async def check() -> None:
        async with shop(spec_of("Echo")) as ((_, echo),):
            with pytest.raises(LookupError, match="found nothing") as caught:
                await echo.nested.remote()
            assert isinstance(caught.value.__cause__, RemoteTraceback)
            assert "in _deeper" in str(caught.value.__cause__)
            assert await echo.add.remote(1, 1) == 2

    run(check())


# ---- changing in place


@pytest.mark.parametrize("code", ["Configured", "AsyncConfigured"])
def test_reconfigure_is_called_at_the_start_and_when_the_config_changes(code: str) -> None:
    async def check() -> None:
        async with shop(configured({}, code=code)) as ((hosted, handle),):
            in_loop = code == "AsyncConfigured"
            assert await handle.seen.remote() == [({}, in_loop)]
            hosted.replica.reconfigure(configured({"t": 0.5}, code=code))
            await hosted.until(S.RUNNING, 2)
            hosted.replica.reconfigure(configured({"t": 0.5}, limit=3, code=code))
            await hosted.until(S.RUNNING, 3)
            hosted.replica.reconfigure(configured(None, code=code))
            await hosted.until(S.RUNNING, 4)
            assert [config for config, _ in await handle.seen.remote()] == [{}, {"t": 0.5}]

    run(check())


def test_a_config_that_is_refused_fails_the_replica() -> None:
    async def check() -> None:
        async with shop(configured({})) as ((hosted, _),):
            hosted.replica.reconfigure(configured("bad"))
            report = await hosted.until(S.FAILED)
            assert "this will not do" in report.error
            hosted.replica.reconfigure(configured("fine"))
        assert hosted.states == [S.STARTING, S.RUNNING, S.FAILED, S.STOPPING, S.STOPPED]

    run(check())


@pytest.mark.parametrize("method", ["wait", "block"])
def test_the_limit_grows_and_shrinks_in_place(method: str) -> None:
    async def check() -> None:
        async with shop(spec_of("Echo", limit=1)) as ((hosted, echo),):
            calls = [getattr(echo, method).remote() for _ in range(3)]
            await until(lambda: EVENTS)
            assert hosted.replica.ongoing == 1
            hosted.replica.reconfigure(spec_of("Echo", limit=3))
            await until(lambda: len(EVENTS) == 3)
            assert hosted.replica.ongoing == 3
            hosted.replica.reconfigure(spec_of("Echo", limit=2))
            await hosted.until(S.RUNNING, 3)
            RELEASE.set()
            assert [await call for call in calls] == ["released"] * 3
            assert hosted.replica.context.max_ongoing_requests == 2

    run(check())


# ---- draining


@pytest.mark.parametrize("method", ["wait", "block"])
def test_calls_in_work_are_answered_before_it_ends(method: str) -> None:
    async def check() -> None:
        async with shop(spec_of("Echo")) as ((hosted, echo),):
            call = getattr(echo, method).remote()
            await until(lambda: EVENTS)
            hosted.replica.drain(30.0)
            await hosted.until(S.STOPPING)
            assert not hosted.life.done()
            RELEASE.set()
            assert await call == "released"
            await hosted.life

    run(check())


@pytest.mark.parametrize(("kind", "megabytes"), [("bytes", 0), ("bytes", 20), ("array", 20)])
def test_the_last_results_leave_whole_before_it_ends(kind: str, megabytes: int) -> None:
    async def check() -> None:
        async with shop(spec_of("Echo", options={"repeatable": False})) as ((hosted, echo),):
            calls = [echo.wait_and_tell.remote(kind, megabytes) for _ in range(3)]
            await until(lambda: EVENTS)
            hosted.replica.drain(30.0)
            await hosted.until(S.STOPPING)
            RELEASE.set()
            for call in calls:
                assert len(await call) == megabytes * 1_000_000
            await hosted.life

    run(check())


@pytest.mark.parametrize("method", ["wait", "block"])
def test_at_the_end_of_the_drain_what_still_runs_is_cut_off(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with shop(spec_of("Echo", options={"repeatable": False})) as ((hosted, echo),):
            call = getattr(echo, method).remote()
            await until(lambda: EVENTS)
            hosted.replica.drain(60.0)
            await hosted.until(S.STOPPING)
            hosted.replica.drain(0.01)  # less time than before
            await hosted.life
            with pytest.raises(ReplicaDiedError):
                await call
        assert hosted.states[-1] is S.STOPPED
        assert "1 calls still in work" in caplog.text

    run(check())


# ---- destroying


@pytest.mark.parametrize("name", ["Configured", "AsyncConfigured", "BadDel"])
def test_the_destructor_is_called_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with shop(spec_of(name)):
            assert EVENTS == []

    run(check())
    import gc

    gc.collect()
    assert EVENTS == ["deleted"]
    assert ("cannot close" in caplog.text) == (name == "BadDel")


def test_a_destructor_that_does_not_end_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with shop(spec_of("SlowDel")) as ((hosted, _),):
            await hosted.end(0.0)
        assert EVENTS == ["deleting"]
        assert "__del__ did not end in time" in caplog.text

    run(check())


def test_a_delete_during_an_async_constructor_interrupts_it_and_destroys() -> None:
    async def check() -> None:
        with short_directory() as directory:
            hosted = Hosted(order_of(directory, spec_of("StuckAsyncInit")))
            await until(lambda: EVENTS)
            await hosted.end(30.0)
            assert hosted.states == [S.STARTING, S.STOPPING, S.STOPPED]
            assert EVENTS == ["constructing", "interrupted", "deleted"]

    run(check())


def test_a_delete_during_a_plain_constructor_waits_for_it_and_destroys() -> None:
    async def check() -> None:
        with short_directory() as directory:
            hosted = Hosted(order_of(directory, spec_of("StuckInit")))
            await until(lambda: EVENTS)
            hosted.replica.drain(30.0)
            await hosted.until(S.STOPPING)
            RELEASE.set()
            await hosted.life
            assert hosted.states == [S.STARTING, S.STOPPING, S.STOPPED]
            assert EVENTS == ["constructing", "constructed", "deleted"]

    run(check())


def test_a_constructor_that_outlasts_the_drain_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        with short_directory() as directory:
            hosted = Hosted(order_of(directory, spec_of("StuckInit")))
            await until(lambda: EVENTS)
            await hosted.end(0.01)
            assert hosted.states == [S.STARTING, S.STOPPING, S.STOPPED]
            assert "its constructor still runs" in caplog.text

    run(check())


def test_a_killed_host_breaks_its_connections_at_once() -> None:
    async def check() -> None:
        async with shop(spec_of("Echo", options={"repeatable": False})) as ((hosted, echo),):
            call = echo.wait.remote()
            await until(lambda: EVENTS)
            hosted.life.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hosted.life
            with pytest.raises(ReplicaDiedError):
                await call
            hosted.life = asyncio.ensure_future(asyncio.sleep(0))

    run(check())


def test_every_state_is_in_the_table_and_the_end_is_the_end() -> None:
    assert set(TRANSITIONS) == {None, *ReplicaState}
    assert TRANSITIONS[ReplicaState.STOPPED] == ()


def test_the_options_that_tests_rely_on() -> None:
    assert DeploymentOptions().user_config is None
    assert deployed_code.EVENTS is EVENTS
