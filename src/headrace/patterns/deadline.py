"""How long members may take, so that there is time left for the answer without them.

In: the time that the request has left. Out: seconds, for what a pattern calls.
"""

from __future__ import annotations

import math

from headrace import serve
from headrace.spec.errors import OptionError, OptionTypeError

MARGIN_S = 0.02
_LEAST_S = 0.0001  # of a call: its time may not be 0


def time_for_members(margin_s: float) -> float | None:
    """The seconds until `margin_s` before the request's deadline; None: as long as they like.

    The margin is half of what is left, when that is less. A pattern among the members sees their time as its own, and
    keeps its margin from that: so each level answers before the one above it.
    """
    left = serve.get_request_context().remaining_s
    return None if left is None else max(left - min(margin_s, left / 2), _LEAST_S)


def check_margin(pattern: str, value: object) -> None:
    """Raise OptionTypeError or OptionError unless `value` can be a margin."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"margin_s={value!r} of {pattern}() must be a number of seconds")
    if not 0 <= value < math.inf:
        raise OptionError(f"margin_s={value!r} of {pattern}() must be 0 or more seconds")
