"""Clients of `bench.chaos` beside plain requests: streams, uploads, WebSockets, gRPC, handles, and bad manners.

In: ports of an instance, and the instance's environment for handles. Out: `Account`: of each kind of client, how many
got all they asked for, were refused or told that it broke (each with its words), left, or got something wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import traceback
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import websockets
from google.protobuf.wrappers_pb2 import Int64Value

from headrace import serve
from headrace.spec.errors import HeadraceError

HOST = "127.0.0.1"
PATIENCE_S = 15.0  # whoever hears nothing for so long has been forgotten
RESET = struct.pack("ii", 1, 0)


class Wrong(Exception):
    """An answer that no fault excuses."""


class Refused(Exception):
    """An error that was stated: a status, a code."""


class Broke(Exception):
    """The connection, or the stream, ended so that its reader can tell."""


class Account:
    """What became of the clients, by kind."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.broke: Counter[str] = Counter()
        self.words: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []

    def report(self) -> str:
        kinds = sorted({*self.done, *self.refused, *self.broke})
        lines = [f"{'client':18}{'done':>8}{'refused':>9}{'broke':>7}"]
        lines += [f"{kind:18}{self.done[kind]:8}{self.refused[kind]:9}{self.broke[kind]:7}" for kind in kinds]
        lines += [f"    {kind}: {count} x {words}" for (kind, words), count in sorted(self.words.items())]
        return "\n".join(lines)


class Wire:
    """One HTTP connection, read as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, narrow: bool = False) -> Wire:
        sock = socket.socket()
        if narrow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
        except OSError as error:
            sock.close()
            raise Broke("could not connect") from error
        return cls(*await asyncio.open_connection(sock=sock, limit=1 << 17))

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", "host: test", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def answer(self) -> tuple[int, bytes]:
        status, headers = await self.head()
        return status, await self.reader.readexactly(int(headers["content-length"]))

    async def chunk(self) -> bytes:
        """The next chunk, b"" for the end of the body."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def close(self, *, reset: bool = False) -> None:
        if reset:
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.writer.transport.abort()
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Crowd:
    """So many clients at a time, each of a kind that chance decides, one after the other."""

    def __init__(self, port: int, grpc_port: int, seed: int, clients: int, kinds: str = "") -> None:
        self.port = port
        self.grpc_address = f"{HOST}:{grpc_port}"
        self.clients = clients
        self.account = Account()
        self.random = random.Random(seed)
        self._stopped = False
        self._tasks: list[asyncio.Task[None]] = []
        self._channel: Any = None
        self._front: Any = None
        self.kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "stream": self.stream,
            "plain stream": self.plain_stream,
            "slow reader": self.slow_reader,
            "upload": self.upload,
            "slow upload": self.slow_upload,
            "deadline": self.deadline,
            "leaves": self.leave,
            "leaves an upload": self.leave_upload,
            "websocket": self.websocket,
            "leaves websocket": self.leave_websocket,
            "gRPC": self.grpc_unary,
            "gRPC stream": self.grpc_stream,
            "gRPC cancel": self.grpc_cancel,
            "route": self.route,
            "handle": self.handle,
            "handle stream": self.handle_stream,
            "handle cancel": self.handle_cancel,
            "handle late": self.handle_late,
        }
        self.names = [name for name in kinds.split(",") if name] or list(self.kinds)

    async def start(self) -> None:
        """From now on they ask."""
        self._channel = grpc.aio.insecure_channel(self.grpc_address)
        self._front = await asyncio.to_thread(serve.get_app_handle, "default")
        self._tasks = [asyncio.create_task(self._client()) for _ in range(self.clients)]

    async def stop(self) -> Account:
        """Each ends what it has begun."""
        self._stopped = True
        await asyncio.gather(*self._tasks)
        await self._channel.close()
        return self.account

    async def _client(self) -> None:
        while not self._stopped:
            kind = self.random.choice(self.names)
            account = self.account
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self.kinds[kind]()
                account.done[kind] += 1
            except TimeoutError as error:
                steps = " > ".join(step.name for step in traceback.extract_tb((error.__cause__ or error).__traceback__))
                account.wrong.append(f"{kind}: nothing was heard for {PATIENCE_S:g} s (in {steps})")
            except Refused as error:
                account.refused[kind] += 1
                account.words[kind, str(error)] += 1
            except (Broke, OSError, asyncio.IncompleteReadError) as error:
                account.broke[kind] += 1
                account.words[kind, str(error) if isinstance(error, Broke) else type(error).__name__] += 1
                await asyncio.sleep(0.02)
            except Exception as error:  # the top of a client: whatever it is, it is not what was asked for
                where = traceback.extract_tb(error.__traceback__)[-1].lineno
                account.wrong.append(f"{kind}: {type(error).__name__}: {str(error)[:300]} (line {where})")
            await asyncio.sleep(0)

    # --- HTTP ------------------------------------------------------------------------------------------------------

    async def stream(self) -> None:
        await self._stream("/stream", self.random.randint(0, 600), 20)

    async def plain_stream(self) -> None:
        await self._stream("/stream/plain", self.random.randint(0, 600), 20)

    async def slow_reader(self) -> None:
        await self._stream("/stream", 100, 10_000, stops_s=self.random.uniform(0.1, 2.0))

    async def _stream(self, path: str, count: int, size: int, stops_s: float = 0.0) -> None:
        wire = await Wire.open(self.port, narrow=stops_s > 0)
        try:
            wire.ask("GET", f"{path}?count={count}&size={size}")
            status, headers = await wire.head()
            if status != 200:
                raise Refused(f"status {status}")
            if count == 0 and headers.get("content-length") == "0":
                return
            body, expected = b"", 0
            while chunk := await wire.chunk():
                *whole, body = (body + chunk).split(b"\n")
                for line in whole:
                    if line != b"%d %s" % (expected, b"." * size):
                        raise Wrong(f"item {expected} came as {line[:60]!r}")
                    expected += 1
                if stops_s:
                    await asyncio.sleep(stops_s)
                    stops_s = 0
            if expected != count or body:
                raise Wrong(f"a stream of {count} ended well after {expected}")
        finally:
            await wire.close()

    def _body(self, number: int, size: int) -> bytes:
        return b'{"n": %d}' % number + random.Random(number).randbytes(4096) * (size // 4096)

    def _check(self, status: int, answer: bytes, number: int, body: bytes) -> None:
        if status != 200:
            raise Refused(f"status {status}")
        found = json.loads(answer)
        if (found["n"], found["crc"], found["size"]) != (number, zlib.crc32(body), len(body)):
            raise Wrong(f"request {number} of {len(body)} bytes was answered {found}")
        if len(set(found["versions"])) != 1:
            raise Wrong(f"answered by two revisions: {found['versions']}")

    async def upload(self) -> None:
        number = self.random.randrange(10**9)
        body = self._body(number, self.random.choice([200_000, 900_000, 3_000_000]))
        wire = await Wire.open(self.port)
        try:
            wire.ask("POST", "/", body)
            self._check(*await wire.answer(), number, body)
        finally:
            await wire.close()

    async def slow_upload(self) -> None:
        """In pieces, with pauses: longer than a drain may last it is not."""
        number = self.random.randrange(10**9)
        body = self._body(number, 400_000)
        wire = await Wire.open(self.port)
        try:
            wire.writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body))
            for at in range(0, len(body), 50_000):
                wire.writer.write(body[at : at + 50_000])
                await wire.writer.drain()
                await asyncio.sleep(0.02)
            self._check(*await wire.answer(), number, body)
        finally:
            await wire.close()

    async def deadline(self) -> None:
        """With little time, and a priority; not answered in time is what was to be expected."""
        number, limit_s = self.random.randrange(10**9), self.random.choice([0.001, 0.01, 0.05, 0.2])
        wire = await Wire.open(self.port)
        try:
            path = f"/wait?s={self.random.choice([0, 0.02, 0.1])}"
            headers = {"x_request_timeout_seconds": str(limit_s), "x_request_priority": str(self.random.randint(0, 3))}
            body = self._body(number, 0)
            wire.ask("POST", path, body, **headers)
            status, answer = await wire.answer()
            if status not in (408, 503):
                self._check(status, answer, number, body)
        finally:
            await wire.close()

    async def leave(self) -> None:
        wire = await Wire.open(self.port)
        path = self.random.choice(["/wait?s=1", "/stream?count=5000&size=500", "/stream/plain?count=5000&size=500"])
        wire.ask("POST", path, b'{"n": 1}')
        if self.random.random() < 0.7:
            await asyncio.sleep(self.random.uniform(0, 0.1))
        await wire.close(reset=self.random.random() < 0.5)

    async def leave_upload(self) -> None:
        wire = await Wire.open(self.port)
        wire.writer.write(b'POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3000000\r\n\r\n{"n": 1}' + bytes(100_000))
        await asyncio.sleep(self.random.uniform(0, 0.1))
        await wire.close(reset=self.random.random() < 0.5)

    async def route(self) -> None:
        number = self.random.randrange(10**9)
        body = json.dumps({"n": number, "text": "ä" * 10}).encode()
        wire = await Wire.open(self.port)
        try:
            wire.ask("POST", f"/web/things/{number}", body, content_type="application/json")
            status, answer = await wire.answer()
            if status != 200:
                raise Refused(f"status {status}: {answer[:100]!r}")
            found = json.loads(answer)
            if (found["n"], found["body"], found["text"]) != (number, number, "ä" * 10):
                raise Wrong(f"{number} was answered {found}")
            if len(set(found["versions"])) != 1:
                raise Wrong(f"answered by two revisions: {found['versions']}")
        finally:
            await wire.close()

    # --- WebSockets ------------------------------------------------------------------------------------------------

    async def _converse(self, messages: int, leaves: bool) -> None:
        try:
            client = await websockets.connect(f"ws://{HOST}:{self.port}/web/ws", open_timeout=PATIENCE_S)
        except websockets.InvalidStatus as error:
            raise Refused(f"status {error.response.status_code}") from error
        except (EOFError, websockets.InvalidMessage) as error:
            raise Broke("during the handshake") from error
        try:
            for number in range(messages):
                text = f"{number} {'x' * (number % 50 * 100)}"
                await client.send(text)
                answer = await client.recv()
                if answer != text:
                    raise Wrong(f"{text[:40]} was echoed as {answer[:40]!r}")
                await asyncio.sleep(0.005)
        except websockets.ConnectionClosed as error:
            raise Broke(f"code {error.rcvd.code if error.rcvd else 'none'}") from error
        finally:
            if leaves:
                client.transport.abort()
            await client.close()

    async def websocket(self) -> None:
        await self._converse(self.random.randint(1, 60), leaves=False)

    async def leave_websocket(self) -> None:
        await self._converse(self.random.randint(0, 5), leaves=True)

    # --- gRPC ------------------------------------------------------------------------------------------------------

    def _rpc(self, kind: str, method: str) -> Any:
        make = getattr(self._channel, kind)
        return make(f"/chaos.Numbers/{method}", Int64Value.SerializeToString, Int64Value.FromString)

    async def grpc_unary(self) -> None:
        number = self.random.randrange(10**9)
        try:
            answer = await self._rpc("unary_unary", "Say")(Int64Value(value=number), metadata=APPLICATION)
        except grpc.aio.AioRpcError as error:
            raise Refused(said(error)) from error
        if answer.value != number + 1:
            raise Wrong(f"{number} was answered {answer.value}")

    async def grpc_stream(self) -> None:
        count, expected = self.random.randint(0, 300), 0
        try:
            async for item in self._rpc("unary_stream", "Count")(Int64Value(value=count), metadata=APPLICATION):
                if item.value != expected:
                    raise Wrong(f"item {expected} came as {item.value}")
                expected += 1
        except grpc.aio.AioRpcError as error:
            raise Broke(said(error)) from error
        if expected != count:
            raise Wrong(f"a stream of {count} ended well after {expected}")

    async def grpc_cancel(self) -> None:
        call = self._rpc("unary_stream", "Count")(Int64Value(value=10**6), metadata=APPLICATION)
        try:
            for _ in range(self.random.randint(0, 20)):
                await call.read()
        except grpc.aio.AioRpcError as error:
            raise Broke(said(error)) from error
        finally:
            call.cancel()

    # --- handles ---------------------------------------------------------------------------------------------------

    async def handle(self) -> None:
        """A repeatable call from outside."""
        await self._front.tasks.remote()

    async def handle_stream(self) -> None:
        count, expected = self.random.randint(0, 600), 0
        try:
            async for number, _, data in self._front.options(stream=True).items.remote(count, 30):
                if number != expected or len(data) != 30:
                    raise Wrong(f"item {expected} came as {number}")
                expected += 1
        except HeadraceError as error:
            raise Broke(type(error).__name__) from error
        if expected != count:
            raise Wrong(f"a stream of {count} ended well after {expected}")

    async def handle_cancel(self) -> None:
        response = self._front.wait.remote()
        await asyncio.sleep(self.random.uniform(0, 0.05))
        response.cancel()
        try:
            await response
        except (HeadraceError, asyncio.CancelledError) as error:
            if type(error).__name__ not in ("RequestCancelledError", "CancelledError"):
                raise Refused(type(error).__name__) from error

    async def handle_late(self) -> None:
        try:
            await self._front.options(timeout_s=self.random.choice([0.001, 0.02, 0.1])).wait.remote()
        except HeadraceError as error:
            if type(error).__name__ not in ("RequestTimeoutError", "BackPressureError"):
                raise Refused(type(error).__name__) from error


APPLICATION = (("application", "default"),)


def said(error: grpc.aio.AioRpcError) -> str:
    """The code, and the start of what the server says to it."""
    return f"{error.code().name} {str(error.details())[:60]}"
