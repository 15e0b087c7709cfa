"""What breaks at 3 a.m.: `python -m bench.chaos [--seconds 60] [--rate 300] [--seed N] [--only kill-replica,deploy]`.

In: nothing but the arguments. A real instance (two deployments, two replicas each, two ingress processes) is loaded
while, at random, processes are killed and stopped, and the application is deployed anew and scaled. Out: what was done,
what became of each request, memory and descriptors of each process over time; status 1 when a request failed that
should not have, when the instance did not come back to what it should be, or when something was left behind.

Only the connections of a killed ingress may break. A request is late when it takes more than a second from its due
time: those that a stopped process held are, and no others should be.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.checked_load import Load, Tally
from bench.instance import Instance, alive, wait_for

APPLICATION = Path(__file__).parent / "apps" / "chaos_app.py"
CONNECTIONS = 100
LARGE_BYTES = (100_000, 1_000_000)
LARGE_SHARE = 0.02
SAMPLE_S = 5.0
BACK_WITHIN_S = 60.0


def body_of(number: int) -> bytes:
    """A request: small, or one in fifty of up to a megabyte. The number decides."""
    chance = random.Random(number)
    size = chance.randint(*LARGE_BYTES) if chance.random() < LARGE_SHARE else 0
    return b'{"n": %d}' % number + b"x" * size


def check(number: int, body: bytes, answer: dict[str, Any]) -> str:
    """Whether the answer is that of this request, of its whole body, and of one revision."""
    if answer["n"] != number:
        return f"got the answer of {answer['n']}"
    if answer["crc"] != zlib.crc32(body):
        return f"arrived changed ({len(body)} bytes)"
    if len(set(answer["versions"])) != 1:
        return f"was answered by two revisions: {answer['versions']}"
    return ""


class Chaos:
    """The faults, and what was done by whom when. Each fault returns what it did, in words."""

    def __init__(self, instance: Instance, folder: Path, seed: int) -> None:
        self.instance = instance
        self.folder = folder
        self.random = random.Random(seed)
        self.version = 0
        self.wanted = {"Front": 2, "Back": 2}
        self.killed_doors = 0
        self.problems: list[str] = []
        self._began = time.monotonic()
        self._deploys: set[asyncio.Task[None]] = set()
        self.faults: dict[str, Callable[[], Awaitable[str]]] = {
            "kill-replica": self.kill_replica,
            "kill-deployment": self.kill_deployment,
            "kill-controller": self.kill_controller,
            "kill-controller-and-replica": self.kill_controller_and_replica,
            "kill-ingress": self.kill_ingress,
            "stop-replica": self.stop_replica,
            "stop-controller": self.stop_controller,
            "stop-ingress": self.stop_ingress,
            "deploy": self.deploy_new_code,
            "scale": self.scale,
            "deploy-and-kill-controller": self.deploy_and_kill_controller,
        }

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {text}", flush=True)

    def processes(self, prefix: str) -> dict[str, int]:
        return {name: pid for name, pid in self.instance.children().items() if name.startswith(prefix)}

    def _kill(self, names: dict[str, int]) -> str:
        for pid in names.values():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it left by itself meanwhile
        return f"kill -9 {', '.join(names) or 'nobody'}"

    def _one(self, found: dict[str, int]) -> dict[str, int]:
        return dict([self.random.choice(sorted(found.items()))]) if found else {}

    def _replicas(self) -> dict[str, int]:
        return self.processes(self.random.choice(["Front#", "Back#"]))

    async def kill_replica(self) -> str:
        return self._kill(self._one(self._replicas()))

    async def kill_deployment(self) -> str:
        return self._kill(self._replicas())

    async def kill_controller(self) -> str:
        return self._kill(self.processes("controller"))

    async def kill_controller_and_replica(self) -> str:
        return self._kill(self.processes("controller") | self._one(self._replicas()))

    async def kill_ingress(self) -> str:
        doors = self.processes("ingress#")
        if len(doors) < 2:
            return "left the only ingress alone"
        self.killed_doors += 1
        return self._kill(self._one(doors))

    async def _stop(self, names: dict[str, int]) -> str:
        seconds = self.random.uniform(0.3, 3.0)
        for pid in names.values():
            os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            for pid in names.values():
                if alive(pid):
                    os.kill(pid, signal.SIGCONT)
        return f"stopped {', '.join(names)} for {seconds:.1f} s"

    async def stop_replica(self) -> str:
        return await self._stop(self._one(self._replicas()))

    async def stop_controller(self) -> str:
        return await self._stop(self.processes("controller"))

    async def stop_ingress(self) -> str:
        return await self._stop(self._one(self.processes("ingress#")))

    async def deploy_new_code(self) -> str:
        self.version += 1
        self._deploy()
        return f"began to deploy version {self.version}"

    async def scale(self) -> str:
        self.wanted = {name: self.random.randint(1, 4) for name in self.wanted}
        self._deploy()
        return f"began to scale to {self.wanted}"

    async def deploy_and_kill_controller(self) -> str:
        did = await self.deploy_new_code()
        await asyncio.sleep(self.random.uniform(0.2, 1.5))
        return f"{did}, {self._kill(self.processes('controller'))}"

    def _deploy(self) -> None:
        task = asyncio.create_task(self._run_deploy(self.version, dict(self.wanted)))
        self._deploys.add(task)
        task.add_done_callback(self._deploys.discard)

    async def _run_deploy(self, version: int, wanted: dict[str, int]) -> None:
        """`serve.run` of this version in a process of its own. A later deploy may take its place, nothing else."""
        name = f"chaos_v{version}"
        code = APPLICATION.read_text().replace("VERSION = 0", f"VERSION = {version}")
        (self.folder / f"{name}.py").write_text(code)
        script = f"from headrace import serve; import {name}; serve.run({name}.application(**{lowered(wanted)}))"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script),
            cwd=self.folder,
            env=self.instance.env | {"HEADRACE_INSTANCE": self.instance.name},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        text = output.decode(errors="replace").strip()
        if process.returncode == 0:
            self.say(f"    version {version} {wanted} runs")
        elif "meanwhile" in text:
            self.say(f"    version {version} {wanted} was overtaken by a later deploy")
        else:
            self.problems.append(f"the deploy of version {version} {wanted} failed: {text[-600:]}")
            self.say(f"    {self.problems[-1]}")

    async def settle(self) -> None:
        """Wait until no deploy is under way."""
        while self._deploys:
            await asyncio.wait(self._deploys)

    def off_target(self) -> str:
        """What is not as it should be, "" for nothing."""
        done = self.instance.cli("status", "--json")
        if done.returncode:
            return done.stderr.strip() or "no status"
        status = self.instance.status()
        app = status["applications"].get("default", {"status": "missing", "deployments": {}})
        states = {name: proxy["status"] for name, proxy in status["proxies"].items()}
        if app["status"] != "RUNNING" or set(states.values()) != {"HEALTHY"} or len(states) != 2:
            return f"the application is {app['status']} ({app.get('message', '')}), the doors are {states}"
        for name, number in self.wanted.items():
            deployment = app["deployments"][name]
            if deployment["status"] != "HEALTHY" or deployment["replica_states"] != {"RUNNING": number}:
                return f"{name} is {deployment['status']} with {deployment['replica_states']}, {number} are wanted"
        names = {name for name in self.instance.children() if "#" in name and not name.startswith("ingress")}
        known = {f"{each['id']}@default" for d in app["deployments"].values() for each in d["replicas"]}
        return "" if names == known else f"processes {sorted(names)} are not the replicas {sorted(known)}"


def lowered(wanted: dict[str, int]) -> dict[str, int]:
    return {name.lower(): number for name, number in wanted.items()}


class Watch:
    """Memory (PSS), descriptors, threads of each process, and zombies, again and again."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.seen: dict[str, list[tuple[float, float, int, int]]] = {}
        self.zombies = 0

    def sample(self) -> None:
        now = time.monotonic()
        for name, pid in (self.instance.children() | {"keeper": self.instance.process.pid}).items():
            try:
                proc = Path(f"/proc/{pid}")
                rollup = (proc / "smaps_rollup").read_text()
                pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1e3
                files, threads = len(list((proc / "fd").iterdir())), len(list((proc / "task").iterdir()))
            except (OSError, StopIteration):
                continue  # it ended meanwhile
            self.seen.setdefault(f"{name} ({pid})", []).append((now, pss, files, threads))
        self.zombies = max(self.zombies, zombies_of(self.instance.process.pid))

    async def run(self) -> None:
        while True:
            await asyncio.to_thread(self.sample)
            await asyncio.sleep(SAMPLE_S)

    def report(self) -> str:
        """A line for each process that was seen twice: first, highest and last figure."""
        lines = [
            f"{'process':34}{'age':>6}   {'PSS MB first/most/last':>24}   {'files f/m/l':>14}   {'threads f/m/l':>13}"
        ]
        for name, samples in self.seen.items():
            if len(samples) < 2:
                continue
            age = samples[-1][0] - samples[0][0]
            columns = list(zip(*samples, strict=True))
            pss, files, threads = ((c[0], max(c), c[-1]) for c in columns[1:])
            lines.append(
                f"{name:34}{age:5.0f}s   {pss[0]:8.1f}/{pss[1]:6.1f}/{pss[2]:6.1f}   "
                f"{files[0]:5}/{files[1]:4}/{files[2]:4}   {threads[0]:4}/{threads[1]:3}/{threads[2]:3}"
            )
        return "\n".join([*lines, f"most zombies at once: {self.zombies}"])


def zombies_of(parent: int) -> int:
    """How many ended children of the process nobody has reaped at this moment."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found += fields[0] == "Z" and int(fields[1]) == parent
    return found


async def rage(chaos: Chaos, load: Load, names: list[str], seconds: float) -> None:
    """One fault after the other, each at a time of its own, for `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(chaos.random.uniform(0.2, 4.0))
        before = len(load.tally.failures)
        name = chaos.random.choice(names)
        chaos.say(await chaos.faults[name]())
        await asyncio.sleep(0.5)
        for failure in load.tally.failures[before : before + 5]:
            chaos.say(f"    FAILED {failure}")


async def run(instance: Instance, chaos: Chaos, watch: Watch, options: argparse.Namespace) -> Tally:
    load = Load(instance.port, options.rate, connections=CONNECTIONS, body=body_of, check=check)
    await load.start()
    watching = asyncio.create_task(watch.run())
    names = [name for name in options.only.split(",") if name] or list(chaos.faults)
    await rage(chaos, load, names, options.seconds)
    await chaos.settle()
    tally = await load.stop()
    end = time.monotonic() + BACK_WITHIN_S
    while (wrong := await asyncio.to_thread(chaos.off_target)) and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    if wrong:
        chaos.problems.append(f"not back to what it should be after {BACK_WITHIN_S:.0f} s: {wrong}")
    await asyncio.to_thread(watch.sample)
    watching.cancel()
    return tally


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description="Faults at random under load.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults happen (default 60)")
    parser.add_argument("--rate", type=int, default=300, help="requests a second (default 300)")
    parser.add_argument("--seed", type=int, default=None, help="of the faults; printed, to repeat a run")
    parser.add_argument("--only", default="", help="names of faults, separated by commas")
    parser.add_argument("--log", default="", help="write what the instance printed to this file")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    return options


def main() -> int:
    options = parse_arguments()
    print(f"seed {options.seed}, {options.rate} requests a second for {options.seconds:g} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        (folder / "chaos_v0.py").write_text(APPLICATION.read_text())
        instance = Instance(folder / "home", "chaos_v0:app", folder, "--ingress-workers", "2", name="chaos")
        try:
            with instance:
                instance.ready()
                watch = Watch(instance)
                chaos = Chaos(instance, folder, options.seed)
                tally = asyncio.run(run(instance, chaos, watch, options))
            wait_for(lambda: not instance.children(), "all its processes are gone", 20)
        finally:
            if options.log:
                Path(options.log).write_text(instance.text)
    unexpected = [failure for failure in tally.failures if "its connection broke" not in failure]
    if tally.broken and not chaos.killed_doors:
        chaos.problems.append(f"{tally.broken} connections broke though no ingress was killed")
    if unexpected:
        chaos.problems.append(f"{len(unexpected)} requests failed; the first: {unexpected[0]}")
    print(f"\n{watch.report()}\n")
    print(
        f"{tally.sent} requests: {tally.answered} answered rightly by {len(tally.by)} replicas, "
        f"{len(unexpected)} failed, {tally.broken} lost with their connection ({chaos.killed_doors} ingress processes "
        f"killed), {tally.late} late, the slowest took {tally.slowest_s:.2f} s"
    )
    for problem in chaos.problems:
        print(f"PROBLEM: {problem}")
    return 1 if chaos.problems else 0


if __name__ == "__main__":
    sys.exit(main())
