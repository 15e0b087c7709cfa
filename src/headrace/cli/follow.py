"""Following a rollout to its end: one operation asked of the controller, and what becomes of it shown meanwhile.

In: an operation that ends when its rollout has ended, or none, where one that is under way is watched. Out: the view of
it, or lines, on a stream; its last status, and the exit code that this makes.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from typing import IO

import msgspec

from headrace.cli.exits import DONE, FAILED, ROLLED_BACK
from headrace.cli.failures import gist
from headrace.cli.instance import ANSWER_TIMEOUT_S, ask
from headrace.cli.live import Painter, summary, view
from headrace.cli.terminal import Style
from headrace.engine.directory import InstanceDirectory
from headrace.spec.errors import (
    HeadraceError,
    InstanceError,
    RequestTimeoutError,
    RolledBackError,
    RolloutError,
)
from headrace.spec.status import RolloutOutcome, RolloutStatus
from headrace.wire.client import ControlClient
from headrace.wire.control import Answer, Deployed, GetRollout, Operation, Rollout

POLL_S = 0.2
SAME_S = 0.01  # moments that are told are added up from two clocks
_VIEWED = ("the traffic goes ", "revision ")  # the view tells the same

CODES = {
    RolloutOutcome.PROMOTED: DONE,
    RolloutOutcome.ROLLED_BACK: ROLLED_BACK,
    RolloutOutcome.FAILED: FAILED,
    RolloutOutcome.SUPERSEDED: FAILED,
}


class Teller:
    """Tells how a rollout goes: redrawn in place on a terminal, line by line elsewhere."""

    def __init__(self, stream: IO[str]) -> None:
        self.style = Style.of(stream)
        self._stream = stream
        moves = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._painter = Painter(stream) if moves else None
        self._summary = ""
        self._told: set[str] = set()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._painter is not None:
            self._painter.say(line)
        else:
            print(line, file=self._stream, flush=True)

    def progress(self, text: str) -> None:
        """What the controller tells; the error of a replica in full the first time, then by its last line."""
        if text.startswith(_VIEWED):
            return
        first, _, error = text.rstrip().partition("\n")
        if error in self._told:
            self.say(f"{first} {gist(error)}")
            return
        if error:
            self._told.add(error)
        self.say(self.style.dim(first) + (f"\n{error}" if error else ""))

    def show(self, status: RolloutStatus) -> None:
        """The rollout as it is now."""
        if self._painter is not None:
            self._painter.paint(view(status, time.time(), self._painter.width(), self.style))
            return
        now = summary(status)
        if now != self._summary:
            self._summary = now
            self.say(now)

    def end(self, status: RolloutStatus) -> None:
        """How it ended, and why: what was told already, by its last line."""
        if self._painter is not None:
            if status.strategy:
                self.show(msgspec.structs.replace(status, reason=""))
            self._painter.leave()
        if status.outcome == RolloutOutcome.PROMOTED:
            text = f"promoted: application {status.app}, revision {status.revision}"
            self.say(self.style.good(text) + (f" ({status.reason})" if status.reason else ""))
            return
        first, _, rest = status.reason.rstrip().partition("\n")
        what = status.outcome.lower().replace("_", " ") or "not ended"
        self.say(self.style.bad(f"{what}: {first}") + (f" {gist(rest)}" if rest in self._told else ""))
        if rest and rest not in self._told:
            self.say(rest)

    def leave(self) -> None:
        """What is shown stays as it is."""
        if self._painter is not None:
            self._painter.leave()


def follow(
    directory: InstanceDirectory,
    app: str,
    teller: Teller,
    operation: Operation | None = None,
    timeout_s: float | None = None,
) -> RolloutStatus:
    """The status of the application's rollout at its end, `outcome` set: also of an operation that failed.

    Raises RequestTimeoutError after `timeout_s` seconds, upon which the rollout goes on; without an operation also
    RolloutError where there is no rollout, ApplicationNotFound, InstanceError.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    before = rollout_of(directory, app)
    if operation is None and before is None:
        ask_rollout(directory, app)  # raises why
    asked = None if operation is None else _Asked(directory, operation)
    status: RolloutStatus | None = None
    while True:
        found = rollout_of(directory, app)
        if found is not None and (operation is None or not found.outcome or _another(found, before)):
            status = found
        if asked is not None:
            while (line := asked.next_line()) is not None:
                teller.progress(line)
        if status is not None:
            teller.show(status)
        if asked is not None and asked.ended.wait(POLL_S):
            while (line := asked.next_line()) is not None:
                teller.progress(line)
            if asked.lost and directory.keeper_pid() is not None:
                # The controller went away and comes back; what it was asked, it may have begun or not.
                asked = None if status is not None else _Asked(directory, asked.operation)
                continue
            return _ending(directory, app, asked, before)
        if asked is None:
            if status is not None and status.outcome:
                return status
            time.sleep(POLL_S)
        if deadline is not None and time.monotonic() > deadline:
            raise RequestTimeoutError(
                f"the rollout has not ended within {timeout_s:g} s, and goes on: `headrace rollout status {app} "
                "--watch` shows it"
            )


def code_of(status: RolloutStatus) -> int:
    """The exit code that a rollout which ended so makes."""
    return CODES.get(RolloutOutcome(status.outcome), FAILED) if status.outcome else FAILED


def rollout_of(directory: InstanceDirectory, app: str) -> RolloutStatus | None:
    """The rollout of the application that is under way, or the last one; None where none is known."""
    try:
        return ask_rollout(directory, app)
    except (RolloutError, KeyError, InstanceError, RequestTimeoutError):
        return None


def ask_rollout(directory: InstanceDirectory, app: str) -> RolloutStatus:
    """As `rollout_of`. Raises RolloutError, ApplicationNotFound, or InstanceError."""
    answer = ask(directory, GetRollout(app))
    if not isinstance(answer, Rollout):
        raise HeadraceError(f"the controller answered GetRollout with {type(answer).__name__}")
    return answer.status


class _Asked:
    """One operation, asked in a thread of its own: nothing that the terminal does holds it up."""

    def __init__(self, directory: InstanceDirectory, operation: Operation) -> None:
        self.operation = operation
        self.ended = threading.Event()
        self.answer: Answer | None = None
        self.error: HeadraceError | None = None
        self._directory = directory
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="asked", daemon=True).start()

    @property
    def lost(self) -> bool:
        """Whether it is not known what became of it."""
        return type(self.error) is InstanceError

    def next_line(self) -> str | None:
        try:
            return self._lines.get_nowait()
        except queue.Empty:
            return None

    def _run(self) -> None:
        client = ControlClient(str(self._directory.control_socket), role="cli")
        try:
            self._connect(client)
            self.answer = client.request(self.operation, None, self._lines.put)
        except HeadraceError as error:
            self.error = error
        except Exception as error:  # the top of the thread: whoever waits must hear of it
            self.error = HeadraceError(f"{type(error).__name__}: {error}")
        finally:
            client.close()
            self.ended.set()

    def _connect(self, client: ControlClient) -> None:
        """Connect; while the controller is away and the keeper brings it back, again."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            try:
                client.connect()
            except InstanceError:
                if time.monotonic() > deadline or self._directory.keeper_pid() is None:
                    raise
                time.sleep(POLL_S)
            else:
                return


def _another(found: RolloutStatus, before: RolloutStatus | None) -> bool:
    if before is None or found.revision != before.revision or found.outcome != before.outcome:
        return True
    return abs(found.since - before.since) > SAME_S


def _ending(
    directory: InstanceDirectory, app: str, asked: _Asked | None, before: RolloutStatus | None
) -> RolloutStatus:
    """What the answer means, with all that is known of the rollout."""
    last = rollout_of(directory, app)
    if last is None or not _another(last, before):
        last = RolloutStatus(app=app, revision=0)
    answer = asked.answer if asked is not None else None
    if isinstance(answer, Deployed):
        if not last.revision:  # no rollout was needed: options changed in place
            return msgspec.structs.replace(last, revision=answer.revision, outcome=RolloutOutcome.PROMOTED)
        outcome = answer.outcome or last.outcome or RolloutOutcome.PROMOTED
        return msgspec.structs.replace(last, outcome=outcome, reason=answer.reason or last.reason)
    error = asked.error if asked is not None else None
    if error is None:
        return last
    rolled_back = isinstance(error, RolledBackError)
    outcome = RolloutOutcome.ROLLED_BACK if rolled_back else RolloutOutcome.FAILED
    return msgspec.structs.replace(last, outcome=last.outcome or outcome, reason=str(error))
