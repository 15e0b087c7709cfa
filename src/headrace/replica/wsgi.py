"""A WSGI application as an ASGI one: its calls run in the replica's threads.

In: HTTP requests, as ASGI has them. Out: to the application, an environ (PEP 3333); to the client, what it answers. A
response whose length is known goes out whole; another as its parts are made, as fast as the client reads them.

When the client leaves, the application learns it at its next write or read, and from `serve.get_request_context()`;
its call ends when its thread has returned, for nothing can stop that.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import sys
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from headrace.context import current_request
from headrace.handle import cancel_calls
from headrace.replica.streaming import ThreadedItems
from headrace.replica.threads import Done, ThreadPool
from headrace.spec.errors import NotServableError, RequestCancelledError

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from headrace.wire.payload import Payload

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
WsgiApp = Callable[[dict[str, Any], Callable[..., Callable[[bytes], object]]], Iterable[bytes]]


class WsgiAdapter:
    """The ASGI application of a WSGI one."""

    def __init__(self, app: WsgiApp, threads: ThreadPool) -> None:
        self._app = app
        self._threads = threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        first = await receive()
        if first["type"] == "http.disconnect":
            return
        body: Any = io.BytesIO(first.get("body", b""))
        if first.get("more_body", False):
            body = io.BufferedReader(_Body(first["body"], receive, asyncio.get_running_loop()))
        await _Exchange(self._app, environ_of(scope, body), send, self._threads).run()


def environ_of(scope: Scope, body: Any) -> dict[str, Any]:
    """The environ of a request, and in it `body` as its input."""
    root = scope["root_path"].encode().decode("latin-1")
    path = unquote_to_bytes(scope["raw_path"]).decode("latin-1")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root,
        "PATH_INFO": path[len(root) :] if root and path.startswith(root) else path,
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": body,
        "wsgi.input_terminated": True,  # it ends where the body ends, also for one of unknown length
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if scope["server"]:
        environ["SERVER_NAME"], port = scope["server"]
        environ["SERVER_PORT"] = str(port)
    if scope["client"]:
        environ["REMOTE_ADDR"], port = scope["client"]
        environ["REMOTE_PORT"] = str(port)
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if "_" in name:
            continue  # it would pass for the header with a hyphen in that place
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
            if key in environ:
                value = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + value
        environ[key] = value
    return environ


class _Body(io.RawIOBase):
    """A body that comes in parts, read in a thread. Raises OSError when the client leaves before its end."""

    def __init__(self, first: bytes, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        self._part = memoryview(first)
        self._more = True
        self._receive = receive
        self._loop = loop

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._more and not self._part:
            message: Message = asyncio.run_coroutine_threadsafe(self._take(), self._loop).result()
            if message["type"] == "http.disconnect":
                raise OSError("the client has left before its request was whole")
            self._part = memoryview(message.get("body", b""))
            self._more = message.get("more_body", False)
        size = min(len(buffer), len(self._part))
        buffer[:size] = self._part[:size]
        self._part = self._part[size:]
        return size

    async def _take(self) -> Message:
        return await self._receive()


class _Exchange:
    """One request: the application's call in a thread, and the sending of what it answers on the loop.

    `_work` and what it calls are the thread's, all else is the loop's.
    """

    def __init__(self, app: WsgiApp, environ: dict[str, Any], send: Send, threads: ThreadPool) -> None:
        self._app = app
        self._environ = environ
        self._send = send
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._head: Message | None = None
        self._length = -1  # of the body, as the application has told it
        self._way: ThreadedItems | None = None  # of the parts of the body, when it is streamed
        self._part = b""  # the one that is to be sent next
        self._sent_head = False
        self._stopped = False
        self._whole: bytes | None = None
        self._answered = asyncio.Event()
        self._ended = asyncio.Event()
        self._error: BaseException | None = None

    async def run(self) -> None:
        self._threads.submit(partial(contextvars.copy_context().run, self._work))
        try:
            await self._answered.wait()
            if self._error is not None and self._whole is None:
                raise self._error
            await self._send_part(self._whole or b"", False)
        except asyncio.CancelledError:
            self._stop()
            raise
        finally:
            await self._until_ended()
        if self._error is not None:
            raise self._error  # by what the application does when its response has left

    def _stop(self) -> None:
        """Nobody waits any more."""
        self._stopped = True
        if self._way is not None:
            self._way.cancel()
        cancel_calls(current_request())

    async def _until_ended(self) -> None:
        """Until the thread has returned, however often this is cancelled: the call holds its slot as long."""
        cancelled = False
        while not self._ended.is_set():
            try:
                await self._ended.wait()
            except asyncio.CancelledError:
                cancelled = True
                self._stop()
        if cancelled:
            raise asyncio.CancelledError

    async def _send_part(self, body: bytes, more: bool) -> None:
        if not self._sent_head:
            self._sent_head = True
            assert self._head is not None
            await self._send(self._head)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    # ---- as the outlet of ThreadedItems

    def encode(self, item: Any) -> bytes:
        return bytes(item)

    def put(self, encoded: Payload | bytes) -> bool:
        assert isinstance(encoded, bytes)
        self._part = encoded
        return False

    async def room(self) -> None:
        try:
            await self._send_part(self._part, True)
        except OSError as error:
            raise RequestCancelledError("the client has left") from error

    def end(self) -> None:
        self._ended.set()
        self._answered.set()

    # ---- in the thread

    def _work(self) -> Done:
        try:
            self._call()
        except BaseException as error:  # the top of the thread's work: the loop raises it
            self._error = error
        return self.end if self._way is None else partial(self._way.finish, self.end)

    def _call(self) -> None:
        result = self._app(self._environ, self._start_response)
        try:
            self._take(result)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def _take(self, parts: Iterable[bytes]) -> None:
        gathered: list[bytes] = []
        size = 0
        whole = type(parts) in (list, tuple)
        for part in parts:
            if type(part) is not bytes:
                raise NotServableError(f"a WSGI application must yield bytes, not {type(part).__name__}")
            if self._way is not None:
                self._write(part)
                continue
            gathered.append(part)
            size += len(part)
            # A response of known length is not begun before it is there; of another no part may wait for the next.
            if part and not whole and size != self._length:
                self._stream(b"".join(gathered))
        if self._head is None:
            raise NotServableError("the WSGI application returned without having called start_response")
        if self._way is None:
            self._whole = b"".join(gathered)
            # What `close` does comes after the response.
            self._loop.call_soon_threadsafe(self._answered.set)

    def _stream(self, part: bytes) -> None:
        """Begin to send the body in parts."""
        if self._head is None:
            raise NotServableError("the WSGI application answered before it called start_response")
        way = self._way = ThreadedItems(self._loop, self)
        if self._stopped:
            way.cancel()
        way.put(part)

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        if exc_info is not None and self._way is not None:
            try:
                raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # no circle of traceback and frame
        if self._head is not None and exc_info is None:
            raise NotServableError("the WSGI application called start_response twice")
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        self._length = next((int(value) for name, value in raw if name == b"content-length" and value.isdigit()), -1)
        self._head = {"type": "http.response.start", "status": int(status[:3]), "headers": raw}
        return self._write

    def _write(self, data: bytes) -> None:
        if self._way is None:
            self._stream(data)
        elif data:
            self._way.put(data)
