"""A fallback: another answer where a model fails or is late.

In: a call. Out: the member's answer, or the default one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headrace import serve
from headrace.patterns.deadline import MARGIN_S, check_margin, time_for_members
from headrace.patterns.member import Declared, Member, check_method, check_seconds, one, within
from headrace.patterns.pattern import Parse, Pattern, bind, is_function, is_handle, said, value_of
from headrace.spec.errors import OptionError, OptionTypeError

if TYPE_CHECKING:
    from starlette.requests import Request

DEFAULT = "default"  # who answered, where it was no deployment

_DEPLOYED = (serve.Application, serve.Deployment, Declared)
Errors = type[Exception] | tuple[type[Exception], ...]


def fallback(
    member: Any,
    default: Any,
    *,
    timeout_s: float | None = None,
    on: Errors = Exception,
    margin_s: float = MARGIN_S,
    method: str | None = None,
    parse: Parse | None = None,
    details: bool = False,
    options: Mapping[str, Any] | None = None,
) -> serve.Application:
    """The member's answer; where it fails, is overloaded, or has not answered within `timeout_s` seconds or `margin_s`
    before the request's deadline, the default one.

    `default` is the answer itself, or a bound deployment that is called as the member was, or a function of the call's
    arguments and the error. `on` are the types of errors that it stands in for. It never does for those of the
    caller's own making (CallerError, an HTTPException of status 400 to 499). The rest is as of `ensemble`. Raises
    OptionError, OptionTypeError, GraphError.
    """
    check_method("fallback", method)
    check_seconds("fallback", "timeout_s", timeout_s)
    check_margin("fallback", margin_s)
    kinds = on if isinstance(on, tuple) else (on,)
    if not kinds or not all(inspect.isclass(kind) and issubclass(kind, Exception) for kind in kinds):
        raise OptionTypeError(
            f"on={on!r} of fallback() must be a type of errors, such as TimeoutError, or a tuple of them"
        )
    asked = one("member of fallback()", member, method)
    if timeout_s is not None and asked.timeout_s is not None:
        raise OptionError("fallback() has a timeout_s, and its member() too: give one")
    if isinstance(default, _DEPLOYED) or inspect.isclass(default) or is_handle(default):
        default = one("default of fallback()", default, method)
    return bind(
        Fallback,
        options,
        member=within(asked, timeout_s),
        default=default,
        on=kinds,
        margin_s=margin_s,
        parse=parse,
        details=details,
    )


class Fallback(Pattern):
    """The deployment of a fallback."""

    def __init__(
        self,
        member: Declared,
        default: Any,
        *,
        on: tuple[type[Exception], ...],
        margin_s: float,
        parse: Parse | None,
        details: bool,
    ) -> None:
        super().__init__(parse=parse, details=details)
        self._member = Member(member)
        self._default = Member(default) if isinstance(default, Declared) else default
        self._is_function = is_function(default)
        self._on = on
        self._margin_s = margin_s

    async def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request | None) -> Any:
        """The member's answer, or the default one. Raises errors of the member that none stands in for."""
        name = self._member.name
        try:
            answer = await self._member.remote(args, kwargs, time_for_members(self._margin_s))
            return self._with_details(answer, name, {})
        except Exception as error:  # whatever a member raises
            if not isinstance(error, self._on) or self._is_final(error):
                raise
            self._warn("%s failed, and the default is answered (%s)", name, said(error))
            failed = error
        default = self._default
        if isinstance(default, Member):
            return self._with_details(await default.remote(args, kwargs), default.name, {name: failed})
        if self._is_function:
            default = await value_of(default(*args, failed, **kwargs))
        return self._with_details(default, DEFAULT, {name: failed})
