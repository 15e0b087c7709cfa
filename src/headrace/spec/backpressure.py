"""What a caller is told that is refused because too many requests wait: the option `backpressure_config`.

In: a dict or a BackpressureConfig of the user's. Out: a BackpressureConfig that is valid, or an error that names the
field, the value, and what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint

STATUS_CODES = (503, 429)
LONGEST_RETRY_AFTER_S = 24 * 3600


class BackpressureConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a refusal is told: `status_code` is its HTTP status, `retry_after_s` the seconds that Retry-After names.

    `retry_after_s` None: 1. Over gRPC a refusal is RESOURCE_EXHAUSTED, whatever the code.
    Raises OptionError for a value that is not allowed, OptionTypeError for one of a wrong type.
    """

    status_code: int = 503
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        code, after = self.status_code, self.retry_after_s
        if isinstance(code, bool) or not isinstance(code, int):
            raise OptionTypeError(f"backpressure_config: status_code={code!r} must be 503 or 429")
        if code not in STATUS_CODES:
            raise OptionError(f"backpressure_config: status_code={code!r} must be 503 or 429")
        if after is None:
            return
        allowed = f"a number of seconds above 0 and at most {LONGEST_RETRY_AFTER_S}, or None"
        if isinstance(after, bool) or not isinstance(after, int | float):
            raise OptionTypeError(f"backpressure_config: retry_after_s={after!r} must be {allowed}")
        if not 0 < after <= LONGEST_RETRY_AFTER_S:  # comparisons alone: an integer may be too large for a float
            raise OptionError(f"backpressure_config: retry_after_s={after!r} must be {allowed}")


def backpressure_config(given: Any) -> BackpressureConfig:
    """The configuration that `given` is or names, the default for None. Raises OptionError, OptionTypeError."""
    if given is None:
        return BackpressureConfig()
    if isinstance(given, BackpressureConfig):
        return given
    if not isinstance(given, Mapping):
        raise OptionTypeError(
            f"backpressure_config={given!r} must be a dict such as {{'status_code': 429, 'retry_after_s': 2}}, or a "
            "BackpressureConfig"
        )
    known = BackpressureConfig.__struct_fields__
    for name in given:
        if name not in known:
            raise OptionTypeError(f"backpressure_config has no {name!r}: {hint(name, known)}")
    return BackpressureConfig(**given)
