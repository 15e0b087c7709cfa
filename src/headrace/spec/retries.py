"""How many calls may be repeated when replicas die: the option `retry_budget`.

In: a number, a dict or a RetryBudgetConfig of the user's. Out: a RetryBudgetConfig that is valid, or an error that
names the field, the value, and what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint

MOST_PER_SECOND = 1_000_000


class RetryBudgetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Repeats are bounded to the share `ratio` of the calls, and `per_second` more; both 0: nothing is repeated.

    The two numbers of Finagle's RetryBudget (there `percentCanRetry` and `minRetriesPerSec`): a share of the traffic,
    and a floor for where there is little of it. Raises OptionError for a value that is not allowed, OptionTypeError for
    one of a wrong type.
    """

    ratio: float = 0.1
    per_second: float = 10.0

    def __post_init__(self) -> None:
        _check("ratio", self.ratio, 1, "a share of the calls, from 0 to 1")
        _check("per_second", self.per_second, MOST_PER_SECOND, f"a number of calls, from 0 to {MOST_PER_SECOND}")


def retry_budget(given: Any) -> RetryBudgetConfig:
    """The budget that `given` is or names, the default for None; a number is the ratio. Raises OptionError,
    OptionTypeError.
    """
    if given is None:
        return RetryBudgetConfig()
    if isinstance(given, RetryBudgetConfig):
        return given
    if isinstance(given, int | float) and not isinstance(given, bool):
        return RetryBudgetConfig(ratio=given)
    if not isinstance(given, Mapping):
        raise OptionTypeError(
            f"retry_budget={given!r} must be a share of the calls such as 0.1, or a dict such as "
            "{'ratio': 0.1, 'per_second': 10}"
        )
    known = RetryBudgetConfig.__struct_fields__
    for name in given:
        if name not in known:
            raise OptionTypeError(f"retry_budget has no {name!r}: {hint(name, known)}")
    return RetryBudgetConfig(**given)


def _check(name: str, value: object, most: float, allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"retry_budget: {name}={value!r} must be {allowed}")
    if not 0 <= value <= most:  # comparisons alone: an integer may be too large for a float
        raise OptionError(f"retry_budget: {name}={value!r} must be {allowed}")
