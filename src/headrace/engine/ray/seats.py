"""How an actor is asked for that holds what a process needs: Ray's options of actors and placement groups.

In: a request, the node that was chosen. Out: options for Ray, and the calls that make and end what they describe; these
block, and belong in threads.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from headrace.engine.base import ProcessRequest
from headrace.engine.ray.names import NAMESPACE, seat_name
from headrace.spec.errors import InstanceError
from headrace.spec.placement import Placement

logger = logging.getLogger(__name__)

_NODE_LABEL = "ray.io/node-id"
ANY_NUMBER_OF_CALLS = 1000  # of an async actor: calls that wait are no work


class Seating:
    """A seat that was asked for, and its placement group where it has one."""

    def __init__(self, name: str, actor: Any, group: PlacementGroup | None) -> None:
        self.name = name
        self.actor = actor
        self.group = group

    def __repr__(self) -> str:
        return f"Seating({self.name})"


def ask_for_seat(instance: str, request: ProcessRequest, node: str | None) -> Seating:
    """Ask for a seat on the node, or wherever Ray finds room. It may be placed much later. Blocks."""
    from headrace.engine.ray.host import Seat

    _check_folders(request)
    name = seat_name(instance, request.id, secrets.token_hex(4))
    group = _ask_for_group(name, request.placement, node) if request.placement.bundles else None
    options = seat_options(request, node, group)
    try:
        actor = ray.remote(Seat).options(name=name, **options).remote()
    except BaseException as error:
        if group is not None:
            remove_placement_group(group)
        if isinstance(error, (ValueError, TypeError)):
            raise InstanceError(f"{request.id} cannot be started: Ray does not take its options: {error}") from error
        raise
    return Seating(name, actor, group)


def seat_options(request: ProcessRequest, node: str | None, group: PlacementGroup | None) -> dict[str, Any]:
    """Ray's options for the actor."""
    placement = request.placement
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "max_restarts": 0,
        "max_concurrency": ANY_NUMBER_OF_CALLS,
        "num_cpus": request.resources.cpus or 0,
        "num_gpus": request.resources.gpus,
    }
    if placement.memory:
        options["memory"] = placement.memory
    if placement.resources:
        options["resources"] = dict(placement.resources)
    if placement.accelerator_type:
        options["accelerator_type"] = placement.accelerator_type
    if placement.runtime_env:
        options["runtime_env"] = dict(placement.runtime_env)
    if group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    elif node:
        # It fails at once where the room has gone meanwhile: then another node is chosen.
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False, _fail_on_unavailable=True)
    else:
        options["scheduling_strategy"] = "SPREAD"
        if placement.label_selector:
            options["label_selector"] = dict(placement.label_selector)
        if placement.fallback_label_selectors:
            fallbacks = placement.fallback_label_selectors
            options["fallback_strategy"] = [{"label_selector": dict(each)} for each in fallbacks]
    return options


def remove_seat(seating: Seating) -> None:
    """Kill the actor and give back what it held. Blocks for a moment."""
    try:
        ray.kill(seating.actor, no_restart=True)
        if seating.group is not None:
            remove_placement_group(seating.group)
    except Exception as error:  # the top of a task: Ray raises whatever it likes, and what is gone is gone
        logger.warning("%s could not be removed: %s", seating.name, error)


def _check_folders(request: ProcessRequest) -> None:
    """Raise InstanceError for a folder of one machine: Ray packs those of a driver, and who asks here is none."""
    environment = request.placement.runtime_env
    folders = [environment.get("working_dir"), *environment.get("py_modules", ())]
    for folder in folders:
        if isinstance(folder, str) and "://" not in folder:
            raise InstanceError(
                f"{request.id} cannot be started: {folder!r} in its runtime_env is a folder of one machine. The "
                "sources of an application reach every node without it; for other files give a URI that every node can "
                "read, such as https://HOST/FILES.zip, s3://BUCKET/FILES.zip or file:///SHARED/FILES.zip"
            )


def _ask_for_group(name: str, placement: Placement, node: str | None) -> PlacementGroup:
    selectors = [dict(selector) for selector in placement.bundle_label_selector]
    if node:
        selectors += [{} for _ in range(len(placement.bundles) - len(selectors))]
        selectors[0] = {_NODE_LABEL: node}
    return placement_group(
        [dict(bundle) for bundle in placement.bundles],
        strategy=placement.strategy,
        name=name,
        lifetime="detached",
        bundle_label_selector=selectors or None,
    )
