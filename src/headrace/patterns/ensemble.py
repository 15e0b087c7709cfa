"""An ensemble: all members are asked at once, and one answer is made of theirs.

In: a call. Out: the combined answer, of all members, or where that is allowed of those that answered in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headrace import serve
from headrace.patterns.combining import Stacking, Weights, check_combine, mean, vote, weights_of
from headrace.patterns.deadline import MARGIN_S, check_margin, time_for_members
from headrace.patterns.member import Declared, Member, check_seconds, declared, within
from headrace.patterns.pattern import Parse, Pattern, add_note, bind, said, value_of
from headrace.spec.errors import OptionError, OptionTypeError, RequestTimeoutError

if TYPE_CHECKING:
    from starlette.requests import Request

    from headrace.serve.handle import DeploymentResponse

Combine = str | Weights | Stacking | Callable[[dict[str, Any]], Any]


def ensemble(
    members: Sequence[Any] | Mapping[str, Any],
    combine: Combine = "mean",
    *,
    wait_s: float | None = None,
    least: int | None = None,
    margin_s: float = MARGIN_S,
    method: str | None = None,
    parse: Parse | None = None,
    details: bool = False,
    options: Mapping[str, Any] | None = None,
) -> serve.Application:
    """All members answer each call, and `combine` makes one answer of theirs: "mean", "vote", `weighted(...)`,
    `stacking(...)`, or a function of a dict of the answers by the names of the members.

    All must answer, unless `wait_s` or `least` are given: then those count that have answered within `wait_s` seconds
    and `margin_s` before the request's deadline, if they are `least` (1) or more. `details`: the answer is a dict of
    `answer`, `by` and `failed`. The rest is as of `pipeline`. Raises OptionError, OptionTypeError, GraphError.
    """
    found = declared("ensemble", members, method)
    check_combine(combine, [each.name for each in found])
    check_seconds("ensemble", "wait_s", wait_s)
    check_margin("ensemble", margin_s)
    if least is not None:
        if isinstance(least, bool) or not isinstance(least, int):
            raise OptionTypeError(f"least={least!r} of ensemble() must be a number of members")
        if not 1 <= least <= len(found):
            raise OptionError(f"least={least!r} of ensemble() must be 1 to {len(found)}, the number of its members")
    return bind(
        Ensemble,
        options,
        members=[within(each, wait_s) for each in found],
        combine=combine,
        least=1 if least is None and wait_s is not None else least,
        margin_s=margin_s,
        parse=parse,
        details=details,
    )


class Ensemble(Pattern):
    """The deployment of an ensemble. `least` None: all members must answer, and the first error is the request's."""

    def __init__(
        self,
        members: Sequence[Declared],
        combine: Combine,
        *,
        least: int | None,
        margin_s: float,
        parse: Parse | None,
        details: bool,
    ) -> None:
        super().__init__(parse=parse, details=details)
        self._members = [Member(each) for each in members]
        self._least = least
        self._margin_s = margin_s
        self._combine = _Combination(combine, [member.name for member in self._members])

    async def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request | None) -> Any:
        """The combined answer. Raises the error of a member with a note that names it, or RequestTimeoutError."""
        within_s = None if self._least is None else time_for_members(self._margin_s)
        calls: list[DeploymentResponse] = []
        try:
            for member in self._members:
                calls.append(member.remote(args, kwargs, within_s))
            answers, failed = await self._gather(calls)
        finally:
            for call in calls:  # those that nobody waits for any more; the others have ended
                call.cancel()
        if failed:
            who = "; ".join(f"{name} ({said(error)})" for name, error in failed.items())
            self._warn("answers without %s", who)
        return self._with_details(await self._combine.of(answers), list(answers), failed)

    async def _gather(self, calls: Sequence[DeploymentResponse]) -> tuple[dict[str, Any], dict[str, Exception]]:
        """The answers and the errors by the names of the members, as soon as they are enough or cannot be any more."""
        ends = _Ends(0 if self._least is None else len(calls) - self._least, self._is_final)
        ends.watch(calls)
        await ends.over
        names = [member.name for member in self._members]
        failed = {names[place]: error for place, error in sorted(ends.failed.items())}
        if ends.final is not None or len(failed) > ends.tolerated:
            raise self._error(ends, failed)
        return {name: ends.answers[place] for place, name in enumerate(names) if place in ends.answers}, failed

    def _error(self, ends: _Ends, failed: Mapping[str, Exception]) -> Exception:
        """What the request ends with: the first error, of those that are more than lateness where that is allowed."""
        errors = list(ends.failed.values())
        if self._least is not None:
            errors = [error for error in errors if not isinstance(error, RequestTimeoutError)]
        if ends.final is not None:
            errors = [ends.final]
        if not errors:
            return RequestTimeoutError(
                f"{len(ends.answers)} of {len(self._members)} members of {self._name} answered in time, and "
                f"{self._least} must: {', '.join(failed)} did not"
            )
        name = next(name for name, error in failed.items() if error is errors[0])
        add_note(errors[0], f"It is the error of a member of {self._name}: {name}")
        return errors[0]


class _Ends:
    """How the calls of one request end. `over` is done when all have, or when it is sure that the request fails."""

    def __init__(self, tolerated: int, is_final: Callable[[Exception], bool]) -> None:
        self.answers: dict[int, Any] = {}
        self.failed: dict[int, Exception] = {}  # in the order in which they did
        self.final: Exception | None = None  # one that no answer of others may take the place of
        self.tolerated = tolerated
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_final = is_final
        self._watching: list[asyncio.Task[None]] = []
        self._left = 0

    def watch(self, calls: Sequence[DeploymentResponse]) -> None:
        """Note how these end. Each by a task, as a response tells nobody else of its end."""
        self._left = len(calls)
        self._watching = [asyncio.create_task(self._watch(place, call)) for place, call in enumerate(calls)]

    async def _watch(self, place: int, call: DeploymentResponse) -> None:
        try:
            self.answers[place] = await call
        except Exception as error:  # the top of a task: whatever a member raises is for who waits until it is over
            self._fail(place, error)
        self._left -= 1
        if not self._left:
            self._end()

    def _fail(self, place: int, error: Exception) -> None:
        if self.over.done():
            return  # it was cancelled, since nobody waits for it any more
        self.failed[place] = error
        if self._is_final(error):
            self.final = error
        if self.final is not None or len(self.failed) > self.tolerated:
            self._end()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


class _Combination:
    """How one answer is made of many."""

    def __init__(self, combine: Combine, names: Sequence[str]) -> None:
        self._names = names
        self._weights = weights_of(combine, names)
        self._model = Member(combine.model) if isinstance(combine, Stacking) else None
        self._function = None if isinstance(combine, str | Weights | Stacking) else combine
        self._way = vote if (combine.way if isinstance(combine, Weights) else combine) == "vote" else mean

    async def of(self, answers: dict[str, Any]) -> Any:
        if self._model is not None:
            return await self._model.remote(([answers.get(name) for name in self._names],), {})
        if self._function is not None:
            return await value_of(self._function(answers))
        return self._way(answers, self._weights)
