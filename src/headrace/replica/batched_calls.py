"""Calls whose method is batched itself: they go into a batch as they are, without a task or a future of their own.

In: calls that have a slot, from the invoker. Out: through the same `Incoming`, its own part of what its batch gave.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from headrace.replica.batch_items import Failure, Item
from headrace.replica.batched_streams import StreamItem, StreamRun
from headrace.replica.batching import Batches
from headrace.replica.methods import GENERATORS, Method
from headrace.replica.outlet import Outlet
from headrace.replica.request import HttpRequest
from headrace.replica.response import ANSWERS, json_body, render
from headrace.replica.streaming import is_stream, stream_error
from headrace.spec.errors import RequestCancelledError
from headrace.wire import payload
from headrace.wire.frames import HTTP

if TYPE_CHECKING:
    from headrace.replica.incoming import Incoming
    from headrace.replica.invoke import Invoker

_decode = payload.decode


class BatchedCalls:
    """The calls of one batched method of a replica. All on the loop."""

    def __init__(self, invoker: Invoker, method: Method) -> None:
        self.invoker = invoker
        self.method = method
        function = method.batched
        assert function is not None
        self.owner, self._arguments = function.batch_owner, function.batch_arguments
        self.batches: Batches = function.batches(invoker.loop, invoker.replica)
        self._streams = self.batches.function.kind in GENERATORS

    def encode(self, value: Any) -> payload.Payload:
        """The result of a call by handle. Raises GeneratorError for a generator, PayloadError."""
        if is_stream(value):
            raise stream_error(self.method.label)
        return payload.encode(value)

    def start(self, incoming: Incoming, deadline: float | None) -> None:
        """Put the call in a batch; never raises."""
        request: HttpRequest | None = None
        kwargs: dict[str, Any] | None = None
        if incoming.flags & HTTP:
            request = HttpRequest(incoming)
            args: tuple[Any, ...] = (request,)
        else:
            try:
                args, kwargs = _decode(incoming.body, incoming.buffers)
                if kwargs or len(args) != 1:
                    args, kwargs = self._arguments(args, kwargs)
                else:
                    kwargs = None
            except BaseException as error:  # whatever an argument's class raises when it is unpickled
                self.fail(incoming, error)
                return
        item: CallItem | CallStream
        if self._streams:
            outlet = self.invoker.outlet_of(incoming, self.method)
            if outlet is None:
                return
            item = CallStream(self, incoming, outlet, args, kwargs, deadline)
        else:
            item = CallItem(self, incoming, request, args, kwargs, deadline)
        incoming.on_cancel = item.stop
        self.batches.put(item)

    def fail(self, incoming: Incoming, error: BaseException) -> None:
        """The call has failed. What the code around has called belongs to the batch, and is not ended by this."""
        incoming.fail(self.invoker.error_of(incoming, error))


class CallItem(Item):
    """A call for one result."""

    __slots__ = ("_calls", "_incoming", "_request")

    def __init__(
        self,
        calls: BatchedCalls,
        incoming: Incoming,
        request: HttpRequest | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        deadline: float | None,
    ) -> None:
        self.owner = calls.owner
        self.args = args
        self.kwargs = kwargs
        self.run = None
        self.gone = False
        self.meta = incoming.meta
        self.deadline = deadline
        self.call = incoming
        self._calls = calls
        self._incoming = incoming
        self._request = request

    def settle(self, value: Any) -> None:
        self.gone = True
        incoming = self._incoming
        try:
            if self._request is None:
                incoming.answer(self._calls.encode(value))
            elif type(value) is dict:
                incoming.reply(json_body(value), b"", HTTP)
            elif isinstance(value, Response) or inspect.isawaitable(value) or is_stream(value):
                self._calls.invoker.respond(incoming, self._request, value, self.deadline)
            else:
                body, head = render(value)
                incoming.reply(body, head, HTTP)
        except BaseException as error:  # whatever is in the value: it is this call's alone
            self._calls.fail(incoming, error)

    def fail(self, error: Exception) -> None:
        self.gone = True
        if self._request is not None and isinstance(error, ANSWERS):
            self._calls.invoker.respond(self._incoming, self._request, error, self.deadline)
        else:
            self._calls.fail(self._incoming, error)

    def fail_with(self, failure: Failure) -> None:
        if self._request is not None and isinstance(failure.error, ANSWERS):
            self.fail(failure.error)
        else:
            self.gone = True
            self._incoming.fail(failure.info)

    def stop(self) -> None:
        """The caller has left, or its time is over. Its slot stays taken while its batch runs."""
        if not self.gone:
            self.leave(self._calls.batches)
            if self.run is None:
                self.forsaken()

    def forsaken(self) -> None:
        self._calls.fail(self._incoming, asyncio.CancelledError())


class CallStream(StreamItem):
    """A call for what a generator yields in its place."""

    __slots__ = ("_calls", "_incoming", "_outlet", "_room")

    def __init__(
        self,
        calls: BatchedCalls,
        incoming: Incoming,
        outlet: Outlet,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        deadline: float | None,
    ) -> None:
        super().__init__(calls.owner, args, kwargs, None)
        self.meta = incoming.meta
        self.deadline = deadline
        self.call = incoming
        self._calls = calls
        self._incoming = incoming
        self._outlet = outlet
        self._room: asyncio.Task[None] | None = None

    def put(self, value: Any) -> bool:
        try:
            if self._outlet.put(self._outlet.encode(value)):
                return True
        except BaseException as error:  # whatever is in the value: it is this call's alone
            self.gone = True
            self._calls.fail(self._incoming, error)
            return True
        if self._room is None:
            self._room = self._calls.invoker.loop.create_task(self._wait(), name="room")
        return False

    async def _wait(self) -> None:
        try:
            await self._outlet.room()
        except (RequestCancelledError, TimeoutError):
            pass  # `stop` has been called
        self._room = None
        if isinstance(self.run, StreamRun):
            self.run.made_room(self)

    def settle(self, value: Any) -> None:
        self.gone = True
        self._outlet.end()

    def fail(self, error: Exception) -> None:
        self.gone = True
        self._calls.fail(self._incoming, error)

    def fail_with(self, failure: Failure) -> None:
        self.gone = True
        self._incoming.fail(failure.info)

    def stop(self) -> None:
        """The caller has left, or its time is over. Its slot is free: others of its batch may go on for long."""
        if not self.gone:
            self.leave(self._calls.batches)
            self._calls.fail(self._incoming, asyncio.CancelledError())
