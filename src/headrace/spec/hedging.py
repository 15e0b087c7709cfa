"""How slow calls are hedged, a second copy sent to another replica: the option `hedge`.

In: what a user writes for it. Out: a HedgingConfig that is valid, None for no hedging, or an error that names the
field, the value, and what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint


class HedgingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A call that takes longer than the `quantile` of the latest latencies, and than `least_delay_s`, gets a copy on
    another replica; at most the share `budget` of the calls does.

    Raises OptionError for a value that is not allowed, OptionTypeError for one of a wrong type.
    """

    quantile: float = 0.95
    budget: float = 0.05
    least_delay_s: float = 0.001

    def __post_init__(self) -> None:
        _check("quantile", self.quantile, 0.5, 0.9999, "a share of the calls, from 0.5 to 0.9999")
        _check("budget", self.budget, 0.0, 1.0, "a share of the calls, from 0 to 1")
        _check("least_delay_s", self.least_delay_s, 0.0, 3600.0, "a number of seconds, from 0 to 3600")


def hedging(given: Any) -> HedgingConfig | None:
    """The config that `given` is or names; True is the default one, False and None are none. Raises OptionError,
    OptionTypeError.
    """
    if given is None or given is False:
        return None
    if given is True:
        return HedgingConfig()
    if isinstance(given, HedgingConfig):
        return given
    if not isinstance(given, Mapping):
        raise OptionTypeError(
            f"hedge={given!r} must be True, False, or a dict such as {{'quantile': 0.95, 'budget': 0.05}}"
        )
    known = HedgingConfig.__struct_fields__
    for name in given:
        if name not in known:
            raise OptionTypeError(f"hedge has no {name!r}: {hint(name, known)}")
    return HedgingConfig(**given)


def _check(name: str, value: object, least: float, most: float, allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"hedge: {name}={value!r} must be {allowed}")
    if not least <= value <= most:  # comparisons alone: an integer may be too large for a float
        raise OptionError(f"hedge: {name}={value!r} must be {allowed}")
