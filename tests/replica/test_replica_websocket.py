"""What an ASGI application sees of a WebSocket, and its client of the application, through an ingress over sockets."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from door_harness import run
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websocket_stage import RawSocket, WebStage, close_frame, frame, raw_socket, web_stage
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from headrace.replica.websocket import Limits

TEXT, BINARY, CLOSE, PING, PONG = 0x81, 0x82, 0x88, 0x89, 0x8A
QUICK = Limits(grace_s=0.05)

Message = dict[str, Any]


class App:
    """An ASGI application that notes what it receives and runs `body` once it has accepted."""

    def __init__(self, body: Callable[[App], Awaitable[None]] | None = None, **accept: Any) -> None:
        self.body = body
        self.accept = accept
        self.scope: Message = {}
        self.received: list[Message] = []
        self.error: BaseException | None = None
        self.runs = 0
        self.receive: Any = None
        self.send: Any = None

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.scope = scope
        self.runs += 1
        try:
            assert await receive() == {"type": "websocket.connect"}
            await send({"type": "websocket.accept", **self.accept})
            mine = copy.copy(self)  # several may be open at once
            mine.receive, mine.send = receive, send
            await (self.body or echo)(mine)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.runs -= 1

    async def next(self) -> Message:
        message: Message = await self.receive()
        self.received.append(message)
        return message

    async def tell(self, data: str | bytes) -> None:
        await self.send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})


async def echo(app: App) -> None:
    while (message := await app.next())["type"] == "websocket.receive":
        await app.send({**message, "type": "websocket.send"})


async def listen(app: App) -> None:
    while (await app.next())["type"] != "websocket.disconnect":
        pass


def disconnect(code: int, reason: str = "") -> Message:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


async def free(stage: WebStage) -> None:
    """Until no call is in work at the replica."""
    await stage.until(lambda: stage.server.ongoing == 0)


def test_messages_go_both_ways_whole_and_in_order(tmp_path: Path):
    async def main():
        app = App()
        async with web_stage(tmp_path, app) as s:
            async with connect(s.url + "/chat") as client:
                for data in ("héllo", b"\x00\xff", "", b"", "x" * 200_000, b"y" * 1_000_000):
                    await client.send(data)
                    assert await client.recv() == data
                many = [str(i) for i in range(1000)]
                for data in many:
                    await client.send(data)
                assert [await client.recv() for _ in many] == many
            assert (client.close_code, client.close_reason) == (1000, "")
            await free(s)
            assert app.received[-1] == disconnect(1000)
            assert app.error is None

    run(main())


def test_the_scope_is_that_of_the_asgi_specification(tmp_path: Path):
    async def main():
        app = App(subprotocol="chat.2", headers=[(b"x-flavour", b"sweet"), (b"set-cookie", b"a=1")])
        async with web_stage(tmp_path, app, route_prefix="/talk") as s:
            headers = {"X-Request-Id": "r-17", "Cookie": "c" * 10_000}
            async with connect(
                s.url + "/talk/a%20room?who=me", subprotocols=["chat.1", "chat.2"], additional_headers=headers
            ) as client:
                assert client.subprotocol == "chat.2"
                assert client.response.headers["x-flavour"] == "sweet"
                assert client.response.headers["set-cookie"] == "a=1"
                assert client.response.headers["x-request-id"] == "r-17"
            scope = app.scope
            assert scope["type"] == "websocket"
            assert scope["asgi"]["spec_version"] == "2.4"
            assert (scope["scheme"], scope["http_version"]) == ("ws", "1.1")
            assert (scope["path"], scope["raw_path"]) == ("/talk/a room", b"/talk/a%20room")
            assert (scope["root_path"], scope["query_string"]) == ("/talk", b"who=me")
            assert scope["subprotocols"] == ["chat.1", "chat.2"]
            assert (b"cookie", b"c" * 10_000) in scope["headers"]
            assert scope["server"] == ("127.0.0.1", s.port)
            assert scope["client"][0] == "127.0.0.1"
            assert "method" not in scope
            assert scope["extensions"]["websocket.http.response"] == {}

    run(main())


def test_a_refusal_is_a_403_or_a_response_of_the_applications_own(tmp_path: Path):
    async def refuse(scope: Message, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/close":
            await send({"type": "websocket.close", "code": 4001})
            assert (await receive())["type"] == "websocket.disconnect"
            return
        head = {"status": 401, "headers": [(b"www-authenticate", b"Bearer")]}
        await send({"type": "websocket.http.response.start", **head})
        parts = [b"no", b" ", b"entry"] if scope["path"] == "/parts" else [b"no entry"]
        for i, part in enumerate(parts):
            more = i + 1 < len(parts)
            await send({"type": "websocket.http.response.body", "body": part, "more_body": more})

    async def main():
        async with web_stage(tmp_path, refuse) as s:
            for path, status, body in (
                ("/close", 403, b"Forbidden"),
                ("/whole", 401, b"no entry"),
                ("/parts", 401, b"no entry"),
            ):
                with pytest.raises(InvalidStatus) as caught:
                    await connect(s.url + path)
                response = caught.value.response
                assert (response.status_code, response.body) == (status, body)
                assert response.headers["connection"] == "close"
                if status == 401:
                    assert response.headers["www-authenticate"] == "Bearer"
            await free(s)

    run(main())


def test_an_application_that_fails_before_it_answers_is_a_500(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def fail(scope: Message, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/raise":
            raise ZeroDivisionError("of the application")
        if scope["path"] == "/half":
            await send({"type": "websocket.http.response.start", "status": 400, "headers": []})

    async def main():
        async with web_stage(tmp_path, fail) as s:
            for path, told in (
                ("/raise", "ZeroDivisionError: of the application"),
                ("/return", "returned without accepting or refusing"),
                ("/half", "ended without its last part"),
            ):
                with pytest.raises(InvalidStatus) as caught:
                    await connect(s.url + path)
                assert caught.value.response.status_code == 500
                assert told in caplog.text
            await free(s)

    run(main())


def test_an_application_that_fails_later_closes_with_1011_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async def fail(app: App) -> None:
        await app.tell("first")
        raise ZeroDivisionError("of the application")

    async def main():
        async with web_stage(tmp_path, App(fail)) as s, connect(s.url, additional_headers={"X-Request-Id": "r-5"}) as c:
            assert await c.recv() == "first"
            with pytest.raises(ConnectionClosed):
                await c.recv()
            assert c.close_code == 1011
            await free(s)
        assert "request r-5: the application of a WebSocket raised" in caplog.text
        assert "ZeroDivisionError: of the application" in caplog.text

    run(main())


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (None, 1000, ""),
        ({}, 1000, ""),
        ({"code": 4321, "reason": "tea"}, 4321, "tea"),
        ({"code": 1001, "reason": None}, 1001, ""),
        ({"code": 3000, "reason": "ü" * 100}, 3000, "ü" * 61),
    ],
)
def test_the_application_closes(message: Message | None, code: int, reason: str, tmp_path: Path):
    async def close(app: App) -> None:
        await app.tell("last")
        if message is not None:
            await app.send({"type": "websocket.close", **message})
            assert (await app.next())["code"] == code
            with pytest.raises(RuntimeError, match=r"'websocket\.send' out of turn: .* closed by the application"):
                await app.tell("after")

    async def main():
        app = App(close)
        async with web_stage(tmp_path, app) as s, connect(s.url) as client:
            assert (
                [data async for data in client] == ["last"] if code in (1000, 1001) else await client.recv() == "last"
            )
            await client.wait_closed()
            assert (client.close_code, client.close_reason) == (code, reason)
            await free(s)
            assert app.error is None

    run(main())


def test_a_code_that_cannot_close_is_an_error_of_the_application(tmp_path: Path):
    async def close(app: App) -> None:
        await app.send({"type": "websocket.close", "code": 1006})

    async def main():
        app = App(close)
        async with web_stage(tmp_path, app) as s, connect(s.url) as client:
            await client.wait_closed()
            assert client.close_code == 1011
            await free(s)
            assert isinstance(app.error, ValueError)
            assert "code=1006" in str(app.error)

    run(main())


@pytest.mark.parametrize(
    ("end", "seen"),
    [
        (close_frame(1000), disconnect(1000)),
        (close_frame(1001, b"tab closed"), disconnect(1001, "tab closed")),
        (close_frame(4999, "ü".encode()), disconnect(4999, "ü")),
        (frame(CLOSE), disconnect(1005)),
        (b"", disconnect(1006)),
        (frame(TEXT, b"half")[:5], disconnect(1006)),
    ],
)
@pytest.mark.parametrize("hard", [False, True])
def test_the_application_sees_how_the_client_left(end: bytes, seen: Message, hard: bool, tmp_path: Path):
    """Also when the client does not wait for an answer to its Close, but is gone at once."""

    async def main():
        app = App(listen)
        async with web_stage(tmp_path, app) as s:
            raw = await raw_socket(s.port)
            await raw.send(frame(TEXT, b"hello") + end)
            if hard:
                raw.writer.close()
            else:
                raw.writer.write_eof()
                if end and seen["code"] != 1006:
                    first, data = await raw.frame()
                    assert first == CLOSE
                    assert (int.from_bytes(data[:2]) or 1005, data[2:].decode()) == (seen["code"], seen["reason"])
                await raw.reader.read()
            await free(s)
            assert [m.get("text", m) for m in app.received] == ["hello", seen]
            await s.until(lambda: not s.door.connections)

    run(main())


def test_after_the_end_the_channels_say_so(tmp_path: Path):
    async def body(app: App) -> None:
        await listen(app)
        assert await app.receive() == await app.receive() == disconnect(1001)
        with pytest.raises(OSError, match="has ended"):
            await app.tell("into the void")
        await app.send({"type": "websocket.close"})

    async def main():
        app = App(body)
        async with web_stage(tmp_path, app) as s:
            raw = await raw_socket(s.port)
            await raw.send(close_frame(1001))
            assert await raw.closed_with() == 1001
            await free(s)
            assert app.error is None

    run(main())


@pytest.mark.parametrize(
    "message",
    [
        {"type": "websocket.accept"},
        {"type": "websocket.http.response.start", "status": 200},
        {"type": "http.response.start", "status": 200},
        {"type": "websocket.nonsense"},
    ],
)
def test_a_message_out_of_turn_is_an_error(message: Message, tmp_path: Path):
    async def main():
        app = App(lambda app: app.send(message))
        async with web_stage(tmp_path, app) as s, connect(s.url) as client:
            await client.wait_closed()
            assert client.close_code == 1011
            assert isinstance(app.error, RuntimeError)
            assert "out of turn" in str(app.error)

    run(main())


@pytest.mark.parametrize("headers", [[(b"Sec-WebSocket-Protocol", b"x")], [(b"a\r\nb", b"c")], [(b"a", b"b\r\nc: d")]])
def test_headers_that_must_not_be_sent_are_a_500(headers: list[tuple[bytes, bytes]], tmp_path: Path):
    async def main():
        async with web_stage(tmp_path, App(headers=headers)) as s:
            with pytest.raises(InvalidStatus) as caught:
                await connect(s.url)
            assert caught.value.response.status_code == 500
            await free(s)

    run(main())


def test_without_an_application_the_answer_is_501_and_says_what_to_do(tmp_path: Path):
    async def main():
        async with web_stage(tmp_path, None) as s:
            with pytest.raises(InvalidStatus) as caught:
                await connect(s.url)
            assert caught.value.response.status_code == 501
            assert b"@serve.ingress" in caught.value.response.body
            await free(s)

    run(main())


def test_an_application_that_does_not_return_is_cancelled_after_a_grace(tmp_path: Path):
    cleaned: list[str] = []

    async def dream(app: App) -> None:
        await app.tell("ready")
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("up")

    async def main():
        app = App(dream)
        async with web_stage(tmp_path, app, limits=QUICK, limit=1) as s:
            for gone in (close_frame(1000), b""):
                raw = await raw_socket(s.port)
                assert await raw.frame() == (TEXT, b"ready")
                assert s.server.ongoing == 1
                await raw.send(gone)
                raw.writer.close()
                await free(s)
                assert isinstance(app.error, asyncio.CancelledError)
            assert cleaned == ["up", "up"]

    run(main())


def test_a_client_that_leaves_before_the_answer_ends_the_application(tmp_path: Path):
    told: list[Message] = []

    async def hesitate(scope: Message, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        told.append(await receive())
        with pytest.raises(OSError, match="has left"):
            await send({"type": "websocket.accept"})
        told.append({"type": "done"})

    async def main():
        async with web_stage(tmp_path, hesitate) as s:
            _, writer = await asyncio.open_connection("127.0.0.1", s.port)
            writer.write(
                b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            await s.until(lambda: s.server.ongoing == 1)
            writer.close()
            await free(s)
            await s.until(lambda: len(told) == 2)
            assert told[0] == disconnect(1006)

    run(main())


def test_a_drain_of_the_replica_has_clients_come_back_elsewhere(tmp_path: Path):
    async def main():
        app = App(listen)
        async with web_stage(tmp_path, app) as s:
            clients = [await connect(s.url) for _ in range(3)]
            await s.until(lambda: app.runs == 3)
            s.server.drain()
            for client in clients:
                await client.wait_closed()
                assert (client.close_code, client.close_reason) == (1012, "service restart")
            await s.server.drained()
            assert app.received == [disconnect(1012, "service restart")] * 3

    run(main())


def test_a_replica_that_dies_breaks_the_connection(tmp_path: Path):
    async def main():
        async with web_stage(tmp_path, App(), limits=QUICK) as s:
            raw = await raw_socket(s.port)
            s.server.close()
            with pytest.raises(ConnectionError):
                await raw.frame()

    run(main())


def test_a_client_that_says_nothing_to_pings_is_given_up_and_one_that_answers_is_not(tmp_path: Path):
    async def main():
        app = App(listen)
        async with web_stage(tmp_path, app, limits=Limits(ping_interval_s=0.05)) as s, connect(s.url) as client:
            raw = await raw_socket(s.port)
            first, data = await raw.frame()
            assert first == PING
            await raw.send(frame(PONG, data))
            assert (await raw.frame())[0] == PING
            assert await raw.closed_with() == 1011
            assert app.received == [disconnect(1011, "keepalive ping timeout")]
            await client.send("still here")
            await s.until(lambda: len(app.received) == 2)

    run(main())


def test_an_application_that_does_not_receive_holds_back_its_client(tmp_path: Path):
    go_on = asyncio.Event()

    async def late(app: App) -> None:
        await go_on.wait()
        await echo(app)

    async def main():
        # Pings that it cannot read are not held against the client.
        async with web_stage(tmp_path, App(late), limits=Limits(ping_interval_s=0.2)) as s:
            raw = await raw_socket(s.port)
            (connection,) = s.door.connections
            sent = echoes = most = 0
            chunk = frame(BINARY, b"x" * 60_000)

            async def send() -> None:
                nonlocal sent, most
                for _ in range(1000):
                    await raw.send(chunk)
                    sent += 1
                    most = max(most, sent - echoes)

            sending = asyncio.ensure_future(send())
            await s.until(lambda: connection._reading_paused)
            for _ in range(2):
                while (await raw.frame())[0] != PING:
                    pass
            go_on.set()
            while echoes < 1000:
                first, data = await raw.frame()
                if first == BINARY:
                    assert len(data) == 60_000
                    echoes += 1
            await sending
            assert most < 500  # of 60 MB less than half was in the buffers of kernel and processes
            raw.writer.close()

    run(main())


def test_a_client_that_does_not_read_holds_back_its_application(tmp_path: Path):
    made = 0

    async def flood(app: App) -> None:
        nonlocal made
        for _ in range(1000):
            await app.tell(b"x" * 60_000)
            made += 1

    async def main():
        async with web_stage(tmp_path, App(flood)) as s:
            raw = await raw_socket(s.port)
            (connection,) = s.door.connections
            await s.until(lambda: connection.writing_paused)
            for read in range(1000):
                assert made - read < 500
                assert len((await raw.frame())[1]) == 60_000
            assert (await raw.frame())[0] == CLOSE
            assert made == 1000
            raw.writer.close()

    run(main())


def test_pings_without_end_are_answered_no_faster_than_their_client_reads(tmp_path: Path):
    async def main():
        async with web_stage(tmp_path, App(listen)) as s:
            raw = await raw_socket(s.port)
            pings = frame(PING, b"p" * 125) * 500
            (connection,) = s.door.connections

            async def send() -> None:
                for _ in range(300):
                    await raw.send(pings)

            sending = asyncio.ensure_future(send())
            await s.until(lambda: connection.writing_paused and connection._reading_paused)
            assert not sending.done()
            pongs = b"\x8a\x7d" + b"p" * 125
            assert await raw.reader.readexactly(300 * 500 * len(pongs)) == pongs * 300 * 500
            await sending
            raw.writer.close()

    run(main())


def test_starlette_applications_work_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def endpoint(socket: WebSocket) -> None:
        await socket.accept()
        while True:
            await socket.send_json({"you": await socket.receive_json()})

    async def main():
        app = Starlette(routes=[WebSocketRoute("/ws", endpoint)])
        async with web_stage(tmp_path, app) as s, httpx.AsyncClient() as plain:
            async with connect(s.url + "/ws") as client:
                await client.send('{"a": 1}')
                assert await client.recv() == '{"you":{"a":1}}'
            await free(s)
            with pytest.raises(InvalidStatus) as caught:
                await connect(s.url + "/nowhere")
            assert caught.value.response.status_code == 403
            # The same path without the offer is an ordinary request.
            assert (await plain.get(f"http://127.0.0.1:{s.port}/ws")).status_code == 404
        # That the client has closed is no error of an application that does not look.
        assert caplog.text == ""

    run(main())


async def chat(raw: RawSocket, data: bytes) -> bytes:
    await raw.send(frame(TEXT, data))
    first, answer = await raw.frame()
    assert first == TEXT
    return answer


def test_each_websocket_holds_one_slot_and_others_wait_for_it(tmp_path: Path):
    async def main():
        async with web_stage(tmp_path, App(), limit=2) as s:
            first, second = await raw_socket(s.port), await raw_socket(s.port)
            assert (await chat(first, b"1"), await chat(second, b"2")) == (b"1", b"2")
            third = asyncio.ensure_future(raw_socket(s.port, ahead=frame(TEXT, b"early")))
            await s.until(lambda: len(s.door.connections) == 3)
            assert s.server.ongoing == 2
            first.writer.close()
            waiting = await third
            assert await waiting.frame() == (TEXT, b"early")
            for raw in (second, waiting):
                raw.writer.close()
            await free(s)

    run(main())
