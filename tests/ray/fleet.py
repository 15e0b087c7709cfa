"""An instance on a cluster with `fault_apps` on it, and clients that ask it without end and count.

In: a cluster. Out: `fleet`, a `Fleet`, whose state can be waited for; `Clients` of the ingress of some nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import fault_apps
import pytest
import ray
from marks import environment, pids
from ray_cluster import Node, RayCluster

from bench.checked_load import Load, Tally
from bench.instance import alive, wait_for
from headrace import serve

RATE = 500  # requests a second in all


@dataclass
class Fleet:
    """The instance. `name` is its own, and nobody else's on the cluster."""

    cluster: RayCluster
    name: str

    def port(self, node: Node) -> int:
        """Where the node's ingress listens, once it does."""

        def listening() -> int | None:
            found = [proxy for proxy in serve.status().proxies.values() if proxy.node == node.id]
            return next((proxy.port for proxy in found if proxy.status == "HEALTHY"), None)

        return int(wait_for(listening, f"an ingress of {node.host} listens: {serve.status().proxies}"))

    def replicas(self) -> dict[str, Any]:
        """Those that run, by id."""
        deployments = serve.status().applications["default"].deployments.values()
        return {each.id: each for found in deployments for each in found.replicas if each.state == "RUNNING"}

    def whole(self, without: Iterable[Node] = ()) -> dict[str, Any]:
        """Wait until as many replicas run as should, none of them on these nodes."""
        hidden = {node.id for node in without}

        def running() -> dict[str, Any] | None:
            found = self.replicas()
            return found if len(found) == 4 and not hidden & {each.node for each in found.values()} else None

        return dict(wait_for(running, f"four replicas run elsewhere than on {hidden}", 90))

    def victim(self) -> tuple[Node, list[Node]]:
        """A node, not the head, with a replica that is called from other nodes; and those others."""
        there = {each.node for id, each in self.replicas().items() if id.startswith("Inner")}
        found = next(node for node in self.cluster.nodes[1:] if node.id in there)
        return found, [node for node in self.cluster.nodes if node is not found]

    def workers(self) -> set[int]:
        """The processes of replicas that there are, on any node."""
        mark = f"HEADRACE_INSTANCE={self.name}".encode()
        return {
            pid
            for pid in pids()
            if mark in (found := environment(pid))
            and alive(pid)
            and any(each.startswith((b"HEADRACE_PROCESS_ID=Door", b"HEADRACE_PROCESS_ID=Inner")) for each in found)
        }

    def actor(self, suffix: str) -> Any:
        return ray.get_actor(f"headrace:{self.name}:{suffix}", namespace="headrace")


@contextlib.contextmanager
def running(cluster: RayCluster, name: str, **options: Any) -> Iterator[Fleet]:
    """The instance, with all of its replicas up and spread over the nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_INSTANCE", name)
        patch.setenv("HEADRACE_ENGINE", "ray")
        patch.setenv("HEADRACE_ADDRESS", cluster.address)
        serve.start(http_options={"port": 0}, **options)
        try:
            serve.run(fault_apps.app)
            fleet = Fleet(cluster, name)
            fleet.whole()
            yield fleet
        finally:
            serve.shutdown()


class Clients:
    """Requests at a rate to these ports, until `stop`. Each answer is checked to be that of its request."""

    def __init__(self, *ports: int, rate: int = RATE) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.served: dict[str, set[int]] = defaultdict(set)  # replica -> the processes that answered under its name
        self.loads = [Load(port, rate // len(ports), check=self._check) for port in ports]
        for load in self.loads:
            self._run(load.start())

    def _check(self, number: int, body: bytes, answer: dict[str, Any]) -> str:
        for replica, pid in answer["by"]:
            self.served[replica].add(pid)
        return "" if answer["n"] == number else f"got the answer of {answer['n']}"

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def until_answered(self, more: int) -> None:
        """Until each port has answered `more` requests from now on."""
        for load in self.loads:
            self._run(load.until_answered(more))

    def stop(self) -> list[Tally]:
        tallies = [self._run(load.stop()) for load in self.loads]
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        return tallies

    def stop_well(self) -> None:
        """Stop; no request has failed, and none was answered by two of one name."""
        for tally in self.stop():
            assert tally.failures == [], (len(tally.failures), tally.failures[:5])
            assert tally.answered == tally.sent
        twice = {replica: found for replica, found in self.served.items() if len(found) > 1}
        assert twice == {}
