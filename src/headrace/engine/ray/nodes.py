"""The nodes of the cluster as the GCS has them. Blocks, and raises what Ray raises when the GCS does not answer.

In: the GCS. Out: plain structs, of the nodes that live.
"""

from __future__ import annotations

import ray
from ray._private.state import state

from headrace.core.placement import NodeState
from headrace.engine.ray.held import Seen

HEAD_RESOURCE = "node:__internal_head__"


def look() -> tuple[Seen, ...]:
    """The nodes that live, in the order of their ids. Blocks; raises what Ray raises when the GCS does not answer."""
    free = state.available_resources_per_node()
    leaving = state.get_draining_nodes()
    found = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        id = node["NodeID"]
        total = {name: float(amount) for name, amount in node["Resources"].items()}
        found.append(
            Seen(
                state=NodeState(
                    id=id,
                    head=HEAD_RESOURCE in total,
                    leaving=id in leaving,
                    free={name: float(amount) for name, amount in free.get(id, total).items()},
                    total=total,
                    labels=dict(node.get("Labels") or {}),
                ),
                host=node["NodeManagerAddress"],
            )
        )
    return tuple(sorted(found, key=lambda seen: seen.state.id))


def may_grow() -> bool:
    """Whether something may bring nodes that are not there yet. Blocks."""
    return state.get_max_resources_from_cluster_config() is not None
