"""How a revision is to take over the traffic, as options of a command.

In: arguments. Out: a strategy that is valid, or an OptionError that names the option and what would be right.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.spec.errors import OptionError
from headrace.spec.names import hint
from headrace.spec.rollout import CHECKS, STRATEGIES, Comparison, Strategy, rollout

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)")

# Option -> the field that it sets, of the strategies that have it.
_FIELDS = {
    "steps": "steps",
    "hold": "hold_s",
    "fraction": "fraction",
    "duration": "duration_s",
    "numeric": "compare",
    "no_promote": "promote",
    "max_surge": "max_surge",
    "max_unavailable": "max_unavailable",
    "check": "analysis",
    "false_rollback": "false_rollback",
}


def add_strategy(command: argparse.ArgumentParser) -> None:
    """The options that say how a revision takes over."""
    group = command.add_argument_group("how it takes over the traffic")
    group.add_argument(
        "--rollout",
        metavar="STRATEGY",
        help="rolling_update (the default), canary, blue_green or shadow",
    )
    group.add_argument(
        "--steps", metavar="W:S,...", help="canary: weights and pauses, such as 5%%:60,25%%:5m,50%% (the last waits)"
    )
    group.add_argument("--hold", metavar="TIME", help="blue_green: how long the old revision is kept to go back to")
    group.add_argument("--fraction", metavar="SHARE", help="shadow: share of the requests that is mirrored")
    group.add_argument("--duration", metavar="TIME", help="shadow: how long it is mirrored to")
    group.add_argument("--numeric", metavar="RTOL", help="shadow: numbers in answers may differ by this share")
    group.add_argument("--no-promote", action="store_true", help="shadow: wait for `headrace rollout promote` after it")
    group.add_argument("--max-surge", metavar="N|SHARE", help="rolling_update: replicas beyond their number")
    group.add_argument("--max-unavailable", metavar="N|SHARE", help="rolling_update: replicas that may be missing")
    group.add_argument(
        "--check",
        action="append",
        metavar="NAME[:KEY=VALUE,...]",
        help="what the revision must pass, such as error_rate:max=0.02 or latency:quantile=0.99 (several times)",
    )
    group.add_argument("--false-rollback", metavar="SHARE", help="chance that a good revision is rolled back")


def strategy(arguments: argparse.Namespace) -> Strategy | None:
    """The strategy that the options say; None where they say none. Raises OptionError, OptionTypeError."""
    given = {option: getattr(arguments, option) for option in _FIELDS}
    given = {option: value for option, value in given.items() if value not in (None, False)}
    if arguments.rollout is None:
        if given:
            option = next(iter(given))
            fitting = " or ".join(
                name for name, kind in STRATEGIES.items() if _FIELDS[option] in kind.__struct_fields__
            )
            raise OptionError(f"{_flag(option)} needs --rollout: it is part of {fitting}")
        return None
    name = arguments.rollout.replace("-", "_")
    if name not in STRATEGIES:
        raise OptionError(f"--rollout {arguments.rollout!r}: {hint(name, STRATEGIES)}")
    known = STRATEGIES[name].__struct_fields__
    for option in given:
        if _FIELDS[option] not in known:
            there = ", ".join(_flag(each) for each, field in _FIELDS.items() if field in known)
            raise OptionError(f"{_flag(option)} does not belong to --rollout {name}, which has {there}")
    return rollout({"strategy": name, **{_FIELDS[option]: _value(option, value) for option, value in given.items()}})


def seconds(option: str, text: str) -> float:
    """`60`, `60s`, `5m`, `1.5h`, `2d`. Raises OptionError."""
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise OptionError(f"{option} {text!r} must be a time, such as 60, 90s, 5m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def share(option: str, text: str) -> float:
    """`0.05` or `5%`. Raises OptionError."""
    number = text.strip()
    try:
        found = float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise OptionError(f"{option} {text!r} must be a share, such as 0.05 or 5%") from None
    if 1.0 < found <= 100.0 and not number.endswith("%"):
        raise OptionError(f"{option} {text!r} must be a share, such as 0.05 or 5%; did you mean '{number}%'?")
    return found


def _value(option: str, value: Any) -> Any:
    flag = _flag(option)
    match option:
        case "steps":
            return _steps(value)
        case "hold" | "duration":
            return seconds(flag, value)
        case "fraction" | "false_rollback":
            return share(flag, value)
        case "numeric":
            return Comparison(kind="numeric", rtol=share(flag, value))
        case "no_promote":
            return False
        case "max_surge" | "max_unavailable":
            return int(value) if value.strip().isdecimal() else share(flag, value)
        case "check":
            return [_check(text) for text in value]
    raise AssertionError(option)


def _steps(text: str) -> list[tuple[float, float | None]]:
    steps: list[tuple[float, float | None]] = []
    for part in text.split(","):
        weight, colon, pause = part.partition(":")
        if not weight.strip():
            raise OptionError(f"--steps {text!r} must be weights and pauses, such as 5%:60,25%:5m or 0.1,0.5")
        steps.append((share("--steps", weight), seconds("--steps", pause) if colon else None))
    return steps


def _check(text: str) -> Mapping[str, Any]:
    name, _, rest = text.partition(":")
    name = name.strip().replace("-", "_")
    if name not in CHECKS:
        raise OptionError(f"--check {text!r}: {hint(name, CHECKS)}")
    fields: dict[str, Any] = {"check": name}
    for pair in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise OptionError(f"--check {text!r}: {pair!r} is not KEY=VALUE, such as max=0.02")
        fields[key] = _plain(value)
    return fields


def _plain(text: str) -> Any:
    """A number, true, false or none, where the text is one; else the text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        return text


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
