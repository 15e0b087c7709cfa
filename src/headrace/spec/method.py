"""Options of one method of a deployment, which stand on the method itself: `@serve.method(repeatable=False)`.

In: what users write, and the class or function that they deploy. Out: the marked method; from the whole, the names of
the methods whose calls must not run twice, and how those of others are hedged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.hedging import HedgingConfig, hedging
from headrace.spec.names import hint

MARK = "__headrace_method__"  # the attribute of a function that holds its MethodOptions


class MethodOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a method says of its calls; None: what the deployment says. Raises OptionTypeError for a wrong type.

    `repeatable` False: a call of it that a replica had started is not tried on another when the replica dies. `hedge`
    False: its slow calls get no copy; True: they get one as the deployment, or the default, says; it is also taken as
    what a user writes for a config of its own. Raises OptionError for a value that is not allowed, or where the two
    contradict.
    """

    repeatable: bool | None = None
    hedge: HedgingConfig | bool | None = None

    def __post_init__(self) -> None:
        if self.repeatable is not None and not isinstance(self.repeatable, bool):
            raise OptionTypeError(f"repeatable={self.repeatable!r} of a method must be True or False")
        if self.hedge is not None and not isinstance(self.hedge, bool):
            msgspec.structs.force_setattr(self, "hedge", hedging(self.hedge))
        if self.hedge and self.repeatable is False:
            raise OptionError(
                "hedge and repeatable=False of a method contradict: a call that is hedged may run twice. Leave one out"
            )


def method_options(given: Mapping[str, Any]) -> MethodOptions:
    """The options that `given` names. Raises OptionTypeError, for an unknown name with the nearest one."""
    known = MethodOptions.__struct_fields__
    for name in given:
        if name not in known:
            raise OptionTypeError(f"{name!r} is no option of a method: {hint(name, known)}")
    return MethodOptions(**given)


def options_of(target: Callable[..., Any]) -> dict[str, MethodOptions]:
    """Name -> options, of the methods of a class, inherited ones too, or of a function (`__call__`), that are marked.

    A method that overrides a marked one is as it says itself. Raises OptionError for a marked method that cannot be
    called.
    """
    if not inspect.isclass(target):
        mark = _mark_of(target)
        return {} if mark is None else {"__call__": mark}
    marked: dict[str, MethodOptions] = {}
    for name, member in inspect.getmembers_static(target):
        mark = _mark_of(member)
        if mark is None:
            continue
        if name.startswith("_") and name != "__call__":
            raise OptionError(
                f"{target.__name__}.{name} is marked with @serve.method, but is private: no call goes to it. Mark the "
                "method that is called"
            )
        marked[name] = mark
    return marked


def _mark_of(member: object) -> MethodOptions | None:
    plain = member.__func__ if isinstance(member, staticmethod | classmethod) else member
    mark = inspect.getattr_static(plain, MARK, None)
    return mark if isinstance(mark, MethodOptions) else None
