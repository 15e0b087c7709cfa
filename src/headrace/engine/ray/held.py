"""What is free on the nodes: what Ray says, less what it cannot know yet, as it was just given to ours. Pure.

In: the nodes as Ray has them, who of us takes and leaves what. Out: the nodes with what is free now.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import msgspec

from headrace.core.placement import NodeState
from headrace.engine.base import NodeInfo

_UNIT = 10_000


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A node that lives, with what is held on it, by us and by others."""

    state: NodeState
    host: str


def infos(seen: Iterable[Seen], ready: Mapping[str, str], restarting: Container[str] = ()) -> tuple[NodeInfo, ...]:
    """Those on which an agent is up or `restarting`, with the address of each."""
    return tuple(
        NodeInfo(
            id=each.state.id,
            host=ready[each.state.id],
            head=each.state.head,
            leaving=each.state.leaving,
            restarting=each.state.id in restarting,
        )
        for each in seen
        if each.state.id in ready
    )


class Held:
    """What processes of ours hold of the nodes, and held a moment ago: Ray's figures of what is free lag behind."""

    def __init__(self, lag_s: float = 2.0) -> None:
        self._lag_s = lag_s
        self._now: dict[str, tuple[str, Mapping[str, float]]] = {}
        self._before: list[tuple[float, str, Mapping[str, float]]] = []
        self._others: dict[str, dict[str, float]] = {}

    def take(self, holder: str, node: str, demand: Mapping[str, float]) -> None:
        """`holder` has this of the node from now on, and of no other."""
        self._now[holder] = (node, demand)

    def release(self, holder: str, now: float) -> None:
        """Nothing happens when it holds nothing."""
        node, demand = self._now.pop(holder, ("", {}))
        if node:
            self._before.append((now + self._lag_s, node, demand))

    def settling(self) -> bool:
        """Whether something was released a moment ago, that may not be free yet."""
        return bool(self._before)

    def observed(self, seen: Iterable[Seen], now: float) -> None:
        """Ray's figures of this moment: what is not free, and may not be of ours, is held by others."""
        self._before = [entry for entry in self._before if entry[0] > now]
        ours = [*self._now.values(), *((node, demand) for _, node, demand in self._before)]
        self._others = {}
        for each in seen:
            used = {name: total - each.state.free.get(name, 0.0) for name, total in each.state.total.items()}
            self._others[each.state.id] = _less(used, (demand for node, demand in ours if node == each.state.id))

    def states(self, seen: Iterable[Seen]) -> list[NodeState]:
        """The nodes with what is free now."""
        result = []
        for each in seen:
            id = each.state.id
            taken = [self._others.get(id, {}), *(demand for node, demand in self._now.values() if node == id)]
            result.append(msgspec.structs.replace(each.state, free=_less(each.state.total, taken)))
        return result


def _less(amounts: Mapping[str, float], taken: Iterable[Mapping[str, float]]) -> dict[str, float]:
    left = {name: round(amount * _UNIT) for name, amount in amounts.items()}
    for each in taken:
        for name, amount in each.items():
            if name in left:
                left[name] = max(0, left[name] - round(amount * _UNIT))
    return {name: amount / _UNIT for name, amount in left.items()}
