"""The members of a pattern: what a user may give as one, and how its pattern calls it.

In, where the application is declared: bound deployments. Out: `Declared` members with names, among the arguments of a
pattern's deployment. There, in its replicas: a `Member` of each, with a handle in the place of what was bound.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace import serve
from headrace.patterns.pattern import Pattern, is_handle
from headrace.spec.errors import GraphError, OptionError, OptionTypeError

if TYPE_CHECKING:
    from headrace.serve.handle import DeploymentHandle, DeploymentResponse

CALL = "__call__"


class Declared(NamedTuple):
    """A member as it was declared. `target`: what was bound, and in a replica the handle to it."""

    name: str
    target: Any
    method: str
    timeout_s: float | None


def member(
    app: serve.Application | DeploymentHandle, *, method: str | None = None, timeout_s: float | None = None
) -> Declared:
    """A member of a pattern that is called by `method`, or for which there are `timeout_s` seconds to answer.

    `app` is a bound deployment, or a handle to one that runs already. Raises OptionError, OptionTypeError, GraphError.
    """
    return _declared("app of member()", app, method, timeout_s)


def declared(pattern: str, given: object, method: str | None) -> list[Declared]:
    """The members of a pattern, given one by one or by name; `method` is of those that do not say another.

    Each has a name of its own: that by which it was given, else its deployment's. Raises OptionError, OptionTypeError,
    GraphError.
    """
    check_method(pattern, method)
    if isinstance(given, Mapping):
        pairs = [(_checked_name(pattern, name), value) for name, value in given.items()]
    elif isinstance(given, Sequence) and not isinstance(given, str | bytes | Declared):
        pairs = [("", value) for value in given]
    else:
        raise OptionTypeError(
            f"members={given!r} of {pattern}() must be a list of bound deployments, or a dict of them by name"
        )
    if not pairs:
        raise OptionError(f"{pattern}() has no members: give it bound deployments, such as [Model.bind()]")
    members = [one(f"member {name or place!r} of {pattern}()", v, method) for place, (name, v) in enumerate(pairs, 1)]
    return _named([made._replace(name=name or made.name) for made, (name, _) in zip(members, pairs, strict=True)])


def one(what: str, value: object, method: str | None) -> Declared:
    """The member that `value` is. `what` names it in errors: OptionTypeError, GraphError."""
    if isinstance(value, Declared):
        plain = not value.method and not _is_pattern(value.target)
        return value._replace(method=method) if method and plain else value
    return _declared(what, value, method if method and not _is_pattern(value) else None, None)


def _named(members: Sequence[Declared]) -> list[Declared]:
    """The members, of which the later ones of a name get a number, as the deployments of an application do."""
    taken: set[str] = set()
    made = []
    for each in members:
        name, number = each.name, 0
        while name in taken:
            number += 1
            name = f"{each.name}_{number}"
        taken.add(name)
        made.append(each._replace(name=name))
    return made


def within(member: Declared, limit_s: float | None) -> Declared:
    """The member, which has `limit_s` seconds to answer if it has not less anyway."""
    if limit_s is None or (member.timeout_s is not None and member.timeout_s <= limit_s):
        return member
    return member._replace(timeout_s=limit_s)


def check_seconds(function: str, name: str, value: object) -> None:
    """Raise OptionTypeError or OptionError unless `value` is a number of seconds above 0, or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"{name}={value!r} of {function}() must be a number of seconds, or None for no limit")
    if not 0 < value < math.inf:
        raise OptionError(f"{name}={value!r} of {function}() must be above 0, or None for no limit")


def _declared(what: str, value: object, method: str | None, timeout_s: float | None) -> Declared:
    check_method("member", method)
    check_seconds("member", "timeout_s", timeout_s)
    if isinstance(value, serve.Application):
        name = value.deployment.name
    elif isinstance(value, serve.Deployment):
        raise GraphError(f"{what} is the unbound deployment {value.name!r}: pass {value.name}.bind(...) instead")
    elif inspect.isclass(value):
        raise OptionTypeError(
            f"{what} is the plain class {value.__name__}: decorate it with @serve.deployment and pass "
            f"{value.__name__}.bind(...)"
        )
    elif is_handle(value):
        name = value.deployment_name  # type: ignore[attr-defined]
    else:
        raise OptionTypeError(f"{what} must be a deployment that was bound, as Model.bind() makes it, not {value!r}")
    return Declared(name, value, method or "", timeout_s)


def _is_pattern(value: object) -> bool:
    """Whether it is what a function of this package returned, which is called as it is, by no method's name."""
    target = value.deployment.func_or_class if isinstance(value, serve.Application) else None
    return inspect.isclass(target) and issubclass(target, Pattern)


def _checked_name(pattern: str, name: object) -> str:
    if not isinstance(name, str) or not name:
        raise OptionTypeError(f"{name!r} cannot name a member of {pattern}(): names are strings, such as 'cheap'")
    return name


def check_method(function: str, method: object) -> None:
    """Raise OptionTypeError or OptionError unless `method` can name a method, or is None."""
    if method is None:
        return
    what = f"method of {function}()"
    if not isinstance(method, str):
        raise OptionTypeError(f"{what} must be the name of a method, such as 'predict', not {method!r}")
    if not method.isidentifier() or (method.startswith("_") and method != CALL):
        raise OptionError(f"{what} must be the name of a public method, such as 'predict', not {method!r}")


class Member:
    """A member as the replicas of its pattern call it."""

    def __init__(self, declared: Declared) -> None:
        self.name = declared.name
        handle: DeploymentHandle = declared.target
        if declared.method not in ("", CALL):
            handle = handle.options(method_name=declared.method)
        self._timeout_s = declared.timeout_s
        self._untimed = handle
        self._handle = handle if declared.timeout_s is None else handle.options(timeout_s=declared.timeout_s)

    @property
    def timed(self) -> bool:
        """Whether it has a time of its own to answer in, which begins with the call."""
        return self._timeout_s is not None

    def remote(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], within_s: float | None = None
    ) -> DeploymentResponse:
        """Call it, with `within_s` seconds to answer if it has not less anyway, for the request's model."""
        handle = self._handle
        if within_s is not None and (self._timeout_s is None or within_s < self._timeout_s):
            handle = self._untimed.options(timeout_s=within_s)
        model = serve.get_multiplexed_model_id()
        if model:
            handle = handle.options(multiplexed_model_id=model)
        response: DeploymentResponse = handle.remote(*args, **kwargs)
        return response
