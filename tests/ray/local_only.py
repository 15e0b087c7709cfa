"""Which tests of instances are about one machine, and why: they do not run on a Ray cluster. All others do.

In: the node ids of tests. Out: the reason, None for what runs on any engine.
"""

from __future__ import annotations

# By what the node ids begin with.
LOCAL_ONLY: dict[str, str] = {}


def reason(nodeid: str) -> str | None:
    """Why the test does not run on a cluster."""
    return next((why for name, why in LOCAL_ONLY.items() if nodeid.startswith(name)), None)
