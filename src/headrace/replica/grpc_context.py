"""What a handler of an RPC is given beside its message: a context to ask and tell, and a stream of requests.

In: the head of the RPC, and its body as it comes. Out: to the handler, messages; to the client, the status and metadata
that the handler sets. The names of methods are those of grpcio's ServicerContext. grpcio is loaded only where a
`grpc.StatusCode` is asked for.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from headrace.spec.errors import HeadraceError, LoopBlockedError, OptionTypeError, ProtocolError
from headrace.wire.frames import GrpcHead, GrpcStatus
from headrace.wire.items import RecordReader

if TYPE_CHECKING:
    import grpc

    from headrace.replica.incoming import Incoming

T = TypeVar("T")

Metadata = list[tuple[str, str | bytes]]
UNKNOWN = 2
_is_key = re.compile(r"[a-z0-9_.-]+").fullmatch
_is_value = re.compile(r"[\x20-\x7e]*").fullmatch


class gRPCStatusError(HeadraceError):
    """Ends the RPC with this status. May be raised anywhere below the handler, in other deployments too.

    `original_exception` is what happened, or a message; `code` a `grpc.StatusCode` or its number (default: UNKNOWN);
    `details` what the client is told (default: the message).
    """

    def __init__(self, original_exception: BaseException | str, code: Any = None, details: str | None = None) -> None:
        number = None if code is None else number_of(code)
        super().__init__(original_exception, number, details)
        self.original_exception = original_exception
        self.number = number
        self.grpc_details = details

    def __str__(self) -> str:
        return str(self.original_exception)

    @property
    def grpc_code(self) -> grpc.StatusCode | None:
        """The status code, None where none was given."""
        return None if self.number is None else code_of(self.number)

    def as_status(self) -> GrpcStatus:
        """The status as it is sent."""
        return GrpcStatus(self.number or UNKNOWN, _text(str(self) if self.grpc_details is None else self.grpc_details))


class Aborted(BaseException):
    """The handler called `abort`: not an Exception, so that `except Exception` in user code lets it pass."""


class GrpcContext:
    """One RPC as its handler sees it. A handler that has a parameter `grpc_context` is given it.

    What is set here is sent with the end of the RPC. Usable from any thread, and in a pickle.
    """

    def __init__(self, head: GrpcHead, request_id: str, deadline: float | None = None) -> None:
        self._head = head
        self._request_id = request_id
        self._deadline = deadline
        self._status = GrpcStatus()

    def __repr__(self) -> str:
        return f"<GrpcContext {self._head.method} request={self._request_id} code={self._status.code}>"

    # What the client said.

    def invocation_metadata(self) -> Metadata:
        """The metadata that the client sent: pairs of key and value; values of keys that end in `-bin` are bytes."""
        return [(key, value) for key, value in self._head.metadata]

    def method(self) -> str:
        """`/package.Service/Method`."""
        return self._head.method

    def peer(self) -> str:
        """Who called, as gRPC writes it: `ipv4:127.0.0.1:54321`."""
        return self._head.peer

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """What the client's certificate says; empty unless clients have to show one (`ssl_ca_certs`)."""
        return self._head.auth

    def peer_identity_key(self) -> str | None:
        """The property of `auth_context()` that identifies the client, None for none."""
        return self._head.identity or None

    def peer_identities(self) -> Sequence[bytes] | None:
        """The values of that property, None for none."""
        return self._head.auth.get(self._head.identity)

    def time_remaining(self) -> float | None:
        """The seconds for which the answer still matters; None: for ever."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def request_id(self) -> str:
        """The request's id; the client gets it as `request_id` in the trailing metadata."""
        return self._request_id

    # What the client will be told.

    def code(self) -> grpc.StatusCode | None:
        """The status code that was set, None for none."""
        return code_of(self._status.code) if self._status.code else None

    def details(self) -> str:
        """The details that were set."""
        return self._status.details

    def trailing_metadata(self) -> Metadata:
        """The trailing metadata that was set."""
        return list(self._status.trailing)

    def set_code(self, code: grpc.StatusCode | int) -> None:
        """End the RPC with this status, a `grpc.StatusCode` or its number. Unless it is OK, no message is sent."""
        self._status.code = number_of(code)

    def set_details(self, details: str) -> None:
        """Tell the client this beside the status code."""
        self._status.details = _text(details)

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send these pairs with the end of the RPC, beside the request's id. Raises OptionTypeError."""
        self._status.trailing = _checked(trailing_metadata)

    def set_initial_metadata(self, initial_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send these pairs before the first message. Raises OptionTypeError."""
        self._status.initial = _checked(initial_metadata)

    def set_compression(self, compression: grpc.Compression | int) -> None:
        """Compress what is sent, by one of `grpc.Compression`. Raises OptionTypeError."""
        if compression not in (0, 1, 2):
            raise OptionTypeError(f"compression={compression!r} must be one of grpc.Compression, such as Gzip")
        self._status.compression = int(compression)

    def abort(
        self, code: grpc.StatusCode | int, details: str = "", trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        """End the RPC here, with this status. Never returns, so `await context.abort(...)` does the same."""
        self.set_code(code)
        self.set_details(details)
        pairs = _checked(trailing_metadata)
        if pairs:
            self._status.trailing = pairs
        raise Aborted(f"aborted with status {self._status.code}: {details}")

    @property
    def status(self) -> GrpcStatus:
        """All that was set."""
        return self._status


class gRPCInputStream(Generic[T]):
    """The messages of a client that streams: `async for` on the event loop, `for` in a thread.

    The client is held back when they are not read. Iteration raises RequestCancelledError when the client has left and
    RequestTimeoutError when the time is over: half a stream never looks like a whole one.
    """

    def __init__(self, incoming: Incoming, decode: Callable[[bytes], T], loop: asyncio.AbstractEventLoop) -> None:
        self._incoming = incoming
        self._decode = decode
        self._loop = loop
        self._thread = threading.get_ident()  # that of the loop
        self._reader = RecordReader()
        self._messages: deque[bytes] = deque()
        self._begun = False
        self._ended = False
        self._cancelled = False

    def __repr__(self) -> str:
        return f"<gRPCInputStream {'ended' if self._ended else 'open'}>"

    @property
    def is_exhausted(self) -> bool:
        """Whether all messages have been read."""
        return self._ended and not self._messages

    def is_cancelled(self) -> bool:
        """Whether the client has left, or `cancel` was called."""
        return self._cancelled or self._incoming.cancelled

    def cancel(self) -> None:
        """Read no further: iteration ends."""
        self._cancelled = True

    def __aiter__(self) -> gRPCInputStream[T]:
        return self

    async def __anext__(self) -> T:
        if not self._messages and not await self._more():
            raise StopAsyncIteration
        return self._next()

    def __iter__(self) -> gRPCInputStream[T]:
        return self

    def __next__(self) -> T:
        if not self._messages:
            if threading.get_ident() == self._thread:
                raise LoopBlockedError(
                    "`for` over the requests of a stream would block the event loop of this replica: use `async for`, "
                    "or a plain method, which runs in a thread"
                )
            if not asyncio.run_coroutine_threadsafe(self._more(), self._loop).result():
                raise StopIteration
        return self._next()

    def _next(self) -> T:
        return self._decode(self._messages.popleft())

    async def _more(self) -> bool:
        """Wait for messages. False: no more come."""
        while not self._messages and not self._ended and not self._cancelled:
            part = await self._incoming.read() if self._begun else bytes(self._incoming.body)
            if self._begun and not part:
                self._ended = True
                if not self._reader.between:
                    raise ProtocolError("the stream of requests ended within a message")
            self._begun = True
            self._messages.extend(data for _, data in self._reader.feed(part))
        return bool(self._messages) and not self._cancelled


def number_of(code: Any) -> int:
    """The number of a `grpc.StatusCode`, or of what is one. Raises OptionTypeError."""
    value = getattr(code, "value", code)
    number = value[0] if isinstance(value, tuple) else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 16:
        raise OptionTypeError(f"code={code!r} must be a grpc.StatusCode, such as grpc.StatusCode.NOT_FOUND")
    return number


def code_of(number: int) -> grpc.StatusCode:
    """The `grpc.StatusCode` of the number."""
    import grpc

    return next(code for code in grpc.StatusCode if code.value[0] == number)


def _text(details: object) -> str:
    """As text that has a form in UTF-8."""
    return str(details).encode("utf-8", "replace").decode()


def _checked(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """The pairs, if the client could be sent them: grpcio would refuse others when it is too late to say so."""
    pairs: Metadata = []
    for key, value in metadata:
        if not isinstance(key, str) or not _is_key(key) or key.startswith("grpc-"):
            raise OptionTypeError(f"metadata key {key!r} must be of a-z, 0-9 and -_. and not begin with 'grpc-'")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise OptionTypeError(f"metadata {key!r}: {value!r} must be bytes, for its key ends in '-bin'")
        elif not isinstance(value, str) or not _is_value(value):
            raise OptionTypeError(
                f"metadata {key!r}: {value!r} must be printable ASCII; a key that ends in '-bin' takes bytes"
            )
        pairs.append((key, value))
    return pairs
