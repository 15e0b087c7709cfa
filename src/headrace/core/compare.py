"""Whether two answers say the same, and where they first differ: values of JSON, and what Python code returns.

In: the answer of the primary and that of its shadow, decoded; tolerances for numbers. Out: None, or a text that names
the place of the first difference and both sides of it (`$.scores[3]: 0.91 against 0.87`, the primary's first).
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

LONGEST_TEXT = 300  # characters of what an example shows of an answer, or of a reason

_ABSENT = object()
_Place = tuple[Any, str] | None  # the place that this one is in, and how it is reached from there
_Pair = tuple[_Place, Any, Any]

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80
_repr.maxlevel = 2


def difference(primary: Any, shadow: Any, rtol: float = 0.0, atol: float = 0.0) -> str | None:
    """Where and how the two differ; None: they are equal, numbers to within `atol + rtol × |primary's|`.

    NaN equals NaN, a list a tuple of the same values, an array (whatever has `dtype` and `tolist`) a list. Texts,
    booleans and all else are equal or not. Raises what the `==` of a user's class raises.
    """
    seen: dict[tuple[int, int], tuple[Any, Any]] = {}  # containers compared so far: they may contain each other
    stack: list[Iterator[_Pair]] = [iter([(None, primary, shadow)])]
    while stack:
        for place, one, other in stack[-1]:
            one, other = _plain(one), _plain(other)
            inner = _inner(place, one, other)
            if inner is None:
                if not _equal(one, other, rtol, atol):
                    return f"{_path(place)}: {_said(one, other)}"
                continue
            key = (id(one), id(other))
            if key in seen:
                continue
            seen[key] = (one, other)  # alive, so that the ids stay theirs
            stack.append(inner)
            break
        else:
            stack.pop()
    return None


def shortened(text: str, limit: int = LONGEST_TEXT) -> str:
    """At most `limit` characters of the text, saying where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def first_difference(one: bytes, other: bytes) -> int:
    """The index of the first byte in which the two differ; the length of the shorter where it begins the other."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # the first `low` bytes are equal, and of the first `high + 1` not all
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _plain(value: Any) -> Any:
    """Arrays and their numbers as lists and plain numbers."""
    if hasattr(value, "dtype") and callable(getattr(value, "tolist", None)):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value


def _inner(place: _Place, one: Any, other: Any) -> Iterator[_Pair] | None:
    """What is to be compared inside of the two; None: they are to be compared as they are."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return _items(place, one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return _elements(place, one, other)
    return None


def _items(place: _Place, one: Mapping[Any, Any], other: Mapping[Any, Any]) -> Iterator[_Pair]:
    for key, value in one.items():
        yield (place, _step(key)), value, other.get(key, _ABSENT)
    for key, value in other.items():
        if key not in one:
            yield (place, _step(key)), _ABSENT, value


def _elements(place: _Place, one: list[Any] | tuple[Any, ...], other: list[Any] | tuple[Any, ...]) -> Iterator[_Pair]:
    for i in range(max(len(one), len(other))):
        yield (
            (place, f"[{i}]"),
            one[i] if i < len(one) else _ABSENT,
            other[i] if i < len(other) else _ABSENT,
        )


def _step(key: Any) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{_text(key)}]"


def _path(place: _Place) -> str:
    steps: list[str] = []
    while place is not None:
        place, step = place
        steps.append(step)
    path = "".join(reversed(steps))
    return "$" + (path if len(path) <= 150 else f"…{path[-149:]}")


def _equal(one: Any, other: Any, rtol: float, atol: float) -> bool:
    if one is _ABSENT or other is _ABSENT:
        return False
    if _is_number(one) and _is_number(other):
        return _near(one, other, rtol, atol)
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    return bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def _near(one: Any, other: Any, rtol: float, atol: float) -> bool:
    if one == other:
        return True
    if one != one or other != other:
        return bool(one != one and other != other)
    try:
        apart = abs(one - other)
        return bool(math.isfinite(apart) and apart <= atol + rtol * abs(one))
    except OverflowError:  # an integer beyond all floats
        return False


def _said(one: Any, other: Any) -> str:
    if other is _ABSENT:
        return f"{_text(one)} is missing in the shadow's answer"
    if one is _ABSENT:
        return f"{_text(other)} is in the shadow's answer alone"
    return f"{_text(one)} against {_text(other)}"


def _text(value: Any) -> str:
    try:
        return _repr.repr(value)
    except ValueError:  # an integer of too many digits to be written
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else f"<{type(value).__name__}>"
