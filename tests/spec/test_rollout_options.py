"""What users write for rollouts, checks, weights and sticky keys: what is right travels as it is, the rest is named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.rollout import (
    BlueGreen,
    Canary,
    Comparison,
    Disagreement,
    ErrorRate,
    Latency,
    Metric,
    RollingUpdate,
    Shadow,
    Strategy,
    checks,
    rollout,
    weights,
)
from headrace.spec.sticky import Sticky, sticky


@pytest.mark.parametrize(
    "strategy",
    [
        RollingUpdate(max_surge=2, max_unavailable=0.5, analysis=(ErrorRate(),)),
        Canary(steps=[(0.1, 1), (1.0, None)], analysis=["error_rate", {"check": "latency", "max_s": 0.5}]),
        BlueGreen(hold_s=0, analysis=(Metric(name="clicks", better="higher"),)),
        Shadow(fraction=0.5, compare=Comparison(kind="numeric", rtol=0.1), analysis=(Disagreement(max=0.0),)),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_what_is_right_travels_as_it_is(strategy: Strategy) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(strategy), type=Strategy) == strategy
    as_data = msgspec.to_builtins(strategy)
    assert rollout(as_data) == strategy or isinstance(strategy, Shadow)  # a comparison is no plain data
    assert rollout(strategy) is strategy


def test_names_stand_for_defaults() -> None:
    assert rollout(None) == rollout("rolling_update") == RollingUpdate()
    assert rollout("canary") == Canary()
    assert checks(["error_rate", Latency()]) == (ErrorRate(), Latency())


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("canari", OptionError, "did you mean 'canary'"),
        (5, OptionTypeError, "rolling_update, canary"),
        ({"strategy": "canary", "step": []}, OptionTypeError, "did you mean 'steps'"),
        ({"strategy": ["canary"]}, OptionError, "did you mean 'canary'"),
        ({"steps": [(0.1, 1)]}, OptionTypeError, "'strategy' and its fields"),
        ({"strategy": "canary", "steps": []}, OptionError, "at least one pair"),
        ({"strategy": "canary", "steps": 5}, OptionTypeError, "pairs of weight and pause"),
        ({"strategy": "canary", "steps": [0.1, 0.5]}, OptionTypeError, "pairs of weight and pause"),
        ({"strategy": "canary", "steps": [(0.1, 1, 2)]}, OptionTypeError, "pairs of weight and pause"),
        ({"strategy": "canary", "steps": [(0.5, 1), (0.1, 1)]}, OptionError, "must grow"),
        ({"strategy": "canary", "steps": [(0, 1)]}, OptionError, "must grow"),
        ({"strategy": "canary", "steps": [(1.5, 1)]}, OptionError, "weight=1.5"),
        ({"strategy": "canary", "steps": [("a", 1)]}, OptionTypeError, "weight='a'"),
        ({"strategy": "canary", "steps": [(0.1, -1)]}, OptionError, "pause_s=-1"),
        ({"strategy": "canary", "steps": [(float("nan"), 1)]}, OptionError, "weight=nan"),
        ({"strategy": "canary", "analysis": "error_rate"}, OptionTypeError, "a list of checks"),
        ({"strategy": "canary", "analysis": [5]}, OptionTypeError, "error_rate, latency"),
        ({"strategy": "canary", "analysis": ["errors"]}, OptionError, "check='errors'"),
        ({"strategy": "canary", "analysis": [{"check": "metric"}]}, OptionError, "needs its name"),
        ({"strategy": "canary", "analysis": [{"check": "metric", "name": "m"}]}, OptionError, "says nothing yet"),
        ({"strategy": "canary", "false_rollback": 0}, OptionError, "false_rollback=0"),
        ({"strategy": "blue_green", "hold_s": True}, OptionTypeError, "hold_s=True"),
        ({"strategy": "blue_green", "hold_s": 10**400}, OptionError, "hold_s=1000"),
        ({"strategy": "shadow", "fraction": 0}, OptionError, "mirror no request"),
        ({"strategy": "shadow", "promote": "yes"}, OptionTypeError, "promote='yes'"),
        ({"strategy": "rolling_update", "max_surge": 0}, OptionError, "nothing could ever be replaced"),
        ({"strategy": "rolling_update", "max_surge": 1.5}, OptionError, "max_surge=1.5"),
        ({"strategy": "rolling_update", "max_surge": -1}, OptionError, "max_surge=-1"),
        ({"strategy": "rolling_update", "max_unavailable": "1"}, OptionError, "max_unavailable='1'"),
    ],
)
def test_what_is_wrong_is_named(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        rollout(given)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ErrorRate(against_baseline=False), "needs max"),
        (lambda: ErrorRate(max=2.0), "max=2.0"),
        (lambda: ErrorRate(min_samples=0), "min_samples=0"),
        (lambda: Latency(max_ratio=None), "nothing to compare with"),
        (lambda: Latency(quantile=1.0), "quantile=1.0"),
        (lambda: Latency(max_ratio=0.5), "max_ratio=0.5"),
        (lambda: Disagreement(max=-0.1), "max=-0.1"),
        (lambda: Metric(name="", max=1.0), "1 to 100 characters"),
        (lambda: Metric(name="m", better="up"), "better='up'"),
        (lambda: Comparison(kind="fuzzy"), "kind='fuzzy'"),
        (lambda: Comparison(kind="user"), "belong together"),
        (lambda: Comparison(kind="numeric", rtol=-1.0), "rtol=-1.0"),
    ],
)
def test_checks_and_comparisons_that_cannot_be(make: Any, words: str) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert words in str(caught.value)


def test_weights_add_up() -> None:
    assert weights({1: 0.9, 2: 0.1}) == {1: 0.9, 2: 0.1}
    assert weights({1: 1, 2: 0}) == {1: 1.0}
    for wrong in ({}, {1: 0.5}, {1: 0.9, 2: 0.2}, {1: -0.5, 2: 1.5}, {1: float("nan")}, {1: float("inf")}):
        with pytest.raises(OptionError):
            weights(wrong)
    for wrong in (None, [1], {"1": 1.0}, {True: 1.0}, {0: 1.0}, {-1: 1.0}, {1: "1"}, {1: True}):
        with pytest.raises(OptionTypeError):
            weights(wrong)


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=8))
def test_weights_that_add_up_are_taken(given: list[float]) -> None:
    shares = {number: share / sum(given) for number, share in enumerate(given, 1)}
    assert weights(shares) == pytest.approx(shares)


def test_a_key_is_of_a_header_a_cookie_or_the_query() -> None:
    assert sticky(None) is None
    assert sticky("header:X-User") == Sticky(of="header", name="x-user")
    assert sticky("cookie:Uid") == Sticky(of="cookie", name="Uid") == sticky({"of": "cookie", "name": "Uid"})
    for wrong in (
        "x-user",
        "body:x",
        "header:",
        "header:a b",
        "cookie:a;b",
        "query:é",
        "query:" + "x" * 101,
        "header:\n",
    ):
        with pytest.raises(OptionError):
            sticky(wrong)
    for wrong in (5, {"of": "header"}, {"of": "header", "name": "x", "more": 1}, ["header", "x"]):
        with pytest.raises(OptionTypeError):
            sticky(wrong)
    for wrong in ({"of": 5, "name": "x"}, {"of": "header", "name": 5}):
        with pytest.raises(OptionError):
            sticky(wrong)
