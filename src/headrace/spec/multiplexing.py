"""Options of a function that loads models by their id: `@serve.multiplexed(...)`.

In: what users write, and the class or function that they deploy. Out: the options on the function, valid, or an error
that names the option, the value, and what would be right; which functions of a deployment load models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint

MARK = "__headrace_multiplexed__"  # the attribute of a function that loads models; it holds its MultiplexOptions
ANY_NUMBER = -1


class MultiplexOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How many models one function keeps in a replica: at most `max_num_models_per_replica` (-1: any number), and such
    that they take at most `max_memory_bytes` together (None: any).

    Raises OptionError for a value that is not allowed, OptionTypeError for one of a wrong type.
    """

    max_num_models_per_replica: int = 3
    max_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        allowed = "a whole number from 1 on, or -1 for any number"
        _check_whole("max_num_models_per_replica", self.max_num_models_per_replica, allowed, ANY_NUMBER)
        if self.max_memory_bytes is not None:
            allowed = "a whole number of bytes from 1 on, or None for any"
            _check_whole("max_memory_bytes", self.max_memory_bytes, allowed)


def multiplex_options(given: Mapping[str, Any]) -> MultiplexOptions:
    """The options of these names and values. Raises OptionError, OptionTypeError."""
    known = (*MultiplexOptions.__struct_fields__, "memory_fn")
    for name in given:
        if name not in known:
            raise OptionTypeError(f"multiplexed has no {name!r}: {hint(name, known)}")
    return MultiplexOptions(**given)


def is_multiplexed(target: Callable[..., Any]) -> bool:
    """Whether requests that name a model go where that model is loaded: it loads models, or an object of a class does
    to which its code refers by name.
    """
    if next(loaders_of(target), None) is not None:
        return True
    for member in _members(target):
        for found in _referred_to(member):
            if inspect.isclass(found) and any(map(_is_loader, _members(found))):
                return True
    return False


def loaders_of(target: Callable[..., Any]) -> Iterator[Any]:
    """The functions of a deployment that load models: of a class its own and inherited ones, as they stand in it; and
    those of modules and enclosing functions to which its code refers by their names.
    """
    seen = set()
    for member in _members(target):
        for found in (member, *_referred_to(member)):
            if id(_plain(found)) not in seen and _is_loader(found):
                seen.add(id(_plain(found)))
                yield found


def _members(target: Any) -> list[Any]:
    if not inspect.isclass(target):
        return [target]
    return [member for name, member in inspect.getmembers_static(target) if name != "__class__"]


def _plain(member: Any) -> Any:
    return member.__func__ if isinstance(member, staticmethod | classmethod) else member


def _is_loader(found: object) -> bool:
    return isinstance(inspect.getattr_static(_plain(found), MARK, None), MultiplexOptions)


def _referred_to(member: object) -> Iterator[Any]:
    """What the code of a function refers to: globals and captured values."""
    function = _plain(member)
    if not inspect.isfunction(function):
        return
    function = inspect.unwrap(function)
    if not inspect.isfunction(function):
        return
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield function.__globals__[name]
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue  # it is filled later


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            names |= _names(constant)
    return names


def _check_whole(name: str, value: object, allowed: str, besides: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"multiplexed: {name}={value!r} must be {allowed}, not {type(value).__name__}")
    if value < 1 and value != besides:
        raise OptionError(f"multiplexed: {name}={value!r} must be {allowed}")
