"""The many results of a call by a handle to a generator: to iterate over once, as they come, in async code or plain.

In: items from the router. Out: to whoever iterates, each decoded when it is its turn; to the router, how far its user
has come, which is how far ahead the generator may go.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NoReturn

from headrace.handle.call import PENDING, REPLIED, HandleCall
from headrace.router.call import Item
from headrace.runtime import Runtime
from headrace.spec.errors import GeneratorError, LoopBlockedError, PayloadError
from headrace.wire import payload
from headrace.wire.frames import STREAM, WINDOW_BYTES
from headrace.wire.items import RecordReader

# What the user has taken is told in steps: this and what the connection holds back are less than a window together.
_STEP = WINDOW_BYTES // 4

_decode = payload.decode


class ItemCall(HandleCall):
    """The call behind a DeploymentResponseGenerator. The router holds this one, and so not what its user holds."""

    kind = STREAM
    _owed = 0  # cost of the items that were taken and not told yet

    def __init__(self, runtime: Runtime, app: str, deployment: str, method: str) -> None:
        super().__init__(runtime, app, deployment, method)
        self.reader = RecordReader()
        self.items: deque[Item] = deque()

    def on_items(self, items: list[Item], more: bool) -> None:
        """The next items have come."""
        if self._state != PENDING:
            return
        self.items.extend(items)
        if not more:
            self._end(REPLIED, None)
        elif self._waiters:
            self._wake()

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        """A replica answers a call for items with items: this one ended without any."""
        self._end(REPLIED, None)

    def _settled(self) -> bool:
        return bool(self.items) or self._state != PENDING

    def take(self) -> Any:
        """The next item, which is there."""
        _, data, buffers, cost = self.items.popleft()
        self._owed += cost
        if self._owed >= _STEP and self._state == PENDING:
            owed, self._owed = self._owed, 0
            runtime = self._runtime
            if runtime.owns_this_thread():
                runtime.router.consumed(self, owed)
            else:
                runtime.post(self._tell_consumed, owed)
        return _decode(data, buffers)

    def _tell_consumed(self, owed: int) -> None:
        if self._state == PENDING:
            self._runtime.router.consumed(self, owed)


class DeploymentResponseGenerator:
    """What a generator method yields, as it comes: by `async for item in ...`, or by `for` outside of event loops.

    The call was made when this came from `.remote()`. Items can be taken once, by one user at a time. The generator
    runs a bounded way ahead of who takes (256 items, fewer large ones) and waits there. `cancel()`, `aclose()`, or
    leaving the loop early and letting go of this, ends the generator: it is closed at its next `yield`.
    """

    __slots__ = ("__weakref__", "_call")

    def __init__(self, call: ItemCall) -> None:
        self._call = call

    def __repr__(self) -> str:
        call = self._call
        state = ("pending", "ended", "failed", "cancelled")[call._state]
        return (
            f"<DeploymentResponseGenerator {call.app}/{call._name} {call.request_id} {state} ready={len(call.items)}>"
        )

    def __del__(self) -> None:
        call = getattr(self, "_call", None)
        if call is not None:
            call.let_go()

    def __reduce__(self) -> NoReturn:
        raise PayloadError(
            "a DeploymentResponseGenerator cannot be sent to another deployment: pass on its items, for example by "
            "yielding them"
        )

    def __await__(self) -> NoReturn:
        raise GeneratorError(
            f"{self._call._name} was called with stream=True: iterate over what it yields (`async for`), instead of "
            "awaiting it"
        )

    def result(self, timeout_s: float | None = None) -> NoReturn:
        """Raises GeneratorError: many items come, and no one result."""
        raise GeneratorError(
            f"{self._call._name} was called with stream=True: iterate over what it yields (`for`), instead of asking "
            "for its result()"
        )

    @property
    def request_id(self) -> str:
        """The id of the request that the call belongs to."""
        return self._call.request_id

    def __aiter__(self) -> DeploymentResponseGenerator:
        return self

    async def __anext__(self) -> Any:
        """The next item. Raises the error of the user's code with its own type where the generator raised it."""
        call = self._call
        if call.items:
            return call.take()
        while not call._settled():
            await _Ready(call)
        if call.items:
            return call.take()
        if call._state == REPLIED:
            raise StopAsyncIteration
        raise call._error()

    def __iter__(self) -> DeploymentResponseGenerator:
        return self

    def __next__(self) -> Any:
        """The next item, waited for in this thread. Raises as `__anext__` does, LoopBlockedError on an event loop."""
        call = self._call
        if asyncio._get_running_loop() is not None:
            raise LoopBlockedError(
                "`for` over a DeploymentResponseGenerator would block the event loop: use `async for`"
            )
        while not call._settled():
            call._block(None)
        if call.items:
            return call.take()
        if call._state == REPLIED:
            raise StopIteration
        raise call._error()

    def cancel(self) -> None:
        """End the generator where it runs. Without effect when it has ended. The next item then is a
        RequestCancelledError.
        """
        if self._call._state == PENDING:
            self._call.items.clear()
        self._call.cancel()

    def cancelled(self) -> bool:
        """Whether it was cancelled before it had ended."""
        return self._call.cancelled()

    async def aclose(self) -> None:
        """End the generator where it runs, as leaving an `async for` over a local generator would."""
        self.cancel()

    def close(self) -> None:
        """As `aclose`, for plain code."""
        self.cancel()


class _Ready:
    """Awaits the next item, or the end, of a call."""

    __slots__ = ("_call",)

    def __init__(self, call: ItemCall) -> None:
        self._call = call

    def __await__(self) -> Any:
        return self._call._wait()
