"""One RPC on its way: the call that the router carries, and how what comes back is handed to grpcio.

In: the reply, items or error from the router. Out: what the RPC's handler waits for. A unary RPC costs one future.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace.ingress.grpc_status import DEADLINE_EXCEEDED, status_of
from headrace.observe.tally import TIMED_OUT
from headrace.router import Call
from headrace.router.call import Item
from headrace.spec.errors import HeadraceError
from headrace.wire.frames import GRPC, MORE, STREAM, ErrorInfo, GrpcStatus
from headrace.wire.items import RecordReader

if TYPE_CHECKING:
    from headrace.router import Router

CLOCKS_APART_S = 0.005  # the clocks of grpcio and of the loop may tell the end of a limit so far apart

# How a call ended: what the replica says of it (the msgpack of a GrpcStatus, b"" for OK and nothing more) with its
# message; or why there is none.
Answer = tuple[bytes | GrpcStatus, bytes]


class RpcCall(Call):
    """What all kinds of RPC have in common: a limit of time, and a body that may stream."""

    near = False  # grpcio's own threads need the processor that waiting awake would keep busy
    timer: asyncio.TimerHandle | None = None  # where the limit is ours: the client's own is grpcio's to keep
    writable: asyncio.Future[None] | None = None

    def __init__(self, router: Router) -> None:
        # Not super().__init__: whoever makes it sets what there is in that.
        self.router = router

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.request_id} of {self.app}>"

    def end(self, status: GrpcStatus) -> None:
        """There is no answer but `status`."""
        raise NotImplementedError

    def limit(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        """End it at `deadline` at the latest."""
        self.timer = loop.call_at(deadline, self.expire)

    def expire(self) -> None:
        """Its time is over: the replica need not go on."""
        self.timer = None
        self.router.cancel(self)
        self.count_failure(TIMED_OUT)
        self.end(GrpcStatus(DEADLINE_EXCEEDED, f"request {self.request_id} was not answered in time"))

    def leave(self) -> None:
        """The client has left, or grpcio has ended it because the client's own limit of time is over."""
        self.settle()
        self.router.cancel(self)
        if self.deadline is not None and self.router.loop.time() > self.deadline - CLOCKS_APART_S:
            self.count_failure(TIMED_OUT)

    def settle(self) -> None:
        """It has ended: no timer, and nothing more of its body is sent."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.outflow is not None and self.link is not None:
            self.link.drop_outflow(self.stream)

    def on_writable(self) -> None:
        if self.writable is not None and not self.writable.done():
            self.writable.set_result(None)


class UnaryCall(RpcCall):
    """One message comes back. `answer` is what the handler awaits."""

    kind = GRPC
    whole = True

    def __init__(self, router: Router) -> None:
        self.router = router
        self.answer: asyncio.Future[Answer] = router.loop.create_future()

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result((meta, payload))

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        self.end(status_of(error, self.request_id))

    def end(self, status: GrpcStatus) -> None:
        if not self.answer.done():
            self.answer.set_result((status, b""))


class StreamCall(RpcCall):
    """Messages come back. `next` gives what has come; `router.consumed` says what the client has taken."""

    kind = GRPC | STREAM

    def __init__(self, router: Router) -> None:
        self.router = router
        self.reader = RecordReader()
        self.items: list[Item] = []
        self.ended = False
        self.status: GrpcStatus | None = None  # why it broke off
        self._waiter: asyncio.Future[None] | None = None

    async def next(self) -> list[Item]:
        """What has come since; empty when no more comes."""
        while not self.items and not self.ended:
            self._waiter = self.router.loop.create_future()
            await self._waiter
        items, self.items = self.items, []
        return items

    def taken(self, cost: int) -> None:
        """The client has taken an item: the replica may make another."""
        if not self.ended:
            self.router.consumed(self, cost)

    def on_items(self, items: list[Item], more: bool) -> None:
        self.items += items
        self.ended = not more
        self._wake()

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        """A replica answers a stream with a whole reply when nobody waits for it: there is nothing in it."""
        if flags & MORE:
            self.router.cancel(self)
        self.ended = True
        self._wake()

    def on_error(self, error: HeadraceError | ErrorInfo) -> None:
        self.end(status_of(error, self.request_id))

    def end(self, status: GrpcStatus) -> None:
        self.ended = True
        self.status = status
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
