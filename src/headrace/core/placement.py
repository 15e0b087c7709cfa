"""Which node of a cluster a process runs on. Pure: what it asks for and what nodes have free in, a node out.

Replicas of a deployment are spread, so that a node that dies takes as few of them as can be, and routers of every node
find one near. Amounts are under Ray's names (CPU, GPU, memory, custom ones) and compared in its units of 1/10,000.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from headrace.core.resources import Resources
from headrace.spec.placement import Placement

_UNIT = 10_000
_ACCELERATOR = 0.001  # what Ray takes of the resource `accelerator_type:X`, which nodes have 1 of
_SELECTOR = re.compile(r"(!?)(?:(?:in)?\((.*)\)|(.*))", re.DOTALL)


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """A node that lives. `free` and `total` are amounts by Ray's names; `leaving`: nothing new starts there."""

    id: str
    head: bool = False
    leaving: bool = False
    free: dict[str, float] = {}
    total: dict[str, float] = {}
    labels: dict[str, str] = {}


class Wanted(Protocol):
    """What `ProcessRequest` says of where it may run."""

    @property
    def node(self) -> str: ...
    @property
    def resources(self) -> Resources: ...
    @property
    def placement(self) -> Placement: ...
    @property
    def avoid(self) -> tuple[str, ...]: ...


def choose_node(request: Wanted, nodes: Iterable[NodeState], running: Iterable[tuple[str, str]]) -> str | None:
    """The id of the node to start it on; None: it fits nowhere now. `running`: (node, group) of each process there is.

    Never a node that is leaving, or has no room; one of `request.avoid`, or without any CPU (so set up to be kept free
    of work), only when no other has room. Of the rest, that with the fewest of the same group; then that with the
    largest share of its CPUs free, the fewest processes, and one that is not the head, whose CPU the cluster's own
    services need. With bundles it is where the first of them fits, and whether all do is the placement group's to find.
    """
    placed = list(running)
    group = request.placement.group
    all_on = Counter(node for node, _ in placed)
    same_on = Counter(node for node, of in placed if of == group) if group else all_on
    most = request.placement.max_per_node
    demand = demand_of(request)
    fitting = [
        node
        for node in nodes
        if not node.leaving
        and request.node in ("", node.id)
        and (not most or same_on[node.id] < most)
        and _holds(node.free, demand)
    ]
    for selector in _selectors(request.placement):
        matching = [node for node in fitting if _matches(selector, node)]
        if matching:
            return min(
                matching,
                key=lambda node: (
                    node.id in request.avoid,
                    not node.total.get("CPU"),
                    same_on[node.id],
                    -_free_share(node),
                    all_on[node.id],
                    node.head,
                    node.id,
                ),
            ).id
    return None


def could_fit(request: Wanted, nodes: Iterable[NodeState]) -> bool:
    """Whether a node could ever hold it, by what nodes have in total: if none could, to wait is in vain.

    Of a placement group it is what must hold at least: each bundle fits on a node, and there are nodes enough.
    """
    present = [node for node in nodes if request.node in ("", node.id)]
    placement = request.placement
    if any(_could_hold(node, demand_of(request), _selectors(placement)) for node in present):
        if not placement.bundles or placement.strategy == "STRICT_PACK":
            return True
        if placement.strategy == "STRICT_SPREAD" and len(placement.bundles) > len(present):
            return False
        return all(
            any(_could_hold(node, bundle, _bundle_selectors(placement, index)) for node in present)
            for index, bundle in enumerate(placement.bundles)
        )
    return False


def shortage(request: Wanted, nodes: Iterable[NodeState]) -> str:
    """What it asks for and what each node has, for the error when it fits on none."""
    placement, demand = request.placement, demand_of(request)
    asked = [f"{amount:g} {name}" for name, amount in sorted(demand.items())]
    if placement.bundles:
        asked = [f"bundles {list(placement.bundles)} ({placement.strategy})"]
    selectors = [selector for selector in _selectors(placement) if selector]
    if selectors:
        asked.append("labels " + " or ".join(map(str, selectors)))
    if placement.max_per_node:
        asked.append(f"at most {placement.max_per_node} replicas of it on one node (max_replicas_per_node)")
    names = sorted({name for bundle in (demand, *placement.bundles) for name in bundle})
    labels = sorted({name for selector in selectors for name in selector})
    had = []
    for node in nodes:
        if request.node not in ("", node.id):
            continue
        free = ", ".join(f"{node.free.get(name, 0):g} of {node.total.get(name, 0):g} {name}" for name in names)
        other = bool(selectors) and not any(_matches(selector, node) for selector in selectors)
        marks = ["head"] * node.head + ["leaving"] * node.leaving
        marks += [f"{name}={node.labels[name]}" if name in node.labels else f"no {name}" for name in labels if other]
        marked = f" ({', '.join(marks)})" if marks else ""
        had.append(f"{node.id[:8]}{marked}{f' {free}' if free else ''}")
    listed = "; ".join(had[:8]) + (f"; and {len(had) - 8} more" if len(had) > 8 else "")
    return f"it asks for {' and '.join(asked) or 'no resources'}; free on the nodes: {listed or 'there are none'}"


def demand_of(request: Wanted) -> dict[str, float]:
    """What its node must have free, by Ray's names: with bundles, the first, or for STRICT_PACK all of them."""
    placement = request.placement
    if placement.bundles:
        whole = placement.bundles if placement.strategy == "STRICT_PACK" else placement.bundles[:1]
        names = {name for bundle in whole for name, amount in bundle.items() if amount}
        return {name: sum(bundle.get(name, 0.0) for bundle in whole) for name in sorted(names)}
    amounts = {
        "CPU": request.resources.cpus or 0.0,
        "GPU": request.resources.gpus,
        "memory": float(placement.memory),
        **placement.resources,
    }
    if placement.accelerator_type:
        amounts[f"accelerator_type:{placement.accelerator_type}"] = _ACCELERATOR
    return {name: amount for name, amount in amounts.items() if amount}


def matches_selector(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node's labels are as Ray's selector wants: `v`, `!v`, `in(a,b)`, `!in(a,b)` by name.

    As for Ray, a label that the node does not have differs from every value.
    """
    for name, text in selector.items():
        match = _SELECTOR.fullmatch(text)
        assert match is not None  # any text does
        negated, several, one = match.groups()
        values = [one] if several is None else [value.strip() for value in several.split(",")]
        if (labels.get(name) in values) is bool(negated):
            return False
    return True


def _matches(selector: Mapping[str, str], node: NodeState) -> bool:
    return matches_selector(selector, node.labels)


def _selectors(placement: Placement) -> Sequence[Mapping[str, str]]:
    """What the labels of its node must be: the first that a node with room matches counts."""
    if placement.bundles:
        return _bundle_selectors(placement, 0)
    return (placement.label_selector, *placement.fallback_label_selectors)


def _bundle_selectors(placement: Placement, index: int) -> Sequence[Mapping[str, str]]:
    return ({} if index >= len(placement.bundle_label_selector) else placement.bundle_label_selector[index],)


def _could_hold(node: NodeState, demand: Mapping[str, float], selectors: Sequence[Mapping[str, str]]) -> bool:
    return _holds(node.total, demand) and any(_matches(selector, node) for selector in selectors)


def _holds(amounts: Mapping[str, float], demand: Mapping[str, float]) -> bool:
    return all(round(amounts.get(name, 0.0) * _UNIT) >= round(amount * _UNIT) for name, amount in demand.items())


def _free_share(node: NodeState) -> float:
    total = node.total.get("CPU", 0.0)
    return round(node.free.get("CPU", 0.0) / total, 4) if total else 0.0
