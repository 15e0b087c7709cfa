"""Loses the head of a cluster over Redis with all that runs on it, and has another one in its place; prints what became
of what, as JSON.

A program of its own that is no driver: Ray ends those with the node that they are on. It asks and deploys as users do.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fleet import Clients
from head_loss import PATIENCE_S, redis
from machine import Machine
from ray_cluster import ADDRESSES, claim_subnet

from bench.instance import wait_for

NODES = 3
REPLICAS = 4
RATE = 60  # requests a second


class Cluster:
    """Its nodes, the head first. What is asked on the head is what a command says there."""

    def __init__(self, folder: Path, redis: str) -> None:
        self.folder = folder
        self.redis = redis
        self.subnet, self.claim = claim_subnet()
        with socket.socket() as free:
            free.bind((self.host(1), 0))
            self.address = f"{self.host(1)}:{free.getsockname()[1]}"
        self.machines: list[Machine] = []

    def host(self, number: int) -> str:
        return ADDRESSES.format(subnet=self.subnet, number=number)

    def node(self, number: int, home: str) -> Machine:
        env = {"RAY_REDIS_ADDRESS": self.redis} if number == 1 else {}
        return Machine(self.address, self.host(number), self.folder / home, env=env)

    def end(self) -> None:
        for machine in self.machines:
            machine.end()
        self.claim.close()

    def command(self, *words: str) -> str:
        """What `headrace` says on the head. Raises CalledProcessError."""
        argv = [sys.executable, "-m", "headrace.cli", *words, "--engine", "ray", "--address", self.address]
        done = subprocess.run(argv, env=self.machines[0].env, capture_output=True, text=True, timeout=PATIENCE_S)
        if done.returncode:
            print(" ".join(argv), done.stdout, done.stderr, file=sys.stderr)
        done.check_returncode()
        return done.stdout

    def status(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.command("status", "--json"))
        return said

    def deploy(self, *words: str) -> None:
        """An application of `fault_apps`."""
        self.command("run", *words, "--app-dir", str(Path(__file__).parent), "--port", "0")


def ports(status: dict[str, Any], machine: Machine) -> list[int]:
    """Where the node's ingress listens."""
    proxies = status["proxies"].values()
    return [proxy["port"] for proxy in proxies if proxy["node"] == machine.id and proxy["status"] == "HEALTHY"]


def replicas(status: dict[str, Any], application: str = "default") -> dict[str, Any]:
    """Those that run, by id."""
    deployments = status["applications"][application]["deployments"].values()
    return {each["id"]: each for found in deployments for each in found["replicas"] if each["state"] == "RUNNING"}


def story(cluster: Cluster) -> dict[str, Any]:
    for number in range(1, NODES + 1):
        cluster.machines.append(cluster.node(number, f"{number}"))
    lost = cluster.machines[0]
    cluster.deploy("fault_apps:app")
    before = cluster.status()
    clients = Clients(*(port for machine in cluster.machines[1:] for port in ports(before, machine)), rate=RATE)
    clients.until_answered(50)

    lost.lose()
    clients.until_answered(200)
    head = cluster.machines[0] = cluster.node(1, "new")

    def whole() -> dict[str, Any] | None:
        status = cluster.status()
        running = {each["node"] for each in replicas(status).values()}
        there = len(replicas(status)) == REPLICAS and lost.id not in running
        return status if there and ports(status, head) and not ports(status, lost) else None

    after = wait_for(whole, "all runs again without the head that was lost", PATIENCE_S)
    clients.until_answered(50)
    cluster.deploy("fault_apps:second", "--name", "second", "--route-prefix", "/second")
    tallies = clients.stop()
    elsewhere = {id for id, each in replicas(before).items() if each["node"] != lost.id}
    told = {
        "failed": [failure for tally in tallies for failure in tally.failures][:5],
        "unanswered": sum(tally.sent - tally.answered for tally in tallies),
        "two of one name": [name for name, found in clients.served.items() if len(found) > 1],
        "some ran on the head that was lost": len(elsewhere) < REPLICAS,
        "others were left alone": elsewhere <= set(replicas(after)),
        "revision": after["applications"]["default"]["revision"],
        "deployed afterwards": len(replicas(cluster.status(), "second")),
    }
    cluster.command("shutdown")
    return told


def main() -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp", ignore_cleanup_errors=True))
        os.environ.setdefault("RAY_TESTS_RUN", str(os.getpgid(0)))
        cluster = Cluster(Path(folder), stack.enter_context(redis()))
        stack.callback(cluster.end)
        print(json.dumps(story(cluster)))


if __name__ == "__main__":
    main()
