"""Names of Ray Serve's that do not work here yet: they can be imported, and say so when they are used.

A name that is missing would break the import of a whole file, also where only a part of the file needs it. In: the
name, and what to do instead. Out: a class or a function that raises OptionError with both.
"""

from __future__ import annotations

from typing import Any, NoReturn

from headrace.spec.errors import OptionError


class Unsupported(type):
    """The type of classes that cannot be used yet: to make an instance, a subclass, or to read a member is an error."""

    _told = "this is not supported yet"

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Unsupported:
        for base in bases:
            if isinstance(base, Unsupported):
                raise OptionError(base._told)
        return super().__new__(cls, name, bases, namespace)

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise OptionError(cls._told)

    def __getattr__(cls, name: str) -> NoReturn:
        # Names with underscores are Python and its libraries looking for a protocol, not somebody who uses a member.
        raise AttributeError(name) if name.startswith("_") else OptionError(cls._told)

    def __repr__(cls) -> str:
        return f"<{cls.__name__}, not supported yet>"


def unsupported_class(module: str, name: str, instead: str = "") -> Any:
    """A class of this name in `headrace.serve.<module>`, whose every use raises OptionError."""
    told = _told(f"{module}.{name}", instead)
    return Unsupported(name, (), {"__module__": f"headrace.serve.{module}", "__doc__": told, "_told": told})


def unsupported_function(module: str, name: str, instead: str = "") -> Any:
    """A function of this name in `headrace.serve.<module>`, whose every call raises OptionError."""
    told = _told(f"{module}.{name}" if module else name, instead)

    def function(*args: Any, **kwargs: Any) -> NoReturn:
        raise OptionError(told)

    function.__name__ = function.__qualname__ = name
    function.__module__ = f"headrace.serve.{module}" if module else "headrace.serve"
    function.__doc__ = told
    return function


def _told(what: str, instead: str) -> str:
    return f"serve.{what} is not supported yet" + (f": {instead}" if instead else "")
