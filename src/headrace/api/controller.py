"""The controller, asked from the event loop: each question has a thread and a connection of its own.

In: operations of handlers. Out: the controller's answers, or the errors that they name; ControllerAway when none comes
because no controller is there. A question that takes minutes holds up no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from headrace.api.errors import Busy, ControllerAway
from headrace.api.thread import in_thread
from headrace.engine.directory import InstanceDirectory
from headrace.spec.errors import HeadraceError, InstanceError, PeerVersionError
from headrace.spec.status import ServeStatus
from headrace.wire.client import ControlClient
from headrace.wire.control import Answer, GetSnapshot, GetStatus, Operation, Signals, Status

ANSWER_TIMEOUT_S = 30.0
AWAY_TIMEOUT_S = 5.0  # a controller that died is back by then: its keeper restarts it
POLL_S = 0.05
MOST_AT_ONCE = 64

_T = TypeVar("_T")


class Controller:
    """The controller of the instance in `directory`, which may come and go."""

    def __init__(
        self, directory: InstanceDirectory, *, away_timeout_s: float = AWAY_TIMEOUT_S, most_at_once: int = MOST_AT_ONCE
    ) -> None:
        self.directory = directory
        self._away_timeout_s = away_timeout_s
        self._most_at_once = most_at_once
        self._asking = 0

    def __repr__(self) -> str:
        return f"<Controller of {self.directory.path}, {self._asking} questions under way>"

    async def ask(self, operation: Operation, timeout_s: float | None = ANSWER_TIMEOUT_S) -> Answer:
        """The controller's answer. Raises what it names, ControllerAway, RequestTimeoutError, and Busy when too much
        is asked already.
        """
        what = type(operation).__name__
        return await self._in_thread(what, lambda client: client.request(operation, timeout_s))

    async def status(self) -> ServeStatus:
        """The state of the instance. Raises as `ask` does."""
        answer = await self.ask(GetStatus())
        if not isinstance(answer, Status):
            raise unexpected(GetStatus(), answer)
        return answer.status

    async def tell(self, signals: Signals) -> None:
        """Hand over signals; returns once the controller has them. Raises as `ask` does."""

        def send(client: ControlClient) -> None:
            client.tell(signals, ANSWER_TIMEOUT_S)
            client.request(GetSnapshot(), ANSWER_TIMEOUT_S)  # messages are read in order: it has those by then

        await self._in_thread("Signals", send)

    async def _in_thread(self, what: str, work: Callable[[ControlClient], _T]) -> _T:
        if self._asking >= self._most_at_once:
            raise Busy(f"{self._asking} operations are under way already: {what} has to wait for one of them to end")
        self._asking += 1
        try:
            return await in_thread(f"ask {what}", lambda: self._exchange(what, work))
        finally:
            self._asking -= 1

    def _exchange(self, what: str, work: Callable[[ControlClient], _T]) -> _T:
        client = ControlClient(str(self.directory.control_socket))
        try:
            self._connect(client)
            try:
                return work(client)
            except InstanceError as error:
                raise ControllerAway(f"the controller went away, and whether {what} was done is not known") from error
        finally:
            client.close()

    def _connect(self, client: ControlClient) -> None:
        """Connect, and meanwhile wait for a controller that is being restarted. Nothing has been asked for by then."""
        deadline = time.monotonic() + self._away_timeout_s
        while True:
            try:
                client.connect()
                return
            except PeerVersionError:
                raise
            except InstanceError as error:
                name = self.directory.name
                if self.directory.keeper_pid() is None:
                    raise ControllerAway(f"no instance {name!r} is running") from error
                if time.monotonic() > deadline:
                    raise ControllerAway(f"the controller of instance {name!r} does not answer") from error
            time.sleep(POLL_S)


def unexpected(operation: Operation, answer: Answer) -> HeadraceError:
    """The error for an answer that is none to the question."""
    return HeadraceError(f"the controller answered {type(operation).__name__} with {type(answer).__name__}")
