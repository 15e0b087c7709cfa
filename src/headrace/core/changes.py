"""What changed from one revision of an application to the next, for a person to read: a line each.

In: two specifications. Out: lines such as `Digits: num_replicas 2 → 4`. Values that may be secret (environment
variables and the rest of the environment, `user_config`) are never shown, only their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from headrace.spec.application import ApplicationSpec, DeploymentSpec
from headrace.spec.options import DeploymentOptions

LONGEST_VALUE = 60
MOST_NAMES = 8
MOST_LINES = 100
_OF_THE_APPLICATION = ("route_prefix", "ingress", "request_timeout_s", "sticky")
_SECRET = ("environment", "runtime_env", "user_config")


def changes(before: ApplicationSpec | None, after: ApplicationSpec) -> tuple[str, ...]:
    """The differences, deployments first, in the order of `after`; none for specifications that say the same."""
    if before is None:
        return _bounded([f"{deployment.name}: added" for deployment in after.deployments])
    was = {deployment.name: deployment for deployment in before.deployments}
    lines: list[str] = []
    for deployment in after.deployments:
        former = was.pop(deployment.name, None)
        if former is None:
            lines.append(f"{deployment.name}: added")
        else:
            lines += [f"{deployment.name}: {what}" for what in _of_deployment(former, deployment)]
    lines += [f"{name}: removed" for name in was]
    for name in _OF_THE_APPLICATION:
        one, other = getattr(before, name), getattr(after, name)
        if one != other:
            lines.append(f"{name} {_shown(one)} → {_shown(other)}")
    if before.history != after.history:
        lines.append(f"revision_history_limit {before.history} → {after.history}")
    lines += _of_mapping("labels", before.labels, after.labels)
    return _bounded(lines)


def _bounded(lines: list[str]) -> tuple[str, ...]:
    more = len(lines) - MOST_LINES
    return (*lines[:MOST_LINES], f"{more} more changes") if more > 0 else tuple(lines)


def _of_deployment(before: DeploymentSpec, after: DeploymentSpec) -> Iterator[str]:
    if before.digest != after.digest:
        yield from _of_parts(before, after)
    for name in DeploymentOptions.__struct_fields__:
        one, other = getattr(before.options, name), getattr(after.options, name)
        if one == other:
            continue
        if name not in _SECRET:
            yield f"{name} {_shown(one)} → {_shown(other)}"
        elif isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _of_mapping(name, one, other)
        else:
            yield f"{name} changed"


def _of_parts(before: DeploymentSpec, after: DeploymentSpec) -> Iterator[str]:
    """What of the digest changed, resources apart: those are options, and told as such."""
    parts = [name for name in ("code", "arguments") if before.parts.get(name) != after.parts.get(name)]
    if not before.parts or not after.parts:
        yield "code, arguments or resources changed"
    elif parts:
        yield f"{' and '.join(parts)} changed"


def _of_mapping(what: str, before: Mapping[Any, Any], after: Mapping[Any, Any]) -> list[str]:
    """The keys that changed, without their values."""
    keys = [*after, *(key for key in before if key not in after)]
    names = [
        f"{_shown(key)} {'added' if key not in before else 'removed' if key not in after else 'changed'}"
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    ]
    more = len(names) - MOST_NAMES
    if more > 0:
        names[MOST_NAMES:] = [f"{more} more"]
    return [f"{what}: {', '.join(names)}"] if names else []


def _shown(value: object) -> str:
    """The value as a person reads it, on one line that is not too long."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, float):
        text = repr(value).removesuffix(".0")
    elif isinstance(value, msgspec.Struct):
        fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
        text = ", ".join(f"{name}={_shown(field)}" for name, field in fields)
    else:
        text = repr(value)
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
