"""Draws the cable of a machine of a cluster under traffic, for a time that Ray does not notice, and until it does;
prints what became of what, as JSON.

A program of its own that starts itself once more on the first machine, the head of the cluster: whoever asks does so
from there. Everything of a machine is in its network namespace, Ray's processes too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from fleet import Clients, Fleet, running
from machine import Machine
from marks import environment, home, pids
from namespaces import HOST, Namespaces
from ray_cluster import RayCluster, alive

from bench.instance import wait_for
from headrace import serve

MACHINES = 3
CUT_S = 10.0
PATIENCE_S = 90.0
REPLICAS = (b"HEADRACE_PROCESS_ID=Door", b"HEADRACE_PROCESS_ID=Inner")
RATE = 80  # requests a second


class Head(RayCluster):
    """The head alone: the other nodes are machines."""

    addresses = HOST


class Namespaced(Machine):
    """A node in a namespace of its own, with the number of that."""

    def __init__(self, number: int, network: Namespaces, cluster: RayCluster) -> None:
        self.number = number
        host, folder = HOST.format(number=number), cluster.folder / f"m{number}"
        super().__init__(cluster.address, host, folder, partial(network.command, number))

    def workers(self) -> set[int]:
        """The processes of replicas that live there."""
        return {
            pid
            for pid in pids()
            if home(pid) == str(self.home)
            and any(each.startswith(REPLICAS) for each in environment(pid))
            and alive(pid)
        }


class Story:
    """What happens, and what is told of it."""

    def __init__(self, fleet: Fleet, network: Namespaces, machines: list[Namespaced]) -> None:
        self.fleet, self.network, self.machines = fleet, network, machines
        self.clients = Clients(fleet.port(fleet.cluster.head), rate=RATE)
        self.clients.until_answered(100)

    def short(self, cut: Namespaced) -> dict[str, Any]:
        """Its cable is out for ten seconds: Ray takes that for nothing."""
        stale, elsewhere = self._cut(cut)
        began = time.monotonic()
        self._whole(without=cut)
        told: dict[str, Any] = {"whole again after": time.monotonic() - began, "ran on meanwhile": len(stale)}
        until("the time is over", lambda: time.monotonic() - began > CUT_S)
        told["Ray noticed"] = not known_to_ray(cut)
        self.network.restore(cut.number)
        self._gone(cut, stale)
        self._served_at(cut)
        told["others were left alone"] = elsewhere <= set(self.fleet.replicas())
        return told

    def long(self, cut: Namespaced) -> dict[str, Any]:
        """Its cable is out until Ray says that it is dead. It cannot be part of the cluster any more as it is."""
        stale, elsewhere = self._cut(cut)
        self._whole(without=cut)
        until("Ray notices", lambda: not known_to_ray(cut))
        told: dict[str, Any] = {"ran on meanwhile": len(stale & cut.workers())}
        self.network.restore(cut.number)
        until("its raylet has heard that it is dead", lambda: not alive(cut.raylet))
        self._gone(cut, stale)
        told["others were left alone"] = elsewhere <= set(self.fleet.replicas())
        cut.end()
        self.machines.remove(cut)
        self.machines.append(Namespaced(cut.number, self.network, self.fleet.cluster))
        self._served_at(self.machines[-1])
        return told

    def end(self) -> dict[str, Any]:
        """One truth: what is said to run is what runs, and nobody answered under the name of another."""
        self.clients.until_answered(200)
        tallies = self.clients.stop()
        said = {each.pid for each in self.fleet.replicas().values()}
        until("nothing runs but what should", lambda: self.fleet.workers() == said)
        return {
            "failed": [failure for tally in tallies for failure in tally.failures][:5],
            "answered": sum(tally.answered for tally in tallies),
            "two of one name": [name for name, found in self.clients.served.items() if len(found) > 1],
        }

    def _cut(self, machine: Namespaced) -> tuple[set[int], set[str]]:
        """Draw it; the processes of replicas that are there, and the ids of those that are not."""
        elsewhere = {id for id, each in self.fleet.replicas().items() if each.node != machine.id}
        stale = machine.workers()
        self.network.cut(machine.number)
        return stale, elsewhere

    def _whole(self, without: Namespaced) -> None:
        def elsewhere() -> bool:
            found = self.fleet.replicas()
            return len(found) == 4 and without.id not in {each.node for each in found.values()}

        until(f"four replicas run elsewhere than on {without.number}", elsewhere)
        self.clients.until_answered(100)

    def _gone(self, machine: Namespaced, stale: set[int]) -> None:
        until(f"what is stale on {machine.number} has ended", lambda: not stale & machine.workers())

    def _served_at(self, machine: Namespaced) -> None:
        def listens() -> bool:
            proxies = serve.status().proxies.values()
            return any(each.node == machine.id and each.status == "HEALTHY" for each in proxies)

        until(f"{machine.number} has its ingress", listens)


def known_to_ray(machine: Namespaced) -> bool:
    """Whether Ray takes the machine for one that lives."""
    return any(node["NodeID"] == machine.id and node["Alive"] for node in ray.nodes())


def until(what: str, condition: Callable[[], Any]) -> None:
    wait_for(condition, what, PATIENCE_S)


def on_head(network: Namespaces) -> None:
    # Ray asks each node five times whether it lives, 3 s apart, and would wait 10 s for each answer: a minute in all.
    os.environ |= {"RAY_health_check_timeout_ms": "4000"}
    with Head(1) as cluster:
        machines = [Namespaced(number, network, cluster) for number in range(2, MACHINES + 1)]
        try:
            until("all are there", lambda: all(map(known_to_ray, machines)))
            with running(cluster, "cut-off") as fleet:
                used = {each.node for id, each in fleet.replicas().items() if id.startswith("Inner")}
                first = next(machine for machine in machines if machine.id in used)
                story = Story(fleet, network, machines)
                told = {"short": story.short(first)}
                # All that ran on the first runs on the others now.
                told["long"] = story.long(next(machine for machine in machines if machine is not first))
                print(json.dumps(told | {"end": story.end()}))
        finally:
            for machine in machines:
                machine.end()


def main() -> int:
    if len(sys.argv) > 1:
        on_head(Namespaces(MACHINES, sys.argv[1]))
        return 0
    with Namespaces(MACHINES) as network:
        return subprocess.call(network.command(1, sys.executable, __file__, network.prefix))


if __name__ == "__main__":
    sys.exit(main())
