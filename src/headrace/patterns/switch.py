"""A switch: the input says which of several members answers.

In: a call. Out: the answer of the one that was chosen; the others are not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace import serve
from headrace.patterns.member import Declared, Member, check_method, one
from headrace.patterns.pattern import Parse, Pattern, add_note, bind, is_function, value_of
from headrace.spec.errors import InputError, OptionError, OptionTypeError

if TYPE_CHECKING:
    from starlette.requests import Request


class Header(NamedTuple):
    """What `by_header` made: the name of a header."""

    name: str


def by_header(name: str) -> Header:
    """For `switch(choose=...)`: the value of this header of the HTTP request. Raises OptionError, OptionTypeError.

    A call by a handle has no headers, and so the switch's default answers it.
    """
    if not isinstance(name, str):
        raise OptionTypeError(f"by_header() takes the name of a header, such as 'x-animal', not {name!r}")
    if not name or not name.isascii() or not name.isprintable() or set(name) & set(' :"(),/;<=>?@[\\]{}'):
        raise OptionError(f"{name!r} is no name of a header: by_header() takes one such as 'x-animal'")
    return Header(name)


def by_model_id(*args: Any, **kwargs: Any) -> str | None:
    """For `switch(choose=...)`: the model id of the request, from a header of the client or an option of a handle."""
    return serve.get_multiplexed_model_id() or None


DEFAULT = "default"  # who answered, where no case did

Choose = str | Header | Callable[..., Any]


def switch(
    choose: Choose,
    cases: Mapping[Any, Any],
    default: Any = None,
    *,
    method: str | None = None,
    parse: Parse | None = None,
    details: bool = False,
    options: Mapping[str, Any] | None = None,
) -> serve.Application:
    """`choose` gives the key of the case that answers: a function of the call's arguments, or a key of the input, or
    `by_header(...)`, or `by_model_id`.

    `default` answers where no case has the key; without it such a call ends with InputError, over HTTP with status 400.
    The rest is as of `ensemble`. Raises OptionError, OptionTypeError, GraphError.
    """
    if not isinstance(choose, str | Header) and not is_function(choose):
        raise OptionTypeError(
            f"choose={choose!r} of switch() must be a function of the input, a key of it, by_header(...) or by_model_id"
        )
    if not isinstance(cases, Mapping):
        raise OptionTypeError(f"cases={cases!r} of switch() must be a dict of bound deployments by key")
    if not cases:
        raise OptionError("switch() has no cases: give it bound deployments, such as {'cats': Cats.bind()}")
    check_method("switch", method)
    return bind(
        Switch,
        options,
        choose=choose,
        cases={key: one(f"the case {key!r} of switch()", value, method) for key, value in cases.items()},
        default=None if default is None else one("default of switch()", default, method),
        parse=parse,
        details=details,
    )


class Switch(Pattern):
    """The deployment of a switch."""

    def __init__(
        self,
        choose: Choose,
        cases: Mapping[Any, Declared],
        default: Declared | None,
        *,
        parse: Parse | None,
        details: bool,
    ) -> None:
        super().__init__(parse=parse, details=details)
        self._choose = choose
        self._cases = {key: Member(case) for key, case in cases.items()}
        self._default = None if default is None else Member(default)

    async def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request | None) -> Any:
        """The answer of the member that was chosen. Raises its error with a note that names it, or InputError."""
        key = await self._key(args, kwargs, request)
        try:
            member = self._cases.get(key, self._default)
        except TypeError:  # no key of a dict, such as a list
            member = self._default
        if member is None:
            raise InputError(self._why_no_case(key))
        try:
            answer = await member.remote(args, kwargs)
        except Exception as error:  # of the user's member; it goes on
            add_note(error, f"It is the error of {member.name}, which {self._name} chose by {key!r:.100}")
            raise
        return self._with_details(answer, DEFAULT if member is self._default else key, {})

    def _why_no_case(self, key: Any) -> str:
        choose, cases = self._choose, ", ".join(map(repr, self._cases))
        if key is None and isinstance(choose, Header):
            return f"{self._name} goes by the header {choose.name!r}, which the request has not; the cases are {cases}"
        if key is None and isinstance(choose, str):
            return f"{self._name} goes by {choose!r}, which the input has not; the cases are {cases}"
        if key is None and choose is by_model_id:
            return f"{self._name} goes by the model id, and the request names none; the cases are {cases}"
        return f"{self._name} has no case {key!r:.100}: it has {cases}"

    async def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request | None) -> Any:
        choose = self._choose
        if isinstance(choose, Header):
            return None if request is None else request.headers.get(choose.name)
        if not isinstance(choose, str):
            return await value_of(choose(*args, **kwargs))
        if choose in kwargs:
            return kwargs[choose]
        found = args[0] if args else None
        return found.get(choose) if isinstance(found, Mapping) else getattr(found, choose, None)
