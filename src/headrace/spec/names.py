"""What may be a name: of a deployment, an application, a route, an application in a module. Checked here once.

In: text of users. Out: the same, in its one form. Raises errors that name the text and what would be right.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from headrace.spec.errors import ImportPathError, OptionError, OptionTypeError

LONGEST_NAME = 100


def checked_name(name: object) -> str:
    """`name` when it can name a deployment or an application. Raises OptionTypeError, OptionError."""
    if not isinstance(name, str):
        raise OptionTypeError(f"name={name!r} must be a string, not {type(name).__name__}")
    if not name or len(name) > LONGEST_NAME or not all(c.isalnum() or c in "-_.:+" for c in name):
        raise OptionError(f"name={name!r} must be 1 to {LONGEST_NAME} letters, digits or any of - _ . : +")
    return name


def checked_route_prefix(prefix: object) -> str | None:
    """The prefix without a slash at its end, None as it is. Raises OptionTypeError, OptionError."""
    if prefix is None:
        return None
    if not isinstance(prefix, str):
        raise OptionTypeError(f"route_prefix={prefix!r} must be a string or None, not {type(prefix).__name__}")
    if not prefix.startswith("/"):
        raise OptionError(f"route_prefix={prefix!r} must start with '/'; did you mean {'/' + prefix!r}?")
    if any(c in prefix for c in "{}?#") or not prefix.isprintable() or " " in prefix:
        raise OptionError(f"route_prefix={prefix!r} must be a plain path, without patterns, '?', '#' or spaces")
    return prefix.rstrip("/") or "/"


def hint(name: object, known: Iterable[str]) -> str:
    """What `name`, which is none of the known ones, may have been meant to be: the end of an error's message."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there is {', '.join(names)}"


def split_import_path(path: str) -> tuple[str, str]:
    """(`module`, `attribute`) of `module:attribute`. Raises ImportPathError with what it should have been."""
    module, colon, attribute = path.partition(":")
    if "/" in module or module.endswith(".py"):
        directory, _, file = module.rpartition("/")
        where = f" --app-dir {directory}" if directory else ""
        raise ImportPathError(
            f"{path!r} names a file: give the module and the application in it, such as "
            f"{file.removesuffix('.py')}:{attribute or 'app'}{where}"
        )
    parts = (*module.split("."), *attribute.split("."))
    if not colon or not attribute or not all(part.isidentifier() for part in parts):
        raise ImportPathError(f"{path!r} is not MODULE:APP, such as {module or 'digits'}:{attribute or 'app'}")
    return module, attribute
