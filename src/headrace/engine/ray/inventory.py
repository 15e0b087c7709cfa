"""What an instance has on the cluster: its actors and placement groups, found by their names. All block.

In: names. Out: handles. What Ray has forgotten meanwhile is left out.
"""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray._private.state import state
from ray.util import list_named_actors
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from headrace.engine.ray.names import NAMESPACE, agent_name, belongs, controller_name, seated_process
from headrace.engine.ray.seats import ANY_NUMBER_OF_CALLS, Seating

logger = logging.getLogger(__name__)


def seats(instance: str) -> list[tuple[str, Seating]]:
    """The seats that there are, with the process that each is for."""
    grouped = set(groups(instance))
    found = []
    for name in actors(instance):
        process = seated_process(instance, name)
        actor = handle(name) if process is not None else None
        if process is not None and actor is not None:
            found.append((process, Seating(name, actor, _group(name) if name in grouped else None)))
    return found


def agent(node: str, charge: Any) -> Any:
    """The agent of the node: the one that is there, or a new one."""
    from headrace.engine.ray.agent import Agent

    options = {
        "name": agent_name(charge.instance, node),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_concurrency": ANY_NUMBER_OF_CALLS,
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }
    return ray.remote(Agent).options(**options).remote(charge)


def node_of(actor: Any) -> str:
    """The node that the GCS has for the actor, "" for none."""
    found = state.actor_table(id_of(actor))
    return str(found.get("Address", {}).get("NodeID", ""))


def restarting(actor: Any) -> bool:
    """Whether the actor's process has ended while its node lives, and Ray starts another: only the node's raylet can
    have told that.
    """
    return bool(state.actor_table(id_of(actor)).get("State") == "RESTARTING")


def id_of(actor: Any) -> str:
    """Ray's id of the actor, which no other ever has."""
    return str(actor._actor_id.hex())


def actors(instance: str) -> list[str]:
    """The names of all actors of the instance."""
    found = list_named_actors(all_namespaces=True)
    return [each["name"] for each in found if each["namespace"] == NAMESPACE and belongs(instance, each["name"])]


def handle(name: str) -> Any:
    """The actor of this name, None where there is none."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def remove_all(instance: str, *, but_controller: bool) -> None:
    """Kill all actors of the instance and remove its placement groups. The controller goes first, or stays."""
    controller = controller_name(instance)
    for name in sorted(actors(instance), key=lambda name: name != controller):
        actor = None if but_controller and name == controller else handle(name)
        if actor is not None:
            ray.kill(actor, no_restart=True)
    for group in _groups(instance):
        found = _group(group["name"])
        if found is not None:
            remove_placement_group(found)


def groups(instance: str) -> list[str]:
    """The names of the instance's placement groups."""
    return [group["name"] for group in _groups(instance)]


def _groups(instance: str) -> list[dict[str, Any]]:
    table = placement_group_table().values()
    return [group for group in table if belongs(instance, group["name"]) and group["state"] != "REMOVED"]


def _group(name: str) -> PlacementGroup | None:
    try:
        return get_placement_group(name)
    except ValueError:
        return None


def own_address() -> str:
    """The address that Ray has for the node of this process."""
    return str(ray.util.get_node_ip_address())
