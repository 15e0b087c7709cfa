"""How much a request matters beside others: a whole number, higher first. Checked here once, whoever brings it.

In: what users write in a handle's options, an HTTP header or gRPC metadata. Out: the number, or an error that says what
it should have been.
"""

from __future__ import annotations

from headrace.spec.errors import OptionError, OptionTypeError

LOWEST_PRIORITY = -10
HIGHEST_PRIORITY = 10

_RANGE = f"a whole number from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}"


def checked_priority(value: object) -> int:
    """`value` when it is a priority. Raises OptionTypeError when it is no integer, OptionError when out of range."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"priority={value!r} must be {_RANGE}, not {type(value).__name__}")
    if not LOWEST_PRIORITY <= value <= HIGHEST_PRIORITY:
        raise OptionError(f"priority={value!r} must be {_RANGE}")
    return int(value)


def priority_of_text(text: str | bytes) -> int:
    """The priority that a header or metadata names, spaces around it allowed. Raises OptionError for what is none."""
    written = text.decode("latin-1") if isinstance(text, bytes) else text
    stripped = written.strip(" \t")
    digits = stripped[1:] if stripped[:1] in ("-", "+") else stripped
    # Not int() alone: it takes "1_0", digits of other scripts and blanks of any kind.
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 2):
        raise OptionError(f"priority {written[:40]!r} must be {_RANGE}")
    return checked_priority(int(stripped))
