"""A cascade: the cheap model first, and the next only when it is not sure.

In: a call. Out: the first answer that is sure enough, or that of the last member.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from headrace import serve
from headrace.patterns.deadline import MARGIN_S, check_margin, time_for_members
from headrace.patterns.member import Declared, Member, declared
from headrace.patterns.pattern import Parse, Pattern, add_note, bind, check_function, is_function, said, value_of
from headrace.spec.errors import OptionError, OptionTypeError

if TYPE_CHECKING:
    from starlette.requests import Request

Confident = float | Callable[[Any], Any]
Confidence = str | Callable[[Any], Any]


def cascade(
    members: Sequence[Any] | Mapping[str, Any],
    confident: Confident | Sequence[Confident],
    *,
    confidence: Confidence | None = None,
    pass_over_failed: bool = True,
    allow_unsure: bool = False,
    margin_s: float = MARGIN_S,
    method: str | None = None,
    parse: Parse | None = None,
    details: bool = False,
    options: Mapping[str, Any] | None = None,
) -> serve.Application:
    """The members are asked one after the other, until an answer is `confident`; that of the last counts anyway.

    `confident` is the least confidence, or a function of the answer that says whether it will do; or a list of these,
    one for each member but the last. `confidence` says how sure an answer is: a function of it (`max`, for a list of
    probabilities), or the key or attribute of it, "confidence" if not said. The next member is asked too when one
    fails (`pass_over_failed`). `allow_unsure`: when the dearer ones fail, or are not there `margin_s` before the
    request's deadline, the unsure answer is given. The rest is as of `ensemble`. Raises OptionError, OptionTypeError,
    GraphError.
    """
    found = declared("cascade", members, method)
    if len(found) < 2:
        raise OptionError("cascade() needs two members at least: a cheap one, and one for what that is not sure of")
    tests = list(confident) if isinstance(confident, list | tuple) else [confident] * (len(found) - 1)
    if len(tests) != len(found) - 1:
        raise OptionError(
            f"confident={confident!r} of cascade() must be one for each member but the last: {len(found) - 1}"
        )
    for test in tests:
        _check_confident(test)
    if confidence is not None:
        if all(map(is_function, tests)):
            raise OptionError(
                "cascade() takes confidence=, or functions as confident=, which look at the answer itself"
            )
        if not isinstance(confidence, str):
            check_function(f"confidence={confidence!r} of cascade()", confidence, "of the answer, or a key of it")
    check_margin("cascade", margin_s)
    for name, value in (("pass_over_failed", pass_over_failed), ("allow_unsure", allow_unsure)):
        if not isinstance(value, bool):
            raise OptionTypeError(f"{name}={value!r} of cascade() must be True or False")
    return bind(
        Cascade,
        options,
        members=found,
        confident=tests,
        confidence="confidence" if confidence is None else confidence,
        pass_over_failed=pass_over_failed,
        allow_unsure=allow_unsure,
        margin_s=margin_s,
        parse=parse,
        details=details,
    )


def _check_confident(value: object) -> None:
    if isinstance(value, bool) or not (isinstance(value, Real) or is_function(value)):
        raise OptionTypeError(
            f"confident={value!r} of cascade() must be the least confidence that will do, or a function of the answer"
        )
    if value != value:
        raise OptionError("confident=nan of cascade() must be a number")


class Cascade(Pattern):
    """The deployment of a cascade."""

    def __init__(
        self,
        members: Sequence[Declared],
        confident: Sequence[Confident],
        *,
        confidence: Confidence,
        pass_over_failed: bool,
        allow_unsure: bool,
        margin_s: float,
        parse: Parse | None,
        details: bool,
    ) -> None:
        super().__init__(parse=parse, details=details)
        self._members = [Member(each) for each in members]
        self._confident = confident
        self._confidence = confidence
        self._pass_over_failed = pass_over_failed
        self._allow_unsure = allow_unsure
        self._margin_s = margin_s

    async def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request | None) -> Any:
        """The first answer that will do. Raises the error of a member, with a note that names it."""
        unsure: tuple[str, Any] | None = None
        failed: dict[str, Exception] = {}
        for place, member in enumerate(self._members):
            last = place == len(self._members) - 1
            within_s = time_for_members(self._margin_s) if self._allow_unsure and unsure is not None else None
            try:
                answer = await member.remote(args, kwargs, within_s)
            except Exception as error:  # whatever a member raises; what nobody may answer instead of goes on
                goes_on = self._pass_over_failed and not last
                instead = "the next is asked" if goes_on else "the unsure answer is given"
                if self._is_final(error) or not (goes_on or (self._allow_unsure and unsure is not None)):
                    add_note(error, f"It is the error of a member of {self._name}: {member.name}")
                    raise
                self._warn("%s failed, and %s (%s)", member.name, instead, said(error))
                failed[member.name] = error
                if goes_on:
                    continue
                break
            if last or await self._will_do(place, answer):
                return self._with_details(answer, member.name, failed)
            unsure = (member.name, answer)
        assert unsure is not None
        return self._with_details(unsure[1], unsure[0], failed)

    async def _will_do(self, place: int, answer: Any) -> bool:
        confident = self._confident[place]
        if callable(confident):
            return bool(await value_of(confident(answer)))
        name = self._members[place].name
        found = await self._confidence_of(name, answer)
        try:
            return float(found) >= confident
        except (TypeError, ValueError):
            raise TypeError(
                f"the confidence of the answer of {name} must be a number, not {found!r:.100}: give cascade() a "
                "confidence= that finds it"
            ) from None

    async def _confidence_of(self, name: str, answer: Any) -> Any:
        confidence = self._confidence
        if not isinstance(confidence, str):
            return await value_of(confidence(answer))
        found = answer.get(confidence) if isinstance(answer, Mapping) else getattr(answer, confidence, None)
        if found is None:
            raise TypeError(
                f"an answer of {name} ({type(answer).__name__}) has no {confidence!r}: give cascade() a confidence= "
                "that finds it, such as max for a list of probabilities"
            )
        return found
