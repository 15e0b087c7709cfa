"""Where a process may run and what is set aside for it there, beyond CPUs and GPUs: for engines with many nodes."""

from __future__ import annotations

from typing import Any

import msgspec

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica needs of the node that it is placed on; the names are Ray's (docs/reference/options.md).

    `memory` is in bytes. `resources` are custom ones, by name. Where no node is as `label_selector` wants, the first of
    `fallback_label_selectors` that fits one counts. `runtime_env` is Ray's, without `env_vars`, which every engine
    knows. `bundles` make a placement group of the replica, which runs in the first of them; `strategy` is the group's,
    and `bundle_label_selector` has one for each. `max_per_node` bounds how many of the same `group` (the key of a
    deployment) share a node; 0: no bound.
    """

    resources: dict[str, float] = {}
    memory: int = 0
    accelerator_type: str = ""
    label_selector: dict[str, str] = {}
    fallback_label_selectors: tuple[dict[str, str], ...] = ()
    runtime_env: dict[str, Any] = {}
    bundles: tuple[dict[str, float], ...] = ()
    bundle_label_selector: tuple[dict[str, str], ...] = ()
    strategy: str = "PACK"
    max_per_node: int = 0
    group: str = ""
