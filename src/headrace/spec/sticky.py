"""What makes a request sticky: where the key is found by which it keeps to one revision.

In: what a user writes. Out: a Sticky that is valid, None for none, or an error that says what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError


class Sticky(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's key is taken from: the header, the cookie, or the parameter of the query of this name.

    The same key goes to the same revision while weights are the same, and from an older to a newer one as the newer
    one's weight grows. A request without it is drawn at random. `of`: "header", "cookie" or "query".
    """

    of: str
    name: str

    def __post_init__(self) -> None:
        if self.of not in ("header", "cookie", "query"):
            raise OptionError(f"sticky: {self.of!r} must be 'header', 'cookie' or 'query', as in 'header:x-user'")
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 100 or not self.name.isascii():
            raise OptionError(f"sticky: name={self.name!r} must be 1 to 100 ASCII characters")
        if not self.name.isprintable() or any(c in self.name for c in " \t=;,&"):
            raise OptionError(f"sticky: name={self.name!r} must have no space, '=', ';', ',' or '&'")
        if self.of == "header":
            msgspec.structs.force_setattr(self, "name", self.name.lower())


def sticky(given: Any) -> Sticky | None:
    """The key that `given` names: a Sticky, "header:x-user", "cookie:uid", "query:user", a dict, or None.

    Raises OptionError, OptionTypeError.
    """
    if given is None or isinstance(given, Sticky):
        return given
    if isinstance(given, str):
        of, colon, name = given.partition(":")
        if not colon:
            raise OptionError(f"sticky={given!r} must name where the key is, such as 'header:x-user' or 'cookie:uid'")
        return Sticky(of=of, name=name)
    if isinstance(given, Mapping) and set(given) == {"of", "name"}:
        return Sticky(of=given["of"], name=given["name"])
    raise OptionTypeError(f"sticky={given!r} must be 'header:NAME', 'cookie:NAME', 'query:NAME', or None")
