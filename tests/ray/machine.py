"""One machine of a cluster: a node of Ray's, until standard input ends. For hosts that are a network namespace, or that
are lost with all that is on them.

In: the cluster's address, that of this machine; where they are the same host it is the head, with a GCS at that port.
Out: a line with the node's id and the raylet's pid. `Machine` is such a process, as whoever starts it sees it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from lean_nodes import STARTER, lean
from marks import processes
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray_cluster import CPUS, ENVIRONMENT, STORE_BYTES, alive, kill_all


class Machine:
    """The node at `host` of the cluster at `address`. `home` is its HEADRACE_HOME, `command` what runs a program there,
    `env` what all that runs there has besides.
    """

    def __init__(
        self,
        address: str,
        host: str,
        home: Path,
        command: Callable[..., list[str]] = lambda *argv: list(argv),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        self.env |= {"HEADRACE_HOME": str(home), **(env or {})}
        self.process = subprocess.Popen(
            command(sys.executable, __file__, address, host),
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.id, self.raylet = json.loads(self.process.stdout.readline())

    def processes(self) -> list[int]:
        """All that runs there."""
        return [pid for pid in processes(self.raylet, self.home) if alive(pid)]

    def lose(self) -> None:
        """As by a power cut: all that runs there is killed, and none hears of it."""
        kill_all(self.processes, str(self.home))
        self.process.wait(20)

    def end(self) -> None:
        """As if it were switched off."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)


def main() -> None:
    address, host = sys.argv[1:]
    os.environ |= ENVIRONMENT
    own, _, port = address.rpartition(":")
    head = own == host
    params = RayParams(
        gcs_address=None if head else address,
        gcs_server_port=int(port) if head else None,
        node_ip_address=host,
        num_cpus=CPUS,
        num_gpus=0,
        object_store_memory=STORE_BYTES,
        include_log_monitor=False,
        no_monitor=True,
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        setup_worker_path=str(STARTER),
    )
    with lean():
        node = Node(params, head=head, shutdown_at_exit=False, spawn_reaper=False)
    raylet = node.all_processes["raylet"][0].process.pid
    print(json.dumps([node.node_id, raylet]), flush=True)
    sys.stdin.read()
    for pid in processes(raylet, Path(os.environ["HEADRACE_HOME"])):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
