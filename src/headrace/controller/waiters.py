"""Those who wait for an operation: what is told to them meanwhile, and their one answer.

In: what happens to applications, from the reconciler. Out: Progress lines and one Response each, to drivers and CLI.
"""

from __future__ import annotations

from collections.abc import Callable

from headrace.spec.errors import HeadraceError
from headrace.wire.control import Answer, Done, Failed, Message, Progress, Response


class Waiter:
    """One request's way back. Answers after the first are dropped, and so is all that a driver that left would get."""

    def __init__(self, id: int, send: Callable[[Message], bool]) -> None:
        self._id = id
        self._send = send
        self._when_kept: Callable[[Callable[[], object]], None] | None = None
        self.answered = False

    def __repr__(self) -> str:
        return f"<Waiter {self._id}{' answered' if self.answered else ''}>"

    def progress(self, line: str) -> None:
        """Tell what is going on."""
        if not self.answered:
            self._send(Progress(self._id, line))

    def hold(self, when_kept: Callable[[Callable[[], object]], None]) -> None:
        """An answer that says that something was done goes out by way of this: not before it is kept."""
        self._when_kept = when_kept

    def answer(self, answer: Answer) -> None:
        """Answer the request."""
        if self.answered:
            return
        self.answered = True
        response = Response(self._id, answer)
        if self._when_kept is None or isinstance(answer, Failed):
            self._send(response)
        else:
            self._when_kept(lambda: self._send(response))

    def fail(self, error: HeadraceError) -> None:
        """Answer with the error, by its class."""
        self.answer(Failed(type(error).__name__, str(error)))


class Waiters:
    """Who waits for which application to be deployed, and to be gone."""

    def __init__(self) -> None:
        self._deploys: dict[str, list[Waiter]] = {}
        self._first: dict[str, list[Waiter]] = {}
        self._ends: dict[str, list[Waiter]] = {}
        self._deletes: dict[str, list[Waiter]] = {}
        self._gone: dict[str, Callable[[], None]] = {}
        self._untold: list[tuple[int | None, Waiter]] = []  # of what is gone, with the first snapshot without it

    def __len__(self) -> int:
        return len(self._untold) + sum(
            len(waiters)
            for waiters in (
                *self._deploys.values(),
                *self._first.values(),
                *self._ends.values(),
                *self._deletes.values(),
            )
        )

    def add_deploy(self, app: str, waiter: Waiter, *, to_the_end: bool = True) -> None:
        """The waiter wants to know how the deploy ends, or only when the revision has its first traffic."""
        (self._deploys if to_the_end else self._first).setdefault(app, []).append(waiter)

    def add_end(self, app: str, waiter: Waiter) -> None:
        """The waiter wants to know that the rollout has ended, however it does."""
        self._ends.setdefault(app, []).append(waiter)

    def end_rollout(self, app: str, answer: Answer) -> None:
        """Answer those who wait for the end of the rollout, however it is."""
        for waiter in self._ends.pop(app, ()):
            waiter.answer(answer)

    def reached(self, app: str, answer: Answer) -> None:
        """Answer those who wait for the first traffic."""
        for waiter in self._first.pop(app, ()):
            waiter.answer(answer)

    def end_all(self, app: str, answer: Answer) -> None:
        """Answer all who wait for a deploy or for the end of a rollout: neither will be."""
        self.end_deploy(app, answer)
        self.end_rollout(app, answer)

    def add_delete(self, app: str, waiter: Waiter) -> None:
        """The waiter wants to know when the application is gone."""
        self._deletes.setdefault(app, []).append(waiter)

    def when_gone(self, app: str, callback: Callable[[], None]) -> None:
        """Call this, in place of what was to be called before, once the application is gone."""
        self._gone[app] = callback

    def progress(self, app: str, line: str) -> None:
        """Tell those who wait for the deploy."""
        for waiter in (*self._deploys.get(app, ()), *self._first.get(app, ()), *self._ends.get(app, ())):
            waiter.progress(line)

    def end_deploy(self, app: str, answer: Answer) -> None:
        """Answer those who wait for the deploy."""
        for waiter in (*self._deploys.pop(app, ()), *self._first.pop(app, ())):
            waiter.answer(answer)

    def vanished(self, app: str) -> None:
        """The application is gone: who waits for that is answered once the routers know it."""
        self._untold += [(None, waiter) for waiter in self._deletes.pop(app, ())]
        callback = self._gone.pop(app, None)
        if callback is not None:
            callback()

    def published(self, version: int, routed: int) -> None:
        """What is gone is in no snapshot from `version` on, at the latest; no router goes by one before `routed`."""
        untold, self._untold = self._untold, []
        for known, waiter in untold:
            without = version if known is None else known
            if without <= routed:
                waiter.answer(Done())
            else:
                self._untold.append((without, waiter))
