"""Web applications in a replica's life: lifespans of every kind, builders, WebSockets, starting, failing, draining."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
import msgspec
import pytest
from fake_incoming import run
from fastapi import FastAPI, WebSocket
from flask import Flask
from hosting import Hosted, S, order_of, shop, short_directory, spec_of
from web_replica import replica_of

from headrace import serve
from headrace.replica.lifespan import Lifespan
from headrace.spec.application import ImportedCode
from headrace.spec.errors import OptionTypeError, UserCodeError
from headrace.spec.options import DeploymentOptions

EVENTS: list[Any] = []


def served(app: Any) -> type:
    return serve.ingress(app)(type("Web", (), {}))


async def answer(send: Any, text: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text})


# ---- lifespans


async def refuses(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await answer(send, b"without")


async def ignores(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await answer(send, b"without")


class Full:
    """An application with a lifespan by hand."""

    def __init__(self, startup: str = "complete", shutdown: str = "complete") -> None:
        self.ends = {"startup": startup, "shutdown": shutdown}
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            scope["state"]["own"] = True  # of this request alone
            await answer(send, repr(scope["state"]).encode())
            return
        for phase in ("startup", "shutdown"):
            message = await receive()
            assert message == {"type": f"lifespan.{phase}"}
            self.seen.append(phase)
            await self.end(phase, scope, send)
            if self.ends[phase] == "failed":
                return

    async def end(self, phase: str, scope: Any, send: Any) -> None:
        match self.ends[phase]:
            case "raises":
                raise LookupError(f"{phase} broke")
            case "exits":
                raise SystemExit(3)
            case "hangs":
                await asyncio.Event().wait()
            case "fails and raises":
                await send({"type": f"lifespan.{phase}.failed", "message": "see the error"})
                raise LookupError(f"{phase} broke")
            case end:
                scope["state"]["model"] = "loaded"
                await send({"type": f"lifespan.{phase}.{end}", "message": "as it says"})


@pytest.mark.parametrize("app", [refuses, ignores])
def test_an_application_without_a_lifespan_has_none(app: Any) -> None:
    async def check() -> None:
        async with replica_of(served(app)) as web:
            assert (await web.get("/")).payload == b"without"

    run(check())


def test_requests_see_the_state_of_the_lifespan_each_its_own_copy() -> None:
    app = Full()

    async def check() -> None:
        async with replica_of(served(app)) as web:
            for _ in range(2):
                assert (await web.get("/")).payload == b"{'model': 'loaded', 'own': True}"
            assert app.seen == ["startup"]
        assert app.seen == ["startup", "shutdown"]

    run(check())


@pytest.mark.parametrize(
    ("end", "error", "told"),
    [
        ("raises", LookupError, "startup broke"),
        ("fails and raises", LookupError, "startup broke"),
        ("failed", UserCodeError, "the application's startup failed: as it says"),
        ("exits", SystemExit, "3"),
    ],
)
def test_a_startup_that_fails_raises_what_it_raised(end: str, error: type[BaseException], told: str) -> None:
    async def check() -> None:
        with pytest.raises(error, match=told):
            await Lifespan(Full(startup=end)).startup()

    run(check())


@pytest.mark.parametrize(("end", "told"), [("raises", "LookupError: shutdown broke"), ("failed", "as it says")])
def test_a_shutdown_that_fails_is_logged(end: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        lifespan = Lifespan(Full(shutdown=end))
        await lifespan.startup()
        await lifespan.shutdown(asyncio.get_running_loop().time() + 30)

    run(check())
    assert told in caplog.text


def test_a_shutdown_that_hangs_is_left_at_its_time(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        lifespan = Lifespan(Full(shutdown="hangs"))
        await lifespan.startup()
        await lifespan.shutdown(asyncio.get_running_loop().time())

    with caplog.at_level(logging.WARNING, "headrace.replica"):
        run(check())
    assert "shutdown did not end in time" in caplog.text


# ---- builders


async def build_later() -> Any:
    await asyncio.sleep(0)
    return Full()


def build_flask() -> Any:
    made = Flask("made")
    made.add_url_rule("/", view_func=lambda: "flask")
    return made


@pytest.mark.parametrize(
    ("builder", "payload"),
    [
        (build_later, b"{'model': 'loaded', 'own': True}"),
        (build_flask, b"flask"),
        (lambda: refuses, b"without"),
    ],
)
def test_a_builder_makes_the_application_in_the_replica(builder: Any, payload: bytes) -> None:
    async def check() -> None:
        async with replica_of(served(builder)) as web:
            assert (await web.get("/")).payload == payload

    run(check())


def build_nothing() -> None:
    pass


def build_builder() -> Any:
    return build_nothing


def build_class() -> Any:
    return FastAPI


@pytest.mark.parametrize(
    ("builder", "told"),
    [
        (build_nothing, r"build_nothing\(\), which serve\.ingress was given, returned None: it must return"),
        (build_builder, r"build_builder\(\), .* returned <function build_nothing .*no application"),
        (build_class, "is a class: give an instance"),
    ],
)
def test_a_builder_that_returns_no_application_is_told(builder: Any, told: str) -> None:
    async def check() -> None:
        with pytest.raises(OptionTypeError, match=told):
            async with replica_of(served(builder)):
                pass

    run(check())


# ---- WebSockets


sockets = FastAPI()


@serve.ingress(sockets)
class Chat:
    word = "echo"

    def prefix(self) -> str:
        return f"{self.word}: "

    @sockets.websocket("/ws/{room}")
    async def talk(self, socket: WebSocket, room: str) -> None:
        await socket.accept()
        while (text := await socket.receive_text()) != "bye":
            await socket.send_json([self.word, room, text])
        await socket.close()


def test_websocket_routes_are_methods_too() -> None:
    incoming = [{"type": "websocket.connect"}]
    incoming += [{"type": "websocket.receive", "text": text} for text in ("hi", "bye")]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    async def check() -> None:
        async with replica_of(Chat) as chat:
            scope = {"type": "websocket", "path": "/p/ws/red", "root_path": "/p", "headers": [], "query_string": b""}
            await chat.application(scope | {"state": {}}, receive, send)

    run(check())
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert sent[1]["text"] == '["echo","red","hi"]'


# ---- a replica's life


@contextlib.asynccontextmanager
async def noted(app: FastAPI) -> AsyncIterator[None]:
    EVENTS.append("startup")
    yield
    EVENTS.append("shutdown")


noting = FastAPI(lifespan=noted)


@serve.ingress(noting)
class Noting:
    def __init__(self) -> None:
        EVENTS.append("init")

    def reconfigure(self, config: Any) -> None:
        EVENTS.append("reconfigure")

    @noting.get("/")
    async def get(self) -> str:
        return "never over a handle"

    def __del__(self) -> None:
        EVENTS.append("del")


hanging = Full(startup="hangs")


@serve.ingress(hanging)
class Hanging:
    pass


@serve.ingress(Full(startup="raises"))
class Failing:
    pass


def spec_here(name: str, **options: Any) -> Any:
    return spec_of(ImportedCode(__name__, name), name=name, options=options)


def test_the_startup_comes_after_the_instance_and_the_shutdown_before_its_end() -> None:
    async def check() -> None:
        EVENTS.clear()
        async with shop(spec_here("Noting", user_config={})) as ((hosted, handle),):
            assert EVENTS == ["init", "reconfigure", "startup"]
            assert await handle.get.remote() == "never over a handle"
            assert hosted.states == [S.STARTING, S.RUNNING]
        assert EVENTS == ["init", "reconfigure", "startup", "shutdown", "del"]

    run(check())


def test_a_startup_that_fails_fails_the_replica() -> None:
    async def check() -> None:
        with short_directory() as directory:
            hosted = Hosted(order_of(directory, spec_here("Failing")))
            report = await hosted.until(S.FAILED)
            assert "LookupError: startup broke" in report.error
            await hosted.end()

    run(check())


def test_a_drain_ends_a_startup_that_hangs() -> None:
    async def check() -> None:
        with short_directory() as directory:
            hosted = Hosted(order_of(directory, spec_here("Hanging")))
            while not hanging.seen:
                await asyncio.sleep(0.001)
            await hosted.end()
            assert hosted.states == [S.STARTING, S.STOPPING, S.STOPPED]

    run(check())


def test_a_replica_that_is_given_more_calls_lets_more_routes_run() -> None:
    async def check() -> None:
        async with shop(spec_here("Noting")) as ((hosted, _),):
            spec = spec_here("Noting", user_config={"changed": True})
            options = DeploymentOptions(max_ongoing_requests=90)
            hosted.replica.reconfigure(msgspec.structs.replace(spec, max_ongoing_requests=90, options=options))
            await hosted.until(S.RUNNING, 2)
            assert anyio.to_thread.current_default_thread_limiter().total_tokens == 90

    run(check())
