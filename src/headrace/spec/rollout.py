"""How a new revision takes over the traffic: strategies, and the checks that they go by.

In: what a user writes, in Python, a config file or on a command line. Out: frozen structs that are valid, or an error
that names the field, the value, and what would be right. Weights and fractions are shares from 0 to 1, times seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.spec.application import Code
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint

LONGEST_S = 366 * 24 * 3600.0
DIFFERENT_AT = 1e-9  # weights whose sum is this near to 1 add up


def _set(struct: msgspec.Struct, field: str, value: Any) -> None:
    msgspec.structs.force_setattr(struct, field, value)


def _check_number(what: str, name: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"{what}: {name}={value!r} must be a number from {least:g} to {most:g}")
    if not least <= value <= most:  # comparisons alone: an integer may be too large for a float
        raise OptionError(f"{what}: {name}={value!r} must be a number from {least:g} to {most:g}")


def _optional_number(what: str, name: str, value: object, least: float, most: float) -> None:
    if value is not None:
        _check_number(what, name, value, least, most)


def _check_count(what: str, name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"{what}: {name}={value!r} must be an integer of at least {least}")
    if not least <= value <= 2**31 - 1:
        raise OptionError(f"{what}: {name}={value!r} must be an integer of at least {least}")


def _check_bool(what: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise OptionTypeError(f"{what}: {name}={value!r} must be True or False")


class ErrorRate(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="check", tag="error_rate", forbid_unknown_fields=True
):
    """Requests that fail (status 500 and above, or no answer): no more than the baseline's, and than `max` if given.

    `min_samples` is how many requests of the candidate must have been seen before the check can be passed.
    """

    max: float | None = None
    against_baseline: bool = True
    min_samples: int = 100

    def __post_init__(self) -> None:
        _optional_number("ErrorRate", "max", self.max, 0.0, 1.0)
        _check_bool("ErrorRate", "against_baseline", self.against_baseline)
        _check_count("ErrorRate", "min_samples", self.min_samples, 1)
        if self.max is None and not self.against_baseline:
            raise OptionError("ErrorRate(against_baseline=False) needs max=..., the share of requests that may fail")


class Latency(msgspec.Struct, frozen=True, kw_only=True, tag_field="check", tag="latency", forbid_unknown_fields=True):
    """The latency at `quantile`: at most `max_ratio` times the baseline's (None: not compared), and `max_s` if set."""

    quantile: float = 0.95
    max_ratio: float | None = 1.5
    max_s: float | None = None
    min_samples: int = 100

    def __post_init__(self) -> None:
        _check_number("Latency", "quantile", self.quantile, 0.01, 0.999)
        _optional_number("Latency", "max_ratio", self.max_ratio, 1.0, 1000.0)
        _optional_number("Latency", "max_s", self.max_s, 0.0, LONGEST_S)
        _check_count("Latency", "min_samples", self.min_samples, 1)
        if self.max_ratio is None and self.max_s is None:
            raise OptionError("Latency needs max_ratio=... or max_s=...: there is nothing to compare with")


class Disagreement(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="check", tag="disagreement", forbid_unknown_fields=True
):
    """Of mirrored requests, the share whose answer differs from the primary's: at most `max`."""

    max: float = 0.01
    min_samples: int = 100

    def __post_init__(self) -> None:
        _check_number("Disagreement", "max", self.max, 0.0, 1.0)
        _check_count("Disagreement", "min_samples", self.min_samples, 1)


class Metric(msgspec.Struct, frozen=True, kw_only=True, tag_field="check", tag="metric", forbid_unknown_fields=True):
    """The mean of a metric reported by `serve.observe(name=...)`: within `min` and `max` where given, and, where
    `better` says which way is good ("higher" or "lower"), no worse than the baseline's by more than `tolerance`.
    """

    name: str
    better: str | None = None
    tolerance: float = 0.0
    max: float | None = None
    min: float | None = None
    min_samples: int = 100

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 100:
            raise OptionError(f"Metric: name={self.name!r} must be a text of 1 to 100 characters")
        if self.better not in (None, "higher", "lower"):
            raise OptionError(f"Metric: better={self.better!r} must be 'higher', 'lower' or None")
        _check_number("Metric", "tolerance", self.tolerance, 0.0, 1e300)
        _optional_number("Metric", "max", self.max, -1e300, 1e300)
        _optional_number("Metric", "min", self.min, -1e300, 1e300)
        _check_count("Metric", "min_samples", self.min_samples, 2)
        if self.better is None and self.max is None and self.min is None:
            raise OptionError(f"Metric({self.name!r}) needs better=..., max=... or min=...: it says nothing yet")


Check = ErrorRate | Latency | Disagreement | Metric


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How the answer of a mirrored request is compared with the primary's: `exact` bytes, `numeric` (JSON, numbers
    within `atol + rtol × |primary's|`), or a `user`'s `function(primary, shadow) -> bool`, which a replica of the
    shadow calls. Made by `serve.exact()`, `serve.numeric(rtol, atol)`, or from the function.
    """

    kind: str = "exact"
    rtol: float = 0.0
    atol: float = 0.0
    function: Code | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("exact", "numeric", "user"):
            raise OptionError(f"Comparison: kind={self.kind!r} must be 'exact', 'numeric' or 'user'")
        _check_number("numeric", "rtol", self.rtol, 0.0, 1e300)
        _check_number("numeric", "atol", self.atol, 0.0, 1e300)
        if (self.kind == "user") != (self.function is not None):
            raise OptionError("Comparison: kind='user' and a function belong together")


class RollingUpdate(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="strategy", tag="rolling_update", forbid_unknown_fields=True
):
    """New replicas take the place of old ones, weight following what is ready.

    `max_surge` is how many replicas of a deployment there may be beyond its number, `max_unavailable` how many may be
    missing meanwhile: whole numbers, or (as a float of at most 1.0) a share of its number. By default all new replicas
    start beside the old ones, and none is missing. With `max_surge=0` old replicas make the room, at least one at a
    time; where that takes the last of a deployment, requests wait for the new one. With `analysis`, whatever fails it
    takes the revision back.
    """

    max_surge: int | float = 1.0
    max_unavailable: int | float = 0
    analysis: tuple[Check, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_surge", "max_unavailable"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            share = isinstance(value, float) and 0.0 <= value <= 1.0
            if not (whole or share):
                raise OptionError(
                    f"RollingUpdate: {name}={value!r} must be a number of replicas (an integer of at least 0), or a "
                    "share of them (a float from 0.0 to 1.0)"
                )
        if not self.max_surge and not self.max_unavailable:
            raise OptionError("RollingUpdate: max_surge and max_unavailable are both 0: nothing could ever be replaced")
        _set(self, "analysis", checks(self.analysis))


class Canary(msgspec.Struct, frozen=True, kw_only=True, tag_field="strategy", tag="canary", forbid_unknown_fields=True):
    """Weight in steps of (weight, pause): after its pause, and when the analysis has seen enough and found nothing
    wrong, the next. A pause of None waits for `serve.promote` or `resume`. After the last step, all of it.

    `false_rollback` bounds the chance that a revision as good as the baseline is rolled back, over the whole rollout.
    """

    steps: tuple[tuple[float, float | None], ...] = ((0.05, 60.0), (0.25, 60.0), (0.5, 60.0))
    analysis: tuple[Check, ...] = (ErrorRate(),)
    false_rollback: float = 0.05

    def __post_init__(self) -> None:
        try:
            steps = tuple((step[0], step[1]) for step in self.steps if len(step) == 2 or 1 / 0)
        except (TypeError, KeyError, IndexError, ZeroDivisionError):
            raise OptionTypeError(
                f"Canary: steps={self.steps!r} must be pairs of weight and pause, such as [(0.1, 60), (0.5, 60)]"
            ) from None
        if not steps:
            raise OptionError("Canary: steps=[] must have at least one pair of weight and pause")
        last = 0.0
        for weight, pause_s in steps:
            _check_number("Canary", "weight", weight, 0.0, 1.0)
            if weight <= last:
                raise OptionError(f"Canary: the weights of steps={self.steps!r} must grow, from above 0 to at most 1")
            last = weight
            _optional_number("Canary", "pause_s", pause_s, 0.0, LONGEST_S)
        _set(self, "steps", tuple((float(weight), pause_s) for weight, pause_s in steps))
        _set(self, "analysis", checks(self.analysis))
        _check_number("Canary", "false_rollback", self.false_rollback, 1e-6, 0.5)


class BlueGreen(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="strategy", tag="blue_green", forbid_unknown_fields=True
):
    """All at once, when the new revision is wholly ready; the old one is kept as it was for `hold_s`, to go back to."""

    hold_s: float = 300.0
    analysis: tuple[Check, ...] = ()
    false_rollback: float = 0.05

    def __post_init__(self) -> None:
        _check_number("BlueGreen", "hold_s", self.hold_s, 0.0, LONGEST_S)
        _set(self, "analysis", checks(self.analysis))
        _check_number("BlueGreen", "false_rollback", self.false_rollback, 1e-6, 0.5)


class Shadow(msgspec.Struct, frozen=True, kw_only=True, tag_field="strategy", tag="shadow", forbid_unknown_fields=True):
    """A copy of the share `fraction` of the requests goes to the new revision for `duration_s`; nobody gets its
    answers, which are compared with the primary's. Then it takes the traffic, or waits for `serve.promote` where
    `promote` is False; with an analysis that fails it is rolled back.
    """

    fraction: float = 1.0
    duration_s: float = 300.0
    compare: Comparison = Comparison()
    analysis: tuple[Check, ...] = (Disagreement(),)
    promote: bool = True
    false_rollback: float = 0.05

    def __post_init__(self) -> None:
        _check_number("Shadow", "fraction", self.fraction, 0.0, 1.0)
        if self.fraction == 0:
            raise OptionError("Shadow: fraction=0 would mirror no request: give a share above 0")
        _check_number("Shadow", "duration_s", self.duration_s, 0.0, LONGEST_S)
        _set(self, "analysis", checks(self.analysis))
        _check_bool("Shadow", "promote", self.promote)
        _check_number("Shadow", "false_rollback", self.false_rollback, 1e-6, 0.5)


Strategy = RollingUpdate | Canary | BlueGreen | Shadow

STRATEGIES: dict[str, type[Strategy]] = {
    "rolling_update": RollingUpdate,
    "canary": Canary,
    "blue_green": BlueGreen,
    "shadow": Shadow,
}
CHECKS: dict[str, type[Check]] = {
    "error_rate": ErrorRate,
    "latency": Latency,
    "disagreement": Disagreement,
    "metric": Metric,
}


class ShadowTraffic(msgspec.Struct, frozen=True, kw_only=True):
    """A share of the requests is mirrored to a revision, and its answers are compared."""

    fraction: float
    compare: Comparison = Comparison()


class Command(enum.StrEnum):
    """What a person, or a pipeline, may tell a rollout that is under way."""

    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"


def rollout(given: Any) -> Strategy:
    """The strategy that `given` is or names: a strategy, its name ("canary"), a dict with `strategy` and its fields, or
    None for the default. Raises OptionError, OptionTypeError.
    """
    if given is None:
        return RollingUpdate()
    if isinstance(given, Strategy):
        return given
    if isinstance(given, str):
        given = {"strategy": given}
    strategy: Strategy = _from_mapping("rollout", "strategy", given, STRATEGIES)
    return strategy


def checks(given: Any) -> tuple[Check, ...]:
    """The checks that `given`, a sequence of checks, names or dicts, stands for. Raises OptionError."""
    if isinstance(given, str | Mapping) or not hasattr(given, "__iter__"):
        raise OptionTypeError(f"analysis={given!r} must be a list of checks, such as [ErrorRate(), Latency()]")
    return tuple(
        each
        if isinstance(each, Check)
        else _from_mapping("analysis", "check", {"check": each} if isinstance(each, str) else each, CHECKS)
        for each in given
    )


def weights(given: Any) -> dict[int, float]:
    """Revision -> weight, adding up to 1, those of weight 0 left out. Raises OptionError, OptionTypeError."""
    if not isinstance(given, Mapping):
        raise OptionTypeError(f"weights={given!r} must be a dict of revision and weight, such as {{1: 0.9, 2: 0.1}}")
    for revision, weight in given.items():
        if isinstance(revision, bool) or not isinstance(revision, int) or revision < 1:
            raise OptionTypeError(f"weights: {revision!r} must be the number of a revision")
        _check_number("weights", str(revision), weight, 0.0, 1.0)
    if abs(sum(given.values()) - 1.0) > 1e-8:
        raise OptionError(f"weights={dict(given)!r} must add up to 1, and add up to {sum(given.values()):g}")
    return {revision: float(weight) for revision, weight in given.items() if weight > 0}


def _from_mapping(what: str, tag: str, given: Any, known: Mapping[str, type[Any]]) -> Any:
    if not isinstance(given, Mapping) or tag not in given:
        raise OptionTypeError(
            f"{what}={given!r} must be one of {', '.join(known)}, or a dict with {tag!r} and its fields"
        )
    name = given[tag]
    if not isinstance(name, str) or name not in known:
        raise OptionError(f"{what}: {tag}={name!r}: {hint(name, known)}")
    kind = known[name]
    fields = {field: value for field, value in given.items() if field != tag}
    for field in fields:
        if field not in kind.__struct_fields__:
            raise OptionTypeError(f"{what}: {name} has no {field!r}: {hint(field, kind.__struct_fields__)}")
    if kind is Metric and "name" not in fields:
        raise OptionError(f"{what}: a metric needs its name")
    return kind(**fields)
