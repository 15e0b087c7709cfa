"""The one result of a call by a handle: to await or to ask for, as often as needed, from any thread and any loop."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from time import monotonic
from typing import Any, NoReturn

from headrace.handle.call import PENDING, REPLIED, VALUE, HandleCall
from headrace.runtime import Runtime
from headrace.spec.errors import GeneratorError, LoopBlockedError, PayloadError
from headrace.wire import payload


class DeploymentResponse(HandleCall):
    """The result of a call that is on its way: await it, or ask for `.result()`, as often as needed.

    The call was made when this came from `.remote()`, whether or not anybody waits for it. Given as an argument to
    another call, the callee gets its result. Cancelling what awaits it cancels the call, unless others wait for it too
    (`asyncio.shield` keeps it alive).
    """

    def __init__(self, runtime: Runtime, app: str, deployment: str, method: str) -> None:
        super().__init__(runtime, app, deployment, method)
        self._value: Any = None

    def __repr__(self) -> str:
        state = ("pending", "done", "failed", "cancelled", "done")[self._state]
        return f"<DeploymentResponse {self.app}/{self.deployment}.{self.method} {self.request_id} {state}>"

    def __reduce__(self) -> NoReturn:
        raise PayloadError(
            "a DeploymentResponse does not pickle: pass it as an argument of its own to another `.remote()` call (not "
            "inside a list or an object), or await it (`.result()` outside of an event loop) and pass the result"
        )

    # ---- for its user

    def __await__(self) -> Generator[Any, None, Any]:
        """The result. Raises the error of the user's code with its own type, or a HeadraceError."""
        if self._state == PENDING:
            yield from self._wait()
        return self._take()

    def result(self, timeout_s: float | None = None) -> Any:
        """Block until the result is there, `timeout_s` seconds at most (None: for ever).

        Raises TimeoutError when it is late (the call goes on), RuntimeError on a thread that runs an event loop (await
        there), the error of the user's code with its own type, or a HeadraceError.
        """
        if asyncio._get_running_loop() is not None:
            raise LoopBlockedError(
                "DeploymentResponse.result() would block the running event loop: `await` the response instead"
            )
        if self._state == PENDING:
            self._block(timeout_s)
        return self._take()

    # Defined for what they say: who forgets `stream=True` iterates, and so does Starlette's StreamingResponse.

    def __iter__(self) -> NoReturn:
        raise self._no_items("for")

    def __aiter__(self) -> NoReturn:
        raise self._no_items("async for")

    def _no_items(self, statement: str) -> GeneratorError:
        return GeneratorError(
            f"`{statement}` over the one result of {self._name}: where it is a generator, call it by "
            "handle.options(stream=True); otherwise `await` the response, or ask for its `.result()`"
        )

    # ---- for the router, on its loop

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        """The whole result."""
        if self._timed and self.deadline is not None and monotonic() >= self.deadline:
            self._fail_late()  # timers are a little late: it may be what work that gave up has left
        else:
            self._end(REPLIED, payload)

    # ---- waiting

    def _settled(self) -> bool:
        return self._state != PENDING

    def _take(self) -> Any:
        """The outcome of a response that is no longer pending: return the value or raise the error."""
        raw = self._outcome
        state = self._state  # after the outcome: while this is REPLIED, no other thread has taken the payload away
        if state == REPLIED:
            self._value = payload.decode(raw, self.buffers)  # type: ignore[arg-type]
            self._state = VALUE
            self._outcome = None
            return self._value
        if state == VALUE:
            return self._value
        raise self._error()
