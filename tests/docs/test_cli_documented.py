"""docs/reference/cli.md: every command and every option is there, and nothing that is none."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.cli import COMMANDS, exits, parser

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()


def inner(command: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands in a command."""
    return {
        name: each
        for action in command._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, each in action.choices.items()
    }


def options(command: argparse.ArgumentParser) -> Iterator[str]:
    for action in command._actions:
        yield from (text for text in action.option_strings if text.startswith("--") and text != "--help")
    for each in inner(command).values():
        yield from options(each)


def test_every_command_is_described() -> None:
    for name in COMMANDS:
        assert re.search(rf"^\| \[`{name}`\]", PAGE, re.MULTILINE), name
    for name in inner(inner(parser())["rollout"]):
        assert re.search(rf"`(rollout )?{name} APP", PAGE), name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_described(command: str) -> None:
    missing = [option for option in options(inner(parser(command))[command]) if option not in PAGE]
    assert not missing


def test_no_option_is_described_that_is_none() -> None:
    known = set(options(parser())) | {"--help"}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known


def test_every_exit_code_is_described() -> None:
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    assert codes == {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
