"""A Ray cluster of several nodes on this machine: `ray.cluster_utils.Cluster`, with addresses that differ.

In: how many nodes, what each has, what the GCS keeps its state in. Out: `RayCluster`, whose nodes can be added, killed
as by a power cut, and looked into. Each node has an address of its own in 127.0.0.0/8, so that what goes between them
goes over TCP, and a HEADRACE_HOME of its own, as each machine of a cluster has.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from lean_nodes import STARTER, lean
from marks import descendants, processes
from ray.cluster_utils import Cluster

from bench.instance import alive, wait_for

# Ray takes 127.0.0.1 for "this machine" and puts the machine's address in its place: other loopback addresses are kept.
ADDRESSES = "127.0.{subnet}.{number}"
SUBNETS = range(10, 250)
NODES = 3
CPUS = 16  # of each node, as far as Ray is concerned: all tests find room, whatever the machine has
STORE_BYTES = 80 * 1024 * 1024
ENVIRONMENT = {
    # As Ray has it, all of an instance would wait for the tests that ask it, when they have no processor to spare.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # as it will be: without it Ray warns at each start
    "PYTHONUNBUFFERED": "1",
}


@dataclass
class Node:
    """A node that was started. `home` is its HEADRACE_HOME, `raylet` the pid of its raylet."""

    host: str
    home: Path
    started: Any = field(repr=False)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Ray's name of the node."""
        return str(self.started.node_id)

    @property
    def raylet(self) -> int:
        return int(self.started.all_processes["raylet"][0].process.pid)

    def processes(self) -> list[int]:
        """All that runs on this node: the raylet, its workers, and whatever they started."""
        return [pid for pid in processes(self.raylet, self.home) if alive(pid)]

    def kill(self) -> None:
        """As by a power cut: kill -9 of the raylet with its workers and all that they started; none hears of it.

        Ray takes 15 s to tell (five health checks, 3 s apart: `RAY_health_check_period_ms`,
        `RAY_health_check_failure_threshold`); that the raylet's connections broke says nothing to it.
        """
        kill_all(self.processes, self.host)


class RayCluster:
    """A cluster with this process as a driver on its head node: not any more on the one that it was on before, until it
    leaves this one. Use as a context manager.

    `subnet` is nobody else's, for who asks again at an address after its process has died must not get another
    cluster's; `addresses` are those of nodes. `redis` ("host:port") keeps the state of the GCS, `env` is what the
    processes of all nodes get.
    """

    addresses = ADDRESSES

    def __init__(
        self,
        nodes: int = NODES,
        *,
        redis: str = "",
        cpus: int = CPUS,
        gpus: int = 0,
        env: dict[str, str] | None = None,
    ) -> None:
        self.count, self.redis, self.cpus, self.gpus = nodes, redis, cpus, gpus
        self.env = env or {}
        self.told = Path("/nonexistent")
        self.nodes: list[Node] = []
        self._outer = ""

    def __enter__(self) -> RayCluster:
        self.folder = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))  # short: sockets have their paths below
        kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("HEADRACE_")}
        self._restored = kept
        os.environ |= ENVIRONMENT
        os.environ.setdefault("RAY_TESTS_RUN", str(os.getpgid(0)))
        self.subnet, self._claim = claim_subnet()
        if self.redis:
            os.environ["RAY_REDIS_ADDRESS"] = self.redis
        self.cluster = Cluster()
        try:
            for _ in range(self.count):
                self.add_node(wait=False)
            self.cluster.wait_for_nodes()
            self._outer = leave()
            join(self.address)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()
        for node in self.nodes:
            node_processes = node.processes()
            if node.started is not self.cluster.head_node and not alive(node.raylet):
                self.cluster.remove_node(node.started, allow_graceful=False)
            for pid in node_processes:
                if pid not in descendants(node.raylet):
                    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                        os.kill(pid, signal.SIGKILL)
        self.cluster.shutdown()
        self._claim.close()
        if self._outer:
            join(self._outer)
        os.environ.pop("RAY_REDIS_ADDRESS", None)
        os.environ |= self._restored
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """What `--address` wants."""
        return str(self.cluster.address)

    @property
    def head(self) -> Node:
        return self.nodes[0]

    def add_node(self, *, number: int = 0, wait: bool = True, env: dict[str, str] | None = None, **rest: Any) -> Node:
        """Start a node; `number` is that of its address (0: the next that is free), `env` what its processes get."""
        number = number or min(set(range(1, 250)) - {int(node.host.rpartition(".")[2]) for node in self.nodes})
        host = self.addresses.format(subnet=self.subnet, number=number)
        home = self.folder / str(number)
        env = {"HEADRACE_HOME": str(home), **self.env, **self.node_environment(number), **(env or {})}
        with lean():
            started = self.cluster.add_node(
                wait=wait,
                node_ip_address=host,
                env_vars=env,
                num_cpus=rest.pop("num_cpus", self.cpus),
                num_gpus=rest.pop("num_gpus", self.gpus),
                object_store_memory=STORE_BYTES,
                include_log_monitor=False,
                no_monitor=True,
                setup_worker_path=str(STARTER),
                **rest,
            )
        node = Node(host, home, started, env)
        self.nodes.append(node)
        return node

    def node_environment(self, number: int) -> dict[str, str]:
        """What the processes of this node get beside the rest: for clusters that are something special."""
        return {}

    def kill(self, node: Node) -> None:
        """Kill the node, and have it no more. `add_node` may use its address again."""
        node.kill()
        self.cluster.remove_node(node.started, allow_graceful=False)
        self.nodes.remove(node)
        shutil.rmtree(node.home, ignore_errors=True)  # whoever comes next at this address is another machine

    def instances(self) -> list[str]:
        """The names of the instances that are there."""
        names = [str(actor["name"]) for actor in ray.util.list_named_actors(all_namespaces=True)]
        return [name.split(":")[1] for name in names if name.startswith("headrace:") and name.endswith(":controller")]

    def environment(self, node: Node | None = None) -> dict[str, str]:
        """The environment of a program that is started on the node (None: the head) by hand."""
        return os.environ | {**(node or self.head).env, "HEADRACE_ENGINE": "ray", "HEADRACE_ADDRESS": self.address}


def kill_all(processes: Callable[[], list[int]], what: str) -> None:
    """SIGKILL to all of them at one moment, and to those that one of them may just have started."""
    while doomed := processes():
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in doomed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        wait_for(lambda doomed=doomed: not any(alive(pid) for pid in doomed), f"{what} is dead", 20)


def claim_subnet() -> tuple[int, socket.socket]:
    """One that no other cluster on this machine has until the socket is closed."""
    for number in SUBNETS:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0headrace-tests-subnet-{number}")
        except OSError:
            claim.close()
            continue
        return number, claim
    raise RuntimeError(f"all subnets from 127.0.{SUBNETS[0]}.0 to 127.0.{SUBNETS[-1]}.0 have a cluster")


def join(address: str) -> None:
    """Make this process a driver of the cluster."""
    ray.init(address=address, namespace="headrace", log_to_driver=False, logging_level="ERROR")


def leave() -> str:
    """Leave the cluster that this process is a driver of, for it can be one of a single cluster: its address, or ""."""
    if not ray.is_initialized():
        return ""
    address = str(ray.get_runtime_context().gcs_address)
    ray.shutdown()
    return address
