"""Ray's nodes without what nobody asks here: the dashboard, and the agent of it on each node.

In: whoever starts nodes of Ray's in this process. Out: nodes that start in half of the processor's time. Where a
package of the dashboard's is missing, as it is here, its agent does no more than to say so.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray._private.node
import ray._private.services

STARTER = Path(__file__).with_name("start_worker.py")
# The ports that a node's agent of the dashboard has: none. The raylet waits to hear that.
NO_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
AGENT = "--dashboard_agent_command="


@contextlib.contextmanager
def lean() -> Iterator[None]:
    """Nodes that are started meanwhile are such."""
    start = ray._private.services.start_ray_process

    def start_leaner(command: list[str], process_type: str, *rest: Any, **options: Any) -> Any:
        return start([_without_agent(each) for each in command], process_type, *rest, **options)

    def no_dashboard(node: Any, **_: Any) -> None:
        node._webui_url = ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray._private.services, "start_ray_process", start_leaner)
        patch.setattr(ray._private.node.Node, "start_api_server", no_dashboard)
        yield


def _without_agent(argument: str) -> str:
    """The argument of a raylet; where it is the command of the agent, what that says is said, and a program that ends
    with the raylet takes its place.
    """
    if not argument.startswith(AGENT):
        return argument
    told = {name: re.search(rf"--{name}=(\S+)", argument) for name in ("session-dir", "node-id")}
    folder, node = (found[1] for found in told.values() if found is not None)
    for name in NO_PORTS:
        Path(folder, f"{name}_{node}").write_text("-1")
    return AGENT + shlex.join(["/bin/sh", "-c", "exec tail --pid=$PPID -f /dev/null"])
