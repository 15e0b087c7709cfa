"""How answers of a shadow are compared with the primary's: `serve.exact()`, `serve.numeric(...)`, or a function.

In: what a user gives as `compare`. Out: a Comparison, in which a function is bytes or an import path: a replica of the
shadow calls it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.serve.deployment import Deployment
from headrace.spec.errors import OptionTypeError
from headrace.spec.rollout import Comparison, Shadow, Strategy
from headrace.wire.code import pack_code


def exact() -> Comparison:
    """Answers agree when they are the same bytes."""
    return Comparison()


def numeric(rtol: float = 1e-6, atol: float = 0.0) -> Comparison:
    """Answers agree when they are the same JSON, but that numbers may differ by `atol + rtol × |the primary's|`.

    Raises OptionError, OptionTypeError.
    """
    return Comparison(kind="numeric", rtol=rtol, atol=atol)


def comparison(given: Any) -> Comparison:
    """The comparison that `given` is or makes: a function `(primary, shadow) -> bool` says whether two answers agree,
    None is `exact()`.

    Raises OptionTypeError, PayloadError for a function that no replica could have.
    """
    if given is None:
        return Comparison()
    if isinstance(given, Comparison):
        return given
    if not callable(given) or isinstance(given, type | Deployment):
        raise OptionTypeError(
            f"compare={given!r} must be serve.exact(), serve.numeric(rtol, atol), or a function that is called as "
            "function(primary, shadow) and returns whether they agree"
        )
    return Comparison(kind="user", function=pack_code(given))


def with_comparator(strategy: Strategy) -> Strategy:
    """The strategy with its function, where it compares by one, packed. Raises OptionTypeError, PayloadError."""
    if not isinstance(strategy, Shadow):
        return strategy
    return msgspec.structs.replace(strategy, compare=comparison(strategy.compare))
