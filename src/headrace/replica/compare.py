"""Compares two answers for a router that mirrors requests: here are the user's function, and what values are made of.

In: the two answers as they came, and how to compare them. Out: whether they differ, where, and texts that show them; or
the error that kept that from being said. It runs in a thread, as a request to a plain method does.
"""

from __future__ import annotations

import inspect
import json
import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.core.compare import LONGEST_TEXT, difference, shortened
from headrace.spec.application import Code
from headrace.spec.errors import HeadraceError, PayloadError
from headrace.wire import payload
from headrace.wire.code import load_code
from headrace.wire.compare import Compared, Pair, Side, decode_pair, encode, is_json

if TYPE_CHECKING:
    from headrace.replica.incoming import Incoming

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = LONGEST_TEXT
_repr.maxlist = _repr.maxtuple = _repr.maxdict = _repr.maxset = 20


class Comparer:
    """Compares for one replica. `compare` may be called in any thread."""

    def __init__(self) -> None:
        self._functions: dict[Code, Callable[..., Any]] = {}

    def compare(self, incoming: Incoming) -> bytes:
        """What a Compared is on the wire. Raises whatever the user's function, or reading the answers, raises."""
        return encode(self._compared(decode_pair(bytes(incoming.body))))

    def _compared(self, pair: Pair) -> Compared:
        primary, shadow = _value(pair.primary), _value(pair.shadow)
        comparison = pair.comparison
        if comparison.function is not None:
            reason = self._judged(comparison.function, primary, shadow)
        else:
            reason = difference(primary, shadow, comparison.rtol, comparison.atol) or ""
        return Compared(shortened(reason), _text(primary, pair.primary), _text(shadow, pair.shadow))

    def _judged(self, code: Code, primary: Any, shadow: Any) -> str:
        function = self._functions.get(code)
        if function is None:
            function = self._functions[code] = load_code(code)
        name = getattr(function, "__qualname__", repr(function))
        said = function(primary, shadow)
        if inspect.iscoroutine(said):
            said.close()
            raise HeadraceError(f"the comparison {name} is asynchronous: make it a plain `def`")
        if not isinstance(said, bool) and type(said).__name__ not in ("bool_", "bool"):  # numpy's, by either name
            raise HeadraceError(
                f"the comparison {name} returned {said!r:.100}: it must return True (the same) or False"
            )
        return "" if said else difference(primary, shadow) or f"{name} says so"


def _value(side: Side) -> Any:
    """An HTTP answer as JSON, text or bytes, as its content type says; the result of a call by a handle as itself."""
    if side.content_type is None:
        return payload.decode(side.body, [memoryview(buffer) for buffer in side.buffers])
    if is_json(side.content_type):
        try:
            return json.loads(side.body)
        except (ValueError, RecursionError) as error:
            raise PayloadError(f"an answer that says {side.content_type} cannot be read as that: {error}") from error
    if side.content_type.startswith("text/"):
        return side.body.decode(errors="replace")
    return side.body


def _text(value: Any, side: Side) -> str:
    if side.content_type is None:
        return shortened(_repr.repr(value))
    return shortened(side.body[: 4 * LONGEST_TEXT].decode(errors="replace"))
