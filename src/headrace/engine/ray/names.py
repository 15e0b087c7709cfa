"""What the actors, placement groups and keys of an instance are called on the cluster. Pure."""

from __future__ import annotations

NAMESPACE = "headrace"  # of Ray: all instances share it, and begin their names with their own
_PREFIX = "headrace"


def controller_name(instance: str) -> str:
    return f"{_PREFIX}:{instance}:controller"


def agent_name(instance: str, node: str) -> str:
    return f"{_PREFIX}:{instance}:node:{node}"


def seat_name(instance: str, process: str, nonce: str) -> str:
    """Of the seat of a process. The nonce tells it from an earlier one, which Ray may not have forgotten yet."""
    return f"{_PREFIX}:{instance}:seat:{nonce}:{process}"


def seated_process(instance: str, name: str) -> str | None:
    """The process of the seat of this name; None for a name that is no seat of the instance."""
    begin = f"{_PREFIX}:{instance}:seat:"
    if not name.startswith(begin):
        return None
    return name.removeprefix(begin).partition(":")[2]


def belongs(instance: str, name: str) -> bool:
    """Whether an actor or placement group of this name is one of the instance's."""
    return name.startswith(f"{_PREFIX}:{instance}:")
