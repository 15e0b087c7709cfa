"""Runs the RPCs of one replica: bytes to messages, the user's method, messages to bytes, its status.

In: calls of kind GRPC, from the invoker. Out: their replies through the same `Incoming`: a message with a GrpcStatus as
its metadata; or messages as items, with a GrpcStatus among them where there is one to tell. How the messages of a
method are read, the function says that protoc generated for its service: it is imported at the first RPC.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.context import request_variable
from headrace.handle import cancel_calls
from headrace.replica.grpc_context import Aborted, GrpcContext, gRPCInputStream, gRPCStatusError
from headrace.replica.methods import Method, find_method
from headrace.replica.streaming import send_all, send_in_thread
from headrace.replica.threads import Done, in_thread
from headrace.spec.errors import GeneratorError, HeadraceError, MethodNotFound, PayloadError, ProtocolError
from headrace.wire.frames import BROKEN, FAULT, GRPC_FAULTS, MORE, GrpcHead, GrpcStatus
from headrace.wire.items import STATUS
from headrace.wire.payload import Payload
from headrace.wire.servicers import RpcMethod, methods_of

if TYPE_CHECKING:
    from headrace.replica.incoming import Incoming
    from headrace.replica.invoke import Invoker

log = logging.getLogger("headrace.replica")

CONTEXT_NAME = "grpc_context"
UNIMPLEMENTED, INTERNAL = 12, 13

_decode_head = msgspec.msgpack.Decoder(GrpcHead).decode
_encode = msgspec.msgpack.Encoder().encode


class Served(msgspec.Struct, frozen=True):
    """A method of a service and the user's method that serves it. `context_name`: the parameter for the context."""

    rpc: RpcMethod
    method: Method
    context_name: str
    takes_stream: bool
    gives_stream: bool


class Rpc:
    """One RPC in work."""

    __slots__ = ("context", "deadline", "incoming", "outlet", "served")

    def __init__(self, incoming: Incoming, served: Served, head: GrpcHead, deadline: float | None) -> None:
        self.incoming = incoming
        self.served = served
        self.deadline = deadline
        self.context: GrpcContext | None = None
        if served.context_name:
            self.context = GrpcContext(head, incoming.meta.request_id, deadline)
        self.outlet: MessageOutlet | None = MessageOutlet(self) if served.gives_stream else None

    def call(self, argument: Any) -> Any:
        """Call the user's method."""
        if self.context is None:
            return self.served.method.function(argument)
        return self.served.method.function(argument, **{self.served.context_name: self.context})

    def read(self, data: bytes | memoryview) -> Any:
        """The client's message. Raises gRPCStatusError for bytes that are none."""
        try:
            return self.served.rpc.decode(data)  # type: ignore[arg-type]
        except Exception as error:  # protobuf's DecodeError, or what other message classes raise
            message = f"the request is not what {self.served.rpc.path} takes"
            raise gRPCStatusError(message, INTERNAL) from error

    def write(self, message: Any) -> bytes:
        """The message as bytes. Raises PayloadError for what is none."""
        try:
            return self.served.rpc.encode(message)
        except Exception as error:  # of a wrong type, TypeError mostly; protobuf's EncodeError
            raise PayloadError(
                f"{self.served.method.label} is to give the message that the .proto names for {self.served.rpc.path}, "
                f"not {type(message).__name__} ({type(error).__name__}: {error})"
            ) from error

    def answer(self, data: bytes) -> None:
        """End a unary RPC with this message and what the context says."""
        context = self.context
        if context is None or context.status == _OK:
            self.incoming.reply(data)
        else:
            self.incoming.reply(data, _encode(context.status), fault_of(context.status))

    def end(self, status: GrpcStatus) -> None:
        """End the RPC with a status and no message."""
        if self.outlet is None:
            self.incoming.reply(b"", _encode(status), fault_of(status))
        else:
            self.incoming.put_item(_encode(status), STATUS)
            self.incoming.end_items()


_OK = GrpcStatus()


def fault_of(status: GrpcStatus) -> int:
    """The flag of a reply whose status says that the server failed."""
    return FAULT if status.code in GRPC_FAULTS else 0


class MessageOutlet:
    """Messages to a client that takes many."""

    __slots__ = ("_begun", "_rpc", "room")

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._begun = False
        self.room = rpc.incoming.room
        rpc.incoming.open_items()

    def encode(self, item: Any) -> bytes:
        return self._rpc.write(item)

    def put(self, encoded: Payload | bytes) -> bool:
        if not self._begun:
            self._begin()
        return self._rpc.incoming.put_item(encoded)

    def _begin(self) -> None:
        """Before the first message, what has to be told by then."""
        self._begun = True
        context = self._rpc.context
        if context is not None and (context.status.initial or context.status.compression):
            start = GrpcStatus(initial=context.status.initial, compression=context.status.compression)
            self._rpc.incoming.put_item(_encode(start), STATUS)
            context.status.initial = []
            context.status.compression = 0

    def end(self) -> None:
        context = self._rpc.context
        if context is not None and context.status != _OK:
            self._rpc.incoming.put_item(_encode(context.status), STATUS)
        self._rpc.incoming.end_items()


class GrpcCalls:
    """Runs RPCs on the servable of `invoker`. All methods but those that say so belong to the loop's thread."""

    def __init__(self, invoker: Invoker) -> None:
        self._invoker = invoker
        self._loop = invoker.loop
        self._served: dict[str, Served] = {}
        self._learning: dict[str, asyncio.Task[dict[str, RpcMethod]]] = {}

    def __repr__(self) -> str:
        return f"<GrpcCalls {', '.join(self._served) or 'none yet'}>"

    def start(self, incoming: Incoming, deadline: float | None) -> None:
        """Run the RPC; never raises."""
        try:
            head = _decode_head(incoming.meta.http)
        except BROKEN as error:
            self._invoker.fail(incoming, ProtocolError(f"not the head of an RPC: {error}"))
            return
        served = self._served.get(head.method)
        if served is None:
            asyncio.Task(self._start_first(incoming, head, deadline), loop=self._loop, name="call")
        else:
            self._start(Rpc(incoming, served, head, deadline))

    def _start(self, rpc: Rpc) -> None:
        served, flags = rpc.served, rpc.incoming.flags
        if served.method.on_loop:
            run = self._run_stream if served.gives_stream else self._run_unary
            asyncio.Task(run(rpc), loop=self._loop, name="call")
        elif flags & MORE and not served.takes_stream:
            asyncio.Task(self._run_large(rpc), loop=self._loop, name="call")
        else:
            self._submit(rpc)

    # ---- the first RPC of a method

    async def _start_first(self, incoming: Incoming, head: GrpcHead, deadline: float | None) -> None:
        """Learn what the method takes and gives, which may mean to import modules, and begin."""
        try:
            self._invoker.enter(incoming, deadline)
            served = self._served.get(head.method) or await self._learn(head, incoming.meta.method)
        except BaseException as error:  # the top of a task: an import of user code may raise anything
            if isinstance(error, MethodNotFound):
                log.warning("request %s: %s", incoming.meta.request_id, error)
                self._refuse(incoming, head, GrpcStatus(UNIMPLEMENTED, str(error)))
            else:
                self._invoker.fail(incoming, error)
            return
        self._served[head.method] = served
        self._start(Rpc(incoming, served, head, deadline))

    async def _learn(self, head: GrpcHead, name: str) -> Served:
        servable = self._invoker.servable
        if inspect.isroutine(servable):
            name = "__call__"  # a function serves every method
        method = find_method(servable, name)
        learning = self._learning.get(head.servicer)
        if learning is None:
            learning = self._loop.create_task(in_thread(partial(methods_of, head.servicer), "import"), name="import")
            self._learning[head.servicer] = learning
        try:
            rpc = (await asyncio.shield(learning)).get(head.method)
        except HeadraceError:
            self._learning.pop(head.servicer, None)  # the next may find it
            raise
        if rpc is None:
            raise MethodNotFound(f"{head.servicer} has no method {head.method!r}")
        request, _, response = rpc.kind.partition("_")
        return Served(rpc, method, _context_name(method), request == "stream", response == "stream")

    def _refuse(self, incoming: Incoming, head: GrpcHead, status: GrpcStatus) -> None:
        if head.kind.endswith("stream"):
            incoming.open_items()
            incoming.put_item(_encode(status), STATUS)
            incoming.end_items()
        else:
            incoming.reply(b"", _encode(status), fault_of(status))

    # ---- on the loop

    async def _argument(self, rpc: Rpc) -> Any:
        """What the method is called with: the message, or the stream of messages. Raises gRPCStatusError."""
        if rpc.served.takes_stream:
            return self._stream_of(rpc)
        if rpc.incoming.flags & MORE:
            return rpc.read(await _whole_body(rpc.incoming))
        return rpc.read(rpc.incoming.body)

    async def _run_unary(self, rpc: Rpc) -> None:
        try:
            self._invoker.enter(rpc.incoming, rpc.deadline)
            result = rpc.call(await self._argument(rpc))
            if inspect.isasyncgen(result):
                raise _many_of_one(rpc)
            rpc.answer(rpc.write(await result))
        except BaseException as error:  # the top of the task: whatever user code raises is this RPC's error alone
            self._fail(rpc, error)

    async def _run_stream(self, rpc: Rpc) -> None:
        try:
            self._invoker.enter(rpc.incoming, rpc.deadline)
            result = rpc.call(await self._argument(rpc))
            await self._send(rpc, await result if inspect.isawaitable(result) else result)
        except BaseException as error:  # as in _run_unary
            self._fail(rpc, error)

    async def _send(self, rpc: Rpc, result: Any) -> None:
        """Send what a handler gave for a stream: whatever can be iterated over; plain iterators run in a thread."""
        assert rpc.outlet is not None
        if hasattr(result, "__aiter__"):
            await send_all(rpc.outlet, result if inspect.isasyncgen(result) else _closing(result))
        elif isinstance(result, Iterable):
            context = contextvars.copy_context()
            self._invoker.threads.submit(partial(context.run, self._iterate, rpc, result))
        else:
            raise _one_of_many(rpc, result)

    async def _run_large(self, rpc: Rpc) -> None:
        """Gather the body of a plain method's RPC, then give it its turn in a thread."""
        try:
            self._invoker.enter(rpc.incoming, rpc.deadline)
            rpc.incoming.body = await _whole_body(rpc.incoming)
        except BaseException as error:  # as in _run_unary
            self._fail(rpc, error)
        else:
            self._submit(rpc)

    async def _go_on(self, rpc: Rpc, result: Awaitable[Any] | Any) -> None:
        """What is left to do on the loop of an RPC whose plain method gave something to wait for."""
        try:
            result = await self._invoker.enter_again(rpc.incoming, result)
            if rpc.outlet is None:
                rpc.answer(rpc.write(result))
            else:
                await self._send(rpc, result)
        except BaseException as error:  # as in _run_unary
            self._fail(rpc, error)

    def _stream_of(self, rpc: Rpc) -> gRPCInputStream[Any]:
        return gRPCInputStream(rpc.incoming, rpc.read, self._loop)

    # ---- in a thread

    def _submit(self, rpc: Rpc) -> None:
        argument = self._stream_of(rpc) if rpc.served.takes_stream else None
        self._invoker.threads.submit(partial(self._in_thread, rpc, argument))

    def _in_thread(self, rpc: Rpc, stream: gRPCInputStream[Any] | None) -> Done:
        """Run the RPC in this thread, in a context of its own; the loop does what is returned."""
        context = contextvars.Context()
        return context.run(self._work, rpc, stream, context)

    def _work(self, rpc: Rpc, stream: gRPCInputStream[Any] | None, context: contextvars.Context) -> Done:
        try:
            self._invoker.enter_thread(rpc.incoming, rpc.deadline)
            result = rpc.call(rpc.read(rpc.incoming.body) if stream is None else stream)
            if inspect.isawaitable(result) or (rpc.outlet is not None and hasattr(result, "__aiter__")):
                return lambda: self._continue(rpc, result, context)
            if rpc.outlet is None:
                if inspect.isgenerator(result):
                    result.close()
                    raise _many_of_one(rpc)
                return partial(rpc.answer, rpc.write(result))
            if not isinstance(result, Iterable):
                raise _one_of_many(rpc, result)
        except BaseException as error:  # the top of the thread's work, as in _run_unary
            return self._failure(rpc, error)
        return self._iterate(rpc, result)

    def _continue(self, rpc: Rpc, result: Any, context: contextvars.Context) -> None:
        self._loop.create_task(self._go_on(rpc, result), context=context)

    def _iterate(self, rpc: Rpc, items: Iterable[Any]) -> Done:
        """In a thread: send what a plain iterator gives."""
        assert rpc.outlet is not None
        return send_in_thread(self._loop, rpc.incoming, rpc.outlet, items, partial(self._failure, rpc))

    # ---- errors

    def _fail(self, rpc: Rpc, error: BaseException) -> None:
        incoming = rpc.incoming
        if incoming.cancelled or incoming.expired:
            cancel_calls(request_variable.get())
        self._failure(rpc, error)()

    def _failure(self, rpc: Rpc, error: BaseException) -> Done:
        """What the loop is to do about the error; logs it. In any thread."""
        status = self._status_of(rpc, error)
        if status is None:
            return partial(rpc.incoming.fail, self._invoker.error_of(rpc.incoming, error))
        return partial(rpc.end, status)

    def _status_of(self, rpc: Rpc, error: BaseException) -> GrpcStatus | None:
        """The status that user code chose for the error, None where it chose none."""
        context, request_id = rpc.context, rpc.incoming.meta.request_id
        if context is not None and isinstance(error, Aborted):
            return context.status
        if isinstance(error, gRPCStatusError):
            log.warning("request %s: %s: %s", request_id, rpc.served.method.label, error)
            status = error.as_status()
            if context is not None:
                status.trailing = context.status.trailing
            return status
        if context is not None and context.status.code and isinstance(error, Exception):
            self._invoker.error_of(rpc.incoming, error)  # for the log
            return context.status
        return None


async def _whole_body(incoming: Incoming) -> bytes:
    parts = [bytes(incoming.body)]
    while part := await incoming.read():
        parts.append(part)
    return b"".join(parts)


async def _closing(items: Any) -> Any:
    """An asynchronous iterator of any kind as a generator, which closes it."""
    try:
        async for item in items:
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


def _context_name(method: Method) -> str:
    """The parameter by which the method takes the context: by its name, or by its annotation; "" for none."""
    function: Callable[..., Any] = method.function
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of an extension module, without a signature
        return ""
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            continue
        annotation = parameter.annotation
        named = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
        if parameter.name == CONTEXT_NAME or named.rpartition(".")[2] in ("GrpcContext", "RayServegRPCContext"):
            return parameter.name
    return ""


def _many_of_one(rpc: Rpc) -> GeneratorError:
    return GeneratorError(f"{rpc.served.method.label} is a generator, and {rpc.served.rpc.path} gives one message")


def _one_of_many(rpc: Rpc, result: object) -> PayloadError:
    return PayloadError(
        f"{rpc.served.method.label} returned {type(result).__name__}, and {rpc.served.rpc.path} gives a stream: "
        "have it yield messages"
    )
