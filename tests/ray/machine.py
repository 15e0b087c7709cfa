"""One machine of a cluster: a raylet on this host, until standard input ends. For hosts in a network namespace.

In: the cluster's address, that of this machine. Out: a line with the node's id and the raylet's pid.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from lean_nodes import STARTER, lean
from marks import processes
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray_cluster import CPUS, ENVIRONMENT, STORE_BYTES, alive


def main() -> None:
    address, host = sys.argv[1:]
    os.environ |= ENVIRONMENT
    params = RayParams(
        gcs_address=address,
        node_ip_address=host,
        num_cpus=CPUS,
        num_gpus=0,
        object_store_memory=STORE_BYTES,
        include_log_monitor=False,
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        setup_worker_path=str(STARTER),
    )
    with lean():
        node = Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
    raylet = node.all_processes["raylet"][0].process.pid
    print(json.dumps([node.node_id, raylet]), flush=True)
    sys.stdin.read()
    for pid in processes(raylet, Path(os.environ["HEADRACE_HOME"])):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
