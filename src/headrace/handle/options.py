"""What `.options()` of a handle takes, checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.hedging import HedgingConfig, hedging
from headrace.spec.priority import checked_priority

LONGEST_TEXT_BYTES = 4096


class HandleOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `.options()` of a handle changes. `special`: any of those is set that apply to each call.

    Raises OptionError where two contradict.
    """

    method_name: str = "__call__"
    timeout_s: float | None = None
    session_id: str | None = None
    multiplexed_model_id: str | None = None
    priority: int | None = None
    hedge: HedgingConfig | bool | None = None
    stream: bool = False
    special: bool = False

    def __post_init__(self) -> None:
        if self.hedge and self.stream:
            raise OptionError(
                f"hedge={self.hedge!r} and stream=True of a handle contradict: only a call with one result can have a "
                "copy. Leave one out, or give hedge=None"
            )


# Options of Ray Serve's handles that choose how arguments travel: here there is one way, and it keeps every type.
_IGNORED = {"request_serialization", "response_serialization", "use_new_handle_api"}
_TEXTS = ("method_name", "session_id", "multiplexed_model_id")


def check_sendable(name: str, value: str) -> None:
    """Each call carries it in its head, so it must be short, and text that can be encoded. Raises OptionError."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise OptionError(f"{name}={value[:80]!r} of a handle cannot be sent: {error}") from None
    if size > LONGEST_TEXT_BYTES:
        raise OptionError(
            f"{name}={value[:80]!r}... of a handle takes {size} bytes, and {LONGEST_TEXT_BYTES} at most can be sent: "
            "give it a shorter name"
        )


def checked_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes that a handle's `.options()` was given, as fields of HandleOptions.

    Raises OptionTypeError for an unknown option (with the nearest) and a value of a wrong type, OptionError for one
    that is not allowed.
    """
    fields: dict[str, Any] = {}
    for name, value in changes.items():
        if name == "stream":
            if not isinstance(value, bool):
                raise OptionTypeError(f"stream={value!r} of a handle must be True or False")
            fields[name] = value
        elif name in _IGNORED:
            continue
        elif name in _TEXTS:
            if not isinstance(value, str):
                raise OptionTypeError(f"{name}={value!r} of a handle must be a string, not {type(value).__name__}")
            check_sendable(name, value)
            fields[name] = value or None
            if name == "method_name" and not value:
                raise OptionError("method_name='' of a handle must name a method of the deployment")
        elif name == "timeout_s":
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise OptionTypeError(f"timeout_s={value!r} of a handle must be a number of seconds, or None")
            if value is not None and not value > 0:
                raise OptionError(f"timeout_s={value!r} of a handle must be greater than 0, or None for no limit")
            fields[name] = value
        elif name == "priority":
            fields[name] = None if value is None else checked_priority(value)
        elif name == "hedge":
            fields[name] = value if value is None or isinstance(value, bool) else hedging(value)
        else:
            known = [*_TEXTS, "timeout_s", "stream", "priority", "hedge"]
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise OptionTypeError(f"a handle has no option {name!r}: {hint}")
    if fields.keys() - {"method_name", "stream"}:
        fields["special"] = True
    return fields
