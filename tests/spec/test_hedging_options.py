"""headrace.spec.hedging: a config, or an error that names the field and what would be right, wherever it is given."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.handle.options import HandleOptions, checked_changes
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.hedging import HedgingConfig, hedging
from headrace.spec.method import method_options
from headrace.spec.options import deployment_options

DEFAULT = HedgingConfig(quantile=0.95, budget=0.05, least_delay_s=0.001)


@pytest.mark.parametrize(
    ("given_value", "meant"),
    [
        (None, None),
        (False, None),
        (True, DEFAULT),
        ({}, DEFAULT),
        (DEFAULT, DEFAULT),
        ({"quantile": 0.99}, HedgingConfig(quantile=0.99)),
        ({"budget": 1, "least_delay_s": 0}, HedgingConfig(budget=1, least_delay_s=0)),
    ],
)
def test_what_users_write(given_value: Any, meant: HedgingConfig | None) -> None:
    assert hedging(given_value) == meant
    assert deployment_options({"hedge": given_value}).hedge == meant


WRONG_VALUES = [
    {"quantile": 0.4},
    {"quantile": 1},
    {"quantile": math.nan},
    {"budget": -0.1},
    {"budget": 1.1},
    {"budget": math.inf},
    {"budget": 10**400},
    {"least_delay_s": -1},
    {"least_delay_s": 3601},
]
WRONG_TYPES = [
    *({"quantile": "0.95"}, {"quantile": True}, {"budget": None}, {"least_delay_s": [1]}, {"quantil": 0.9}, {1: 2}),
    *("yes", 0.95, 1, 0, ["quantile"], object()),
]


@pytest.mark.parametrize("value", WRONG_VALUES, ids=str)
def test_a_value_that_is_not_allowed(value: dict[str, Any]) -> None:
    ((name, wrong),) = value.items()
    for take in (hedging, lambda v: deployment_options({"hedge": v}), lambda v: checked_changes({"hedge": v})):
        with pytest.raises(OptionError, match=f"hedge: {name}=.* must be a (share|number)") as caught:
            take(value)
        assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("value", WRONG_TYPES, ids=str)
def test_a_value_of_a_wrong_type(value: Any) -> None:
    for take in (
        hedging,
        lambda v: deployment_options({"hedge": v}),
        lambda v: checked_changes({"hedge": v}),
        lambda v: method_options({"hedge": v}),
    ):
        with pytest.raises(OptionTypeError, match="hedge"):
            take(value)


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(OptionTypeError, match=r"hedge has no 'least_delay': did you mean 'least_delay_s'\?"):
        hedging({"least_delay": 1})


@given(st.floats(0.5, 0.9999), st.floats(0, 1), st.floats(0, 3600))
def test_a_config_is_a_key_and_survives_pickling(quantile: float, budget: float, least_delay_s: float) -> None:
    config = HedgingConfig(quantile=quantile, budget=budget, least_delay_s=least_delay_s)
    assert pickle.loads(pickle.dumps(config)) == config
    assert {config: 1}[hedging({"quantile": quantile, "budget": budget, "least_delay_s": least_delay_s})] == 1  # type: ignore[index]


# --- beside other options


def test_what_must_not_run_twice_is_not_hedged() -> None:
    with pytest.raises(OptionError, match="hedge and repeatable=False contradict"):
        deployment_options({"hedge": True, "repeatable": False})
    with pytest.raises(OptionError, match="hedge and repeatable=False of a method contradict"):
        method_options({"hedge": {"quantile": 0.9}, "repeatable": False})
    assert deployment_options({"hedge": False, "repeatable": False}).hedge is None
    assert method_options({"hedge": False, "repeatable": False}).hedge is False


def test_of_a_method() -> None:
    assert method_options({}).hedge is None
    assert method_options({"hedge": True}).hedge is True
    assert method_options({"hedge": {"budget": 0.1}}).hedge == HedgingConfig(budget=0.1)
    with pytest.raises(OptionTypeError, match=r"did you mean 'hedge'\?"):
        method_options({"hedged": True})


@pytest.mark.parametrize("value", [None, True, False])
def test_of_a_handle(value: bool | None) -> None:
    assert checked_changes({"hedge": value})["hedge"] is value
    assert HandleOptions(**checked_changes({"hedge": {"quantile": 0.9}})).hedge == HedgingConfig(quantile=0.9)
    assert HandleOptions(**checked_changes({"hedge": value})).special is True


def test_a_handle_for_items_is_not_hedged() -> None:
    with pytest.raises(OptionError, match="hedge=True and stream=True of a handle contradict"):
        HandleOptions(hedge=True, stream=True)
    assert HandleOptions(hedge=False, stream=True).hedge is False
