"""`serve.run(app, _local_testing_mode=True)`: an application in a thread of this process, asked in every way."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, WebSocket
from starlette.requests import Request
from starlette.responses import StreamingResponse
from websockets.sync.client import unix_connect

sys.path.insert(0, str(Path(__file__).parent))

from served_applications import Adder as RealAdder

from headrace import runtime, serve
from headrace.serve import testing
from headrace.serve.handle import DeploymentHandle
from headrace.spec.errors import (
    ApplicationNotFound,
    DeployFailedError,
    DeploymentNotFound,
    InstanceError,
    LoopBlockedError,
    MethodNotFound,
    OptionError,
    PayloadError,
)

PATIENCE_S = 30


def answer() -> int:
    """What tests put something else in the place of."""
    return 42


@serve.deployment
class Adder:
    def __init__(self, amount: int = 1) -> None:
        self.amount = amount

    def __call__(self, number: int) -> int:
        return number + self.amount

    def fail(self, error: Exception) -> None:
        raise error

    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def async_numbers(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    def answer(self) -> int:
        return answer()

    def itself(self) -> int:
        return id(self)


@serve.deployment
class Front:
    def __init__(self, adder: DeploymentHandle) -> None:
        self.adder = adder

    async def __call__(self, number: int) -> int:
        return int(await self.adder.remote(await self.adder.remote(number)))

    def plain(self, number: int) -> int:
        return int(self.adder.remote(number).result(PATIENCE_S))

    async def blocking(self) -> None:
        self.adder.remote(1).result()

    async def status_on_the_loop(self) -> None:
        serve.status()

    def of_the_instance(self, handle: DeploymentHandle) -> list[Any]:
        """What plain code in a replica finds by `serve.*`, and by a handle that came as an argument."""
        return [
            serve.status().instance,
            serve.get_app_handle("default").plain.remote(1).result(PATIENCE_S),
            serve.get_deployment_handle("Adder").remote(2).result(PATIENCE_S),
            handle.remote(3).result(PATIENCE_S),
        ]

    def run_another(self) -> int:
        return int(serve.run(Adder.bind(10), name="inner", route_prefix=None).remote(1).result(PATIENCE_S))


@serve.deployment
class Web:
    """Routes by the path's last part; `stopped` tells of work that was cancelled."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, request: Request) -> Any:
        match request.url.path.rpartition("/")[2]:
            case "stream":
                return StreamingResponse(self.parts(), media_type="text/plain")
            case "forever":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.stopped.set()
            case "raise":
                raise ValueError("a bug")
        return {"path": request.url.path, "root": request.scope["root_path"], "body": (await request.body()).decode()}

    async def parts(self) -> AsyncIterator[str]:
        yield "first"
        await self.go_on.wait()
        yield "second"

    async def second(self) -> None:
        self.go_on.set()

    def has_stopped(self) -> bool:
        return self.stopped.wait(PATIENCE_S)


def local(app: Any, **options: Any) -> DeploymentHandle:
    return serve.run(app, _local_testing_mode=True, **options)


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    serve.shutdown()
    assert testing.local_tie() is None


class TestHandles:
    def test_calls_nested_calls_and_responses_as_arguments(self) -> None:
        front = local(Front.bind(Adder.bind()))
        adder = serve.get_deployment_handle("Adder", "default")
        assert front.remote(1).result(PATIENCE_S) == 3
        assert front.plain.remote(1).result(PATIENCE_S) == 2
        assert front.remote(adder.remote(adder.remote(1))).result(PATIENCE_S) == 5

    def test_from_an_event_loop_that_runs(self) -> None:
        async def notebook() -> None:
            front = local(Front.bind(Adder.bind()))
            assert await front.remote(1) == 3
            assert await asyncio.gather(*[front.remote(n) for n in range(20)]) == [n + 2 for n in range(20)]
            with pytest.raises(LoopBlockedError, match="await"):
                front.remote(1).result()
            adder = serve.get_deployment_handle("Adder", "default")
            stream = adder.options(stream=True)
            assert [n async for n in stream.async_numbers.remote(3)] == [0, 1, 2]
            with pytest.raises(ZeroDivisionError):
                await adder.fail.remote(ZeroDivisionError())
            await serve.shutdown_async()

        asyncio.run(notebook())

    def test_generators(self) -> None:
        stream = local(Adder.bind()).options(stream=True)
        assert list(stream.numbers.remote(4)) == [0, 1, 2, 3]
        assert list(stream.async_numbers.remote(4)) == [0, 1, 2, 3]

    def test_errors_have_their_types_also_those_of_the_test(self) -> None:
        class Own(Exception):
            pass

        adder = local(Adder.bind())
        with pytest.raises(KeyError, match="missing"):
            adder.fail.remote(KeyError("missing")).result(PATIENCE_S)
        with pytest.raises(Own):
            adder.fail.remote(Own()).result(PATIENCE_S)
        with pytest.raises(MethodNotFound):
            adder.nothing.remote().result(PATIENCE_S)
        with pytest.raises(PayloadError, match="argument 0"):
            adder.remote(threading.Lock())

    def test_arrays_arrive_as_they_would(self) -> None:
        @serve.deployment
        def total(array: np.ndarray) -> tuple[float, bool]:
            return float(array.sum()), array.flags.writeable

        assert local(total.bind()).remote(np.ones(100_000)).result(PATIENCE_S) == (100_000.0, False)

    def test_from_many_threads(self) -> None:
        adder = local(Adder.bind())
        got: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n: got.append(adder.remote(n).result(PATIENCE_S))) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert sorted(got) == list(range(1, 9))

    def test_a_replica_s_own_loop_is_not_blocked(self) -> None:
        front = local(Front.bind(Adder.bind()))
        with pytest.raises(LoopBlockedError, match="await"):
            front.blocking.remote().result(PATIENCE_S)
        with pytest.raises(LoopBlockedError, match="to_thread"):
            front.status_on_the_loop.remote().result(PATIENCE_S)

    def test_code_in_a_replica_means_the_instance_that_it_is_in(self) -> None:
        front = local(Front.bind(Adder.bind()))
        handle = serve.get_deployment_handle("Adder", "default")
        assert front.of_the_instance.remote(handle).result(PATIENCE_S) == ["local", 2, 3, 4]
        assert front.run_another.remote().result(PATIENCE_S) == 11
        assert set(serve.status().applications) == {"default", "inner"}


class TestCodeAsItIs:
    def test_a_mock_is_the_test_s_own(self) -> None:
        database = MagicMock()
        database.find.return_value = 7

        @serve.deployment
        class Finder:
            def __init__(self, database: Any) -> None:
                self.database = database

            def __call__(self, key: str) -> int:
                return int(self.database.find(key))

        assert local(Finder.bind(database)).remote("a").result(PATIENCE_S) == 7
        database.find.assert_called_once_with("a")

    def test_what_is_patched_is_patched_in_replicas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        adder = local(Adder.bind())
        assert adder.answer.remote().result(PATIENCE_S) == 42
        monkeypatch.setattr(f"{__name__}.answer", lambda: 43)
        assert adder.answer.remote().result(PATIENCE_S) == 43
        monkeypatch.setattr(Adder.func_or_class, "answer", lambda self: 44)
        assert local(Adder.bind()).answer.remote().result(PATIENCE_S) == 44

    def test_classes_and_their_state_are_those_of_the_test(self) -> None:
        made: list[Any] = []

        class Value:
            pass

        @serve.deployment(num_replicas=2)
        class Maker:
            def __init__(self) -> None:
                made.append(self)

            def __call__(self, value: Value) -> Value:
                assert type(value) is Value
                return Value()

        maker = local(Maker.bind())
        assert [type(each) for each in made] == [Maker.func_or_class] * 2
        assert type(maker.remote(Value()).result(PATIENCE_S)) is Value

    def test_each_run_makes_replicas_anew(self) -> None:
        app = Adder.bind()
        adder = local(app)
        first = adder.itself.remote().result(PATIENCE_S)
        again = local(app)
        assert again.itself.remote().result(PATIENCE_S) != first
        assert adder.itself.remote().result(PATIENCE_S) != first  # handles are of the application, not of a run

    def test_a_replica_that_died_is_constructed_again_of_the_same_objects(self) -> None:
        events: list[str] = []

        @serve.deployment
        class Noting:
            def __init__(self, events: list[str]) -> None:
                events.append("made")
                self.events = events

            def __call__(self) -> bool:
                return self.events is events

        noting = local(Noting.bind(events))
        tie = testing.local_tie()
        assert tie is not None
        assert tie.processes() == ["Noting#1@default"]
        tie.crash("Noting#1@default")
        assert noting.remote().result(PATIENCE_S)
        assert events == ["made", "made"]

    def test_resources_that_the_machine_lacks_are_there(self) -> None:
        handle = local(Adder.options(ray_actor_options={"num_gpus": 4, "num_cpus": 500}).bind())
        assert handle.remote(1).result(PATIENCE_S) == 2


class TestApplications:
    def test_several_by_name(self) -> None:
        one, two = local(Adder.bind(1), name="one"), local(Adder.bind(2), name="two", route_prefix="/two")
        assert (one.remote(0).result(PATIENCE_S), two.remote(0).result(PATIENCE_S)) == (1, 2)
        status = serve.status()
        assert {name: app.status for name, app in status.applications.items()} == {"one": "RUNNING", "two": "RUNNING"}
        assert serve.get_app_handle("two").remote(0).result(PATIENCE_S) == 2
        with pytest.raises(ApplicationNotFound, match="one, two"):
            serve.get_app_handle("three")
        with pytest.raises(DeploymentNotFound):
            serve.get_deployment_handle("Nothing", "one")
        serve.delete("one")
        assert set(serve.status().applications) == {"two"}
        serve.delete("one")
        assert set(serve.status().applications) == {"two"}
        with pytest.raises(ApplicationNotFound):
            one.remote(0).result(PATIENCE_S)

    def test_run_many_and_builders(self) -> None:
        targets = [serve.RunTarget(lambda: Adder.bind(3)), serve.RunTarget(Adder.bind(4), "other", None)]
        handles = serve.run_many(targets, _local_testing_mode=True)
        assert [handle.remote(0).result(PATIENCE_S) for handle in handles] == [3, 4]

    def test_of_two_with_one_route_the_later_has_it(self) -> None:
        local(Web.bind(), name="one")
        with testing.http_client() as client:
            assert client.get("/a").json()["path"] == "/a"
            two = local(Adder.bind(), name="two", route_prefix="/")
            assert client.get("/-/routes").json() == {"/": "two"}
        assert two.remote(1).result(PATIENCE_S) == 2
        assert serve.get_app_handle("one").second.remote().result(PATIENCE_S) is None
        assert set(serve.status().applications) == {"one", "two"}

    def test_a_constructor_that_raises_fails_the_run_with_its_traceback(self) -> None:
        class Broken:
            def __init__(self, works: bool) -> None:
                if not works:
                    raise ValueError("no such model")

            def __call__(self) -> str:
                return "works"

        broken = serve.deployment(Broken)
        with pytest.raises(DeployFailedError, match=r"in __init__(.|\n)*ValueError: no such model"):
            local(broken.bind(False))
        assert serve.status().applications["default"].status == "DEPLOY_FAILED"
        other = local(Adder.bind(), name="other")  # the route that the failed one was to have
        assert other.remote(1).result(PATIENCE_S) == 2
        works = local(broken.bind(True), route_prefix="/broken")
        with pytest.raises(DeployFailedError):
            local(broken.bind(False), route_prefix="/broken")
        assert works.remote().result(PATIENCE_S) == "works"

    def test_blocking_has_no_sense(self) -> None:
        with pytest.raises(OptionError, match="blocking"):
            local(Adder.bind(), blocking=True)

    def test_its_end_ends_calls_and_calls_destructors(self) -> None:
        ended = threading.Event()

        @serve.deployment
        class Slow:
            async def __call__(self) -> None:
                await asyncio.Event().wait()

            def __del__(self) -> None:
                ended.set()

        slow = local(Slow.bind())
        waiting = slow.remote()
        failures: list[BaseException] = []

        def wait() -> None:
            try:
                waiting.result(PATIENCE_S)
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        serve.shutdown()
        thread.join(PATIENCE_S)
        assert isinstance(failures[0], InstanceError)
        with pytest.raises(InstanceError):
            testing.http_client()
        adder = local(Adder.bind())
        assert serve.get_app_handle("default").remote(1).result(PATIENCE_S) == 2
        assert adder.remote(1).result(PATIENCE_S) == 2
        with pytest.raises(InstanceError, match="has ended"):
            slow.remote()

    def test_destructors_are_called_at_the_end(self) -> None:
        events: list[str] = []

        @serve.deployment
        class Noting:
            def __del__(self) -> None:
                events.append("ended")

            def __call__(self) -> None:
                pass

        local(Noting.bind()).remote().result(PATIENCE_S)
        serve.shutdown()
        assert events == ["ended"]


class TestHTTP:
    def test_routes_as_served(self) -> None:
        local(Web.bind(), route_prefix="/web")
        with testing.http_client() as client:
            assert client.post("/web/a", content=b"text").json() == {"path": "/web/a", "root": "/web", "body": "text"}
            assert client.get("/nothing").status_code == 404
            assert client.get("/web/raise").status_code == 500
            assert client.get("/-/healthz").text == "success"
            assert client.get("http://elsewhere.example/web").json()["path"] == "/web"
            assert client.get("/web", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"

    def test_streams_come_as_they_are_made(self) -> None:
        web = local(Web.bind())
        with testing.http_client(timeout=PATIENCE_S) as client, client.stream("GET", "/stream") as response:
            parts = response.iter_text()
            assert next(parts) == "first"
            web.second.remote().result(PATIENCE_S)
            assert next(parts) == "second"

    def test_time_that_is_over_stops_the_work(self) -> None:
        web = local(Web.bind())
        with testing.http_client() as client:
            response = client.get("/forever", headers={"x-request-timeout-seconds": "0.05"})
            assert response.status_code == 408
        assert web.has_stopped.remote().result(PATIENCE_S)

    def test_a_client_that_leaves_stops_the_work(self) -> None:
        web = local(Web.bind())
        with testing.http_client(timeout=0.05) as client, pytest.raises(httpx.ReadTimeout):
            client.get("/forever")
        assert web.has_stopped.remote().result(PATIENCE_S)

    def test_the_time_of_an_application(self) -> None:
        local(Web.bind(), request_timeout_s=0.05)
        with testing.http_client() as client:
            assert client.get("/forever").status_code == 408

    def test_from_event_loops_one_after_the_other(self) -> None:
        local(Web.bind())

        async def ask() -> list[int]:
            async with testing.async_http_client() as client:
                return [each.status_code for each in await asyncio.gather(*[client.get("/") for _ in range(10)])]

        assert [asyncio.run(ask()) for _ in range(2)] == [[200] * 10] * 2

    def test_a_fastapi_ingress_with_two_replicas(self) -> None:
        app = FastAPI()

        @serve.deployment(num_replicas=2)
        @serve.ingress(app)
        class Api:
            def __init__(self, made: list[Any]) -> None:
                made.append(self)

            @app.get("/items/{item}")
            def get(self, item: int) -> dict[str, int]:
                return {"item": item, "replica": id(self)}

        made: list[Any] = []
        local(Api.bind(made), route_prefix="/api")
        with testing.http_client() as client:
            seen = {client.get("/api/items/3").json()["replica"] for _ in range(50)}
            assert seen == {id(each) for each in made}
            assert client.get("/api/items/x").status_code == 422
            assert client.get("/api/openapi.json").json()["servers"] == [{"url": "/api"}]

    def test_an_ingress_that_died_is_back_for_the_next_request(self) -> None:
        local(Web.bind())
        tie = testing.local_tie()
        assert tie is not None
        with testing.http_client() as client:
            assert client.get("/").status_code == 200
            tie.crash("ingress#0")
        with testing.http_client() as client:
            assert client.get("/").status_code == 200

    def test_websockets_by_the_socket(self) -> None:
        app = FastAPI()

        @app.websocket("/echo")
        async def echo(websocket: WebSocket) -> None:
            await websocket.accept()
            await websocket.send_text((await websocket.receive_text()).upper())

        local(app)
        with unix_connect(testing.http_socket(), "ws://localhost/echo") as socket:
            socket.send("hello")
            assert socket.recv(PATIENCE_S) == "HELLO"


class TestBesideAnother:
    def test_a_real_instance_and_its_handles_are_told_apart(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
        for name in ("HEADRACE_INSTANCE", "HEADRACE_RUNTIME_DIR", "HEADRACE_PROCESS_ID"):
            monkeypatch.delenv(name, raising=False)
        here = local(RealAdder.bind())
        serve.start(http_options={"ingress_workers": 0})
        try:
            real = serve.run(RealAdder.bind())
            assert serve.status().instance == "default"
            other = serve.get_app_handle("default").where.remote().result(PATIENCE_S)[0]
            assert other == real.where.remote().result(PATIENCE_S)[0]
            assert other != os.getpid()
            assert here.where.remote().result(PATIENCE_S)[0] == os.getpid()

            local(RealAdder.bind())  # what was run last is meant from now on
            assert serve.status().instance == "local"
            assert serve.get_app_handle("default").where.remote().result(PATIENCE_S)[0] == os.getpid()
            serve.shutdown()  # it alone
            assert serve.status().instance == "default"
            assert real.where.remote().result(PATIENCE_S)[0] == other
            assert local(RealAdder.bind()).where.remote().result(PATIENCE_S)[0] == os.getpid()
        finally:
            serve.shutdown()
            serve.shutdown()
        assert runtime.installed() is None

    def test_a_test_instance_in_its_own_loop(self) -> None:
        here = local(Adder.bind(1))

        async def test() -> None:
            async with testing.TestInstance() as instance:
                there = await instance.run(Adder.bind(5))
                assert (await here.remote(0), await there.remote(0)) == (1, 5)
                assert await asyncio.to_thread(here.remote(0).result) == 1

        asyncio.run(test())
        assert here.remote(0).result(PATIENCE_S) == 1


SCRIPT = """
import os, sys
from headrace import serve
from headrace.engine import linux
from headrace.serve import testing
from headrace.spec.errors import InstanceError

@serve.deployment
class Model:
    def __call__(self, request):
        return os.getpid()
    def double(self, n):
        return 2 * n
    def __del__(self):
        print("destroyed", flush=True)

handle = serve.run(Model.bind(), _local_testing_mode=True)
assert testing.http_client().get("/").json() == os.getpid()
assert linux.children(os.getpid()) == []
(proxy,) = serve.status().proxies.values()
assert (proxy.host, proxy.port) == (f"unix:{testing.http_socket()}", 0)
child = os.fork()
if child == 0:
    try:
        assert testing.local_tie() is None
        assert serve.status().instance == "default"
        handle.double.remote(1)
    except InstanceError as error:
        assert "parent process, has ended" in str(error), error
        os._exit(0)
    os._exit(1)
assert os.waitpid(child, 0)[1] == 0
assert handle.double.remote(4).result(20) == 8
print(testing.http_socket(), flush=True)
"""


def test_a_script_that_ends_leaves_nothing_and_its_fork_has_none_of_it(tmp_path: Path) -> None:
    environment = os.environ | {"HEADRACE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    socket, destroyed = done.stdout.split()
    assert destroyed == "destroyed"
    assert not Path(socket).parents[1].exists()
    assert not any(tmp_path.iterdir())
