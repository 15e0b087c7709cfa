"""What breaks at 3 a.m.: `python -m bench.chaos [--seconds 60] [--only kill-replica,deploy] [--seed N]`.

In: nothing but the arguments. A real instance (two applications, two ingress processes) is loaded with plain requests
at a rate and with clients of all kinds (`bench.chaos_clients`) while, at random, processes are killed and stopped, and
the applications are deployed anew and scaled. Out: what was done, what became of each request and client, memory and
descriptors of each process over time; status 1 when a request failed that should not have, when anything was answered
wrongly, when the instance did not come back to what it should be, or when something was left behind.

Of plain requests only those on connections of a killed ingress may break; of other clients none, where no ingress and
no replica was killed. A request is late when it takes more than a second from its due time: those that a stopped
process held are, and no others should be.
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

from bench.chaos_clients import Account, Crowd
from bench.checked_load import Load, Tally
from bench.instance import Instance, alive, free_port, wait_for
from headrace import runtime, serve

APPS = Path(__file__).parent / "apps"
APPLICATION = APPS / "chaos_app.py"
SERVICE = "chaos_grpc"
CONNECTIONS = 100
LARGE_BYTES = (100_000, 1_000_000)
LARGE_SHARE = 0.02
SAMPLE_S = 5.0
BACK_WITHIN_S = 60.0
GROWTH_MB = 40.0  # what a process may gain over its first third: its allocator's slack under changing load
TASKS = 8  # of a replica at rest


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
        self.wanted = {"Front": 2, "Middle": 1, "Back": 2, "Web": 1}
        self.killed_doors = 0
        self.killed_replicas = 0
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
        return self.processes(self.random.choice(["Front#", "Middle#", "Back#", "Web#"]))

    async def kill_replica(self) -> str:
        self.killed_replicas += 1
        return self._kill(self._one(self._replicas()))

    async def kill_deployment(self) -> str:
        self.killed_replicas += 1
        return self._kill(self._replicas())

    async def kill_controller(self) -> str:
        return self._kill(self.processes("controller"))

    async def kill_controller_and_replica(self) -> str:
        self.killed_replicas += 1
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
        self.wanted = {name: self.random.randint(1, 3) for name in self.wanted}
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
        script = script_of(name, wanted)
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

    async def deploy_both(self) -> None:
        """Deploy what is there as it is, the second application with it."""
        self._deploy()
        await self.settle()

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
        states = {name: proxy["status"] for name, proxy in status["proxies"].items()}
        if set(states.values()) != {"HEALTHY"} or len(states) != 2:
            return f"the doors are {states}"
        known = set()
        for app_name, app in status["applications"].items():
            if app["status"] != "RUNNING":
                return f"application {app_name} is {app['status']} ({app.get('message', '')})"
            for name, deployment in app["deployments"].items():
                number = 1 if (app_name, name) == ("web", "Back") else self.wanted[name]
                if deployment["status"] != "HEALTHY" or deployment["replica_states"] != {"RUNNING": number}:
                    return f"{name} is {deployment['status']} with {deployment['replica_states']}, {number} are wanted"
                for replica in deployment["replicas"]:
                    known.add(f"{replica['id']}@{app_name}")
                    if replica.get("ongoing"):
                        return f"{replica['id']} of {app_name} has {replica['ongoing']} calls in work, and nobody asks"
        names = {name for name in self.instance.children() if "#" in name and not name.startswith("ingress")}
        return "" if names == known else f"processes {sorted(names)} are not the replicas {sorted(known)}"

    async def crowded_tasks(self) -> str:
        """Which replica of the door has more tasks than one at rest has, "" for none."""
        front = await asyncio.to_thread(serve.get_app_handle, "default")
        for _ in range(20):
            pid, tasks = await front.tasks.remote()
            if tasks > TASKS:
                return f"process {pid} has {tasks} tasks left"
        return ""


def script_of(module: str, wanted: dict[str, int]) -> str:
    """What deploys both applications."""
    front = {name.lower(): number for name, number in wanted.items() if name != "Web"}
    return (
        f"from headrace import serve; import {module} as m; "
        f"serve.run(m.application(**{front})); "
        f"serve.run(m.web_application({wanted['Web']}), name='web', route_prefix='/web')"
    )


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

    def grown(self) -> list[str]:
        """What has more memory or descriptors at the end than a third of its life ago, beyond what load explains."""
        found = []
        for name, samples in self.seen.items():
            if len(samples) < 9:
                continue
            early = samples[: len(samples) // 3]
            memory = samples[-1][1] - max(sample[1] for sample in early)
            files = samples[-1][2] - max(sample[2] for sample in early)
            if memory > GROWTH_MB or files > 20:
                found.append(f"{name} has grown by {memory:.0f} MB and {files} descriptors")
        return found

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


async def rage(chaos: Chaos, load: Load, crowd: Crowd, names: list[str], seconds: float) -> None:
    """One fault after the other, each at a time of its own, for `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(chaos.random.uniform(0.2, 4.0))
        before, wrong = len(load.tally.failures), len(crowd.account.wrong)
        name = chaos.random.choice(names)
        chaos.say(await chaos.faults[name]())
        await asyncio.sleep(0.5)
        for failure in load.tally.failures[before : before + 5]:
            chaos.say(f"    FAILED {failure}")
        for each in crowd.account.wrong[wrong : wrong + 5]:
            chaos.say(f"    WRONG {each}")


async def run(
    instance: Instance, chaos: Chaos, watch: Watch, crowd: Crowd, options: argparse.Namespace
) -> tuple[Tally, Account]:
    await chaos.deploy_both()
    load = Load(instance.port, options.rate, connections=CONNECTIONS, body=body_of, check=check)
    await load.start()
    await crowd.start()
    watching = asyncio.create_task(watch.run())
    names = [name for name in options.only.split(",") if name] or list(chaos.faults)
    await rage(chaos, load, crowd, names, options.seconds)
    await chaos.settle()
    tally, account = await load.stop(), await crowd.stop()
    chaos.say("nobody asks any more")
    end = time.monotonic() + BACK_WITHIN_S
    while (wrong := await asyncio.to_thread(chaos.off_target)) and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    if wrong:
        chaos.problems.append(f"not back to what it should be after {BACK_WITHIN_S:.0f} s: {wrong}")
    if left := await chaos.crowded_tasks():
        chaos.problems.append(left)
    await asyncio.to_thread(watch.sample)
    chaos.problems += watch.grown()
    watching.cancel()
    return tally, account


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description="Faults at random under load.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults happen (default 60)")
    parser.add_argument("--rate", type=int, default=300, help="requests a second (default 300)")
    parser.add_argument("--clients", type=int, default=24, help="of all other kinds, at a time (default 24)")
    parser.add_argument("--kinds", default="", help="names of clients as the report has them, separated by commas")
    parser.add_argument("--seed", type=int, default=None, help="of the faults; printed, to repeat a run")
    parser.add_argument("--only", default="", help="names of faults, separated by commas")
    parser.add_argument("--log", default="", help="write what the instance printed to this file")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    return options


def judge(chaos: Chaos, tally: Tally, account: Account) -> None:
    """Note what should not have happened to those who asked."""
    unexpected = [failure for failure in tally.failures if "its connection broke" not in failure]
    if tally.broken and not chaos.killed_doors:
        chaos.problems.append(f"{tally.broken} connections broke though no ingress was killed")
    if unexpected:
        chaos.problems.append(f"{len(unexpected)} requests failed; the first: {unexpected[0]}")
    if account.wrong:
        chaos.problems.append(f"{len(account.wrong)} clients got what is wrong; the first: {account.wrong[:3]}")
    restarted = account.words["websocket", "code 1012"]  # a deploy ends them so
    if account.broke.total() + account.refused.total() > restarted and not (
        chaos.killed_doors or chaos.killed_replicas
    ):
        chaos.problems.append("clients were refused or cut off though nothing was killed that they talked to")


def main() -> int:
    options = parse_arguments()
    print(f"seed {options.seed}, {options.rate} requests a second for {options.seconds:g} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        (folder / "chaos_v0.py").write_text(APPLICATION.read_text())
        (folder / f"{SERVICE}.py").write_text((APPS / f"{SERVICE}.py").read_text())
        grpc_port = free_port()
        servicer = f"--grpc-servicer-functions={SERVICE}.add_NumbersServicer_to_server"
        arguments = ("--ingress-workers", "2", "--grpc-port", str(grpc_port), servicer)
        instance = Instance(folder / "home", "chaos_v0:app", folder, *arguments, name="chaos")
        os.environ |= {name: instance.env[name] for name in ("HEADRACE_HOME",)} | {"HEADRACE_INSTANCE": "chaos"}
        try:
            with instance:
                instance.ready()
                watch = Watch(instance)
                chaos = Chaos(instance, folder, options.seed)
                crowd = Crowd(instance.port, grpc_port, options.seed, options.clients, options.kinds)
                tally, account = asyncio.run(run(instance, chaos, watch, crowd, options))
                runtime.close_own()
            wait_for(lambda: not instance.children(), "all its processes are gone", 20)
        finally:
            if options.log:
                Path(options.log).write_text(instance.text)
    judge(chaos, tally, account)
    print(f"\n{watch.report()}\n\n{account.report()}\n")
    print(
        f"{tally.sent} requests: {tally.answered} answered rightly by {len(tally.by)} replicas, "
        f"{len(tally.failures) - tally.broken} failed, {tally.broken} lost with their connection "
        f"({chaos.killed_doors} ingress processes killed), {tally.late} late, the slowest took {tally.slowest_s:.2f} s"
    )
    for problem in chaos.problems:
        print(f"PROBLEM: {problem}")
    return 1 if chaos.problems else 0


if __name__ == "__main__":
    sys.exit(main())
