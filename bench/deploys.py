"""Deploys under load: `python -m bench.deploys [--deploys 50] [--rate 1000] [--strategy canary] [--kill-controller]`.

In: nothing but the arguments. A graph of two deployments, each of which answers with its version, is deployed again and
again, each time as a new revision, while requests come at a rate. Out: how many failed, how many were answered by
halves of two revisions, how long they and the deploys took; status 1 when any failed or was mixed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from typing import Any

from bench.apps import versioned
from bench.checked_load import Load
from bench.instance import free_port
from headrace import serve
from headrace.engine.directory import instance_directory

STRATEGIES = {
    "rolling_update": serve.RollingUpdate(),
    "surge_of_one": serve.RollingUpdate(max_surge=1),
    "canary": serve.Canary(steps=[(0.1, 0.2), (0.5, 0.2)], analysis=[]),
    "blue_green": serve.BlueGreen(hold_s=0.2),
}


def check(number: int, body: bytes, answer: dict[str, Any]) -> str:
    """Whether the answer is that of this request, and of one revision."""
    if answer["n"] != number:
        return f"got the answer of {answer['n']}"
    if len(set(answer["versions"])) != 1 or len(set(answer["revisions"])) != 1:
        return f"was answered by halves: versions {answer['versions']}, revisions {answer['revisions']}"
    return ""


async def deploy_all(arguments: argparse.Namespace) -> list[float]:
    """Deploy again and again; how long each took, in seconds."""
    took: list[float] = []
    strategy = STRATEGIES[arguments.strategy]
    for number in range(1, arguments.deploys + 1):
        began = time.monotonic()
        application = versioned.application(number, arguments.replicas)
        await asyncio.to_thread(serve.run, application, name="versioned", rollout=strategy)
        if arguments.kill_controller and number % 5 == 0:
            kill_controller()  # in the middle of the rollout, where its strategy has one
        await asyncio.to_thread(serve.wait_for_rollout, "versioned", 60.0)
        took.append(time.monotonic() - began)
        print(f"deploy {number}: {took[-1]:.2f} s", file=sys.stderr, flush=True)
    return took


def kill_controller() -> None:
    """As by `kill -9`: the keeper starts another one."""
    for pid in children(instance_directory(os.environ["HEADRACE_INSTANCE"]).keeper_pid() or 0):
        if "HEADRACE_PROCESS_ID=controller" in environment(pid):
            os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def environment(pid: int) -> list[str]:
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read().decode(errors="replace").split("\0")


async def measure(arguments: argparse.Namespace, port: int) -> int:
    await asyncio.to_thread(serve.run, versioned.application(0, arguments.replicas), name="versioned")
    load = Load(port, arguments.rate, check=check)
    await load.start()
    await asyncio.sleep(1.0)
    took = await deploy_all(arguments)
    tally = await load.stop()
    mixed = [failure for failure in tally.failures if "by halves" in failure]
    print(f"{arguments.deploys} deploys ({arguments.strategy}), median {statistics.median(took):.2f} s each")
    print(f"requests: {tally.sent} at {arguments.rate}/s, {tally.answered} answered, {len(tally.failures)} failed")
    print(f"answered by halves of two revisions: {len(mixed)}; slowest answer {tally.slowest_s * 1000:.0f} ms")
    for failure in tally.failures[:20]:
        print(f"  {failure}")
    return 1 if tally.failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.deploys", description=__doc__)
    parser.add_argument("--deploys", type=int, default=50)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--strategy", choices=sorted(STRATEGIES), default="rolling_update")
    parser.add_argument("--kill-controller", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as home:
        os.environ |= {"HEADRACE_HOME": home, "HEADRACE_INSTANCE": "deploys"}
        port = free_port()
        serve.start(http_options={"port": port})
        try:
            return asyncio.run(measure(arguments, port))
        finally:
            serve.shutdown()


if __name__ == "__main__":
    sys.exit(main())
