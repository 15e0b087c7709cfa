"""The options of deployments of 2021 that present ones do not have: taken where they stand, told of where it matters.

In: options of `@serve.deployment` and `.options()`. Out: those of 2021 apart from the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.spec.options import GONE

NAMES = frozenset((*GONE, "prev_version", "_autoscaling_config"))


def taken_apart(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the present options, those of 2021)."""
    present = {name: value for name, value in given.items() if name not in NAMES}
    return present, {name: value for name, value in given.items() if name in NAMES}
