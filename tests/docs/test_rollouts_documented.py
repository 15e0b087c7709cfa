"""docs/reference/rollouts.md: every field of a strategy or a check with its default, every function, every status."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import serve
from headrace.serve import rollouts
from headrace.spec.rollout import CHECKS, STRATEGIES
from headrace.spec.status import HistoryEvent, RevisionRecord, RolloutStatus

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "rollouts.md").read_text()
KINDS: list[Any] = [*STRATEGIES.values(), *CHECKS.values()]
FUNCTIONS = [name for name in rollouts.__all__ if inspect.isfunction(getattr(serve, name))]


def section(title: str) -> str:
    return PAGE.split(f"### {title}\n")[1].split("\n#")[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_fields_of_strategies_and_checks_are_those_with_their_defaults(kind: type[msgspec.Struct]) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section(kind.__name__), re.MULTILINE))
    assert list(rows) == list(kind.__struct_fields__)
    for field in msgspec.structs.fields(kind):
        if field.default is not msgspec.NODEFAULT:
            said = eval(rows[field.name].strip("`"), vars(serve).copy() | {n: getattr(serve, n) for n in serve.__all__})
            assert said == field.default, field.name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_described_with_its_arguments(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}\((.*?)\)` \|", PAGE, re.MULTILINE)
    described = dict(part.split("=") if "=" in part else (part, "") for part in row.split(", ") if part)
    parameters = inspect.signature(getattr(serve, name)).parameters
    assert list(described) == list(parameters)
    for parameter in parameters.values():
        if described[parameter.name] == "...":
            assert parameter.default is rollouts.UNSET
        elif parameter.default is not parameter.empty:
            assert described[parameter.name].replace('"', "'") == repr(parameter.default)


@pytest.mark.parametrize(
    ("title", "kinds"), [("RolloutStatus", [RolloutStatus]), ("History", [RevisionRecord, HistoryEvent])]
)
def test_every_field_of_what_is_told_is_described(title: str, kinds: list[type[msgspec.Struct]]) -> None:
    text = section(title)
    for kind in kinds:
        for name in kind.__struct_fields__:
            assert f"`{name}`" in text, name


def test_it_is_all_there_by_its_name() -> None:
    for name in rollouts.__all__:
        assert getattr(serve, name) is getattr(rollouts, name)
