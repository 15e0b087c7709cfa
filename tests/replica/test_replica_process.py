"""The worker as a process of its own: `python -m headrace.replica`, with its lifeline, its signals and its output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from control_peer import ControlPeer
from fake_incoming import run
from hosting import S, order_of, short_directory, snapshot_of, spec_of

from headrace import runtime
from headrace.engine.directory import InstanceDirectory
from headrace.handle import DeploymentHandle
from headrace.router import Router
from headrace.runtime import Runtime
from headrace.spec.application import DeploymentSpec, Environment, PickledCode
from headrace.spec.errors import ReplicaDiedError
from headrace.wire.control import (
    DrainReplica,
    Failed,
    GetPack,
    Hello,
    HostReplica,
    Pack,
    ReplicaReport,
    Request,
    Response,
    SnapshotMessage,
)
from headrace.wire.pack import PackedModule, name_of, pack

HERE = Path(__file__).parent


class Process:
    """A worker process, what plays its controller, and a way to call its replica."""

    def __init__(self, directory: Path, spec: DeploymentSpec, environment: Environment | None = None) -> None:
        self.peer = ControlPeer(directory / "control.sock")
        environment = environment or Environment(sys_path=(str(HERE), *sys.path))
        self.order: HostReplica = order_of(directory, spec, environment=environment)
        self.handle = DeploymentHandle(spec.name, "shop")
        self.output = ""
        self.lifeline = -1
        self.child: Any = None

    async def start(self, variables: dict[str, str] | None = None) -> None:
        await self.peer.start()
        lifeline, self.lifeline = os.pipe()
        os.set_blocking(lifeline, False)  # as the keeper's is
        environment = {
            "PATH": os.environ["PATH"],
            "HEADRACE_INSTANCE": "default",
            "HEADRACE_RUNTIME_DIR": str(self.peer.path.parent),
            "HEADRACE_PROCESS_ID": f"{self.order.replica_id}@shop",
            "HEADRACE_LIFELINE_FD": str(lifeline),
            **(variables or {}),
        }
        self.child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "headrace.replica", env=environment, pass_fds=[lifeline], cwd="/",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        os.close(lifeline)
        await self.peer.until(lambda: self.peer.of(Hello))

    async def host(self) -> None:
        self.peer.channels[-1].send(self.order)

    async def until_reported(self, state: S) -> ReplicaReport:
        await self.peer.until(lambda: state in [r.state for r in self.peer.of(ReplicaReport)])  # type: ignore[attr-defined]
        return self.peer.of(ReplicaReport)[-1]  # type: ignore[return-value]

    async def exit_code(self) -> int:
        out, _ = await self.child.communicate()
        self.output = out.decode()
        return int(self.child.returncode)

    async def until_printed(self, text: str) -> None:
        while text not in self.output:
            line = await self.child.stdout.readline()
            assert line, self.output
            self.output += line.decode()


@contextlib.asynccontextmanager
async def worker(spec: DeploymentSpec, environment: Environment | None = None) -> AsyncIterator[Process]:
    loop = asyncio.get_running_loop()
    with short_directory() as directory:
        process = Process(directory, spec, environment)
        router = Router(loop, "test")
        runtime.install(Runtime(router, loop, threading.get_ident()))
        router.update(snapshot_of(process.order))
        await process.start()
        try:
            await process.host()
            yield process
        finally:
            if process.child.returncode is None:
                process.child.kill()
                await process.child.communicate()
            os.close(process.lifeline)
            await router.close()
            runtime.install(None)
            await process.peer.stop()


def once(**options: Any) -> DeploymentSpec:
    return spec_of("Echo", options={"repeatable": False, **options})


def test_it_hosts_in_the_place_where_the_application_was_built() -> None:
    async def check() -> None:
        environment = Environment(
            sys_path=(str(HERE), "/nowhere", *sys.path),
            cwd=str(HERE.parent),
            variables={"DEPLOYED_VARIABLE": "x", "HEADRACE_PROCESS_ID": "not this"},
        )
        async with worker(once(environment={"DEPLOYED_OWN": "y"}), environment) as process:
            report = await process.until_reported(S.RUNNING)
            seen = await process.handle.process.remote()
            assert seen["pid"] == report.pid == process.child.pid
            assert seen["cwd"] == str(HERE.parent)
            assert seen["path"][: len(sys.path) + 2] == [str(HERE), "/nowhere", *sys.path]
            assert "/" not in seen["path"]  # where the process was started
            assert (seen["variable"], seen["own"]) == ("x", "y")

    run(check())


def test_code_of_main_runs_there() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("class Model:\n    async def __call__(self, x):\n        return x * 2\n", namespace)
    spec = spec_of(PickledCode(cloudpickle.dumps(namespace["Model"])))

    async def check() -> None:
        async with worker(spec) as process:
            await process.until_reported(S.RUNNING)
            assert await process.handle.remote("ab") == "abab"

    run(check())


def test_drained_it_ends_well() -> None:
    async def check() -> None:
        async with worker(once()) as process:
            await process.until_reported(S.RUNNING)
            process.peer.channels[-1].send(DrainReplica(process.order.replica_id, 10.0))
            await process.until_reported(S.STOPPED)
            assert await process.exit_code() == 0

    run(check())


@pytest.mark.parametrize("how", ["SIGTERM", "lifeline"])
def test_it_drains_when_it_is_terminated_and_when_its_keeper_is_gone(how: str) -> None:
    async def check() -> None:
        async with worker(once()) as process:
            await process.until_reported(S.RUNNING)
            process.child.send_signal(signal.SIGINT)  # the keeper's to decide on
            if how == "SIGTERM":
                process.child.send_signal(signal.SIGTERM)
            else:
                os.close(process.lifeline)
                process.lifeline = os.open("/dev/null", os.O_RDONLY)
            await process.until_reported(S.STOPPED)
            assert await process.exit_code() == 0
            assert ("the keeper is gone" in process.output) == (how == "lifeline")

    run(check())


def test_at_the_end_of_the_drain_it_exits_though_a_call_is_stuck_in_a_thread() -> None:
    async def check() -> None:
        async with worker(once()) as process:
            await process.until_reported(S.RUNNING)
            call = process.handle.block.remote()
            await process.until_printed("begun")
            process.peer.channels[-1].send(DrainReplica(process.order.replica_id, 0.0))
            with pytest.raises(ReplicaDiedError):
                await call
            assert await process.exit_code() == 0
            assert "left 1 calls behind" in process.output

    run(check())


def test_a_thread_of_the_user_that_lingers_does_not_keep_it() -> None:
    async def check() -> None:
        async with worker(once()) as process:
            await process.until_reported(S.RUNNING)
            await process.handle.linger.remote()
            process.peer.channels[-1].send(DrainReplica(process.order.replica_id, 60.0))
            assert await process.exit_code() == 1
            assert "exits as it is" in process.output

    run(check())


def test_a_coroutine_that_never_yields_does_not_outlive_the_keeper_for_long() -> None:
    async def check() -> None:
        async with worker(once()) as process:
            await process.until_reported(S.RUNNING)
            call = process.handle.spin.remote()
            await process.until_printed("begun")
            os.close(process.lifeline)
            process.lifeline = os.open("/dev/null", os.O_RDONLY)
            with pytest.raises(ReplicaDiedError):
                await call
            assert await process.exit_code() == 1

    run(check())


def test_a_start_that_fails_is_reported_and_printed() -> None:
    async def check() -> None:
        async with worker(spec_of("Fails")) as process:
            report = await process.until_reported(S.FAILED)
            assert "ValueError: no such model: weights.bin" in report.error
            await process.until_printed("ValueError: no such model: weights.bin")
            assert process.child.returncode is None

    run(check())


def test_a_replica_runs_though_the_place_where_it_was_built_is_gone() -> None:
    async def check() -> None:
        async with worker(once(), Environment(sys_path=(str(HERE), *sys.path), cwd="/no/such/place")) as process:
            await process.until_printed("/no/such/place, where the application was built, is gone")
            await process.until_reported(S.RUNNING)
            assert await process.handle.add.remote(1, 2) == 3

    run(check())


def test_a_place_that_cannot_be_entered_fails_the_replica() -> None:
    async def check() -> None:
        async with worker(once(), Environment(sys_path=tuple(sys.path), cwd="/" + "n" * 300)) as process:
            report = await process.until_reported(S.FAILED)
            assert "cannot enter '/nnn" in report.error

    run(check())


def test_a_replica_without_its_sources_does_not_run_those_of_today() -> None:
    async def check() -> None:
        async with worker(once(), Environment(sys_path=(str(HERE), *sys.path), pack="0" * 64)) as process:
            gone = Failed("RevisionNotFound", "it is gone here too")
            process.peer.answer = lambda request: [Response(request.id, gone)]
            report = await process.until_reported(S.FAILED)
            assert "the sources of this revision cannot be read from" in report.error
            assert f"packs/{'0' * 64} (No such file or directory), and the controller has none" in report.error
            assert "it is gone here too" in report.error
            assert "deploy the application again" in report.error
            assert [r.operation for r in process.peer.of(Request)] == [GetPack("0" * 64)]  # type: ignore[attr-defined]


def test_a_replica_whose_node_lacks_its_sources_has_them_from_the_controller() -> None:
    module = PackedModule("only_packed", "/nowhere/only_packed.py", b"VALUE = 7")
    sources = pack([module])
    environment = Environment(sys_path=(str(HERE), *sys.path), pack=name_of(sources))

    async def check() -> None:
        async with worker(once(), environment) as process:
            process.peer.answer = lambda request: [Response(request.id, Pack(sources))]
            await process.until_reported(S.RUNNING)
            kept = InstanceDirectory(process.peer.path.parent).pack(name_of(sources))
            assert kept.read_bytes() == sources

    run(check())

    run(check())


def test_a_crash_tells_where_it_happened() -> None:
    async def check() -> None:
        async with worker(once()) as process:
            await process.until_reported(S.RUNNING)
            with pytest.raises(ReplicaDiedError):
                await process.handle.crash.remote()
            assert await process.exit_code() == -signal.SIGSEGV
            assert "Fatal Python error: Segmentation fault" in process.output
            assert "in crash" in process.output

    run(check())


def test_an_error_of_a_call_is_printed_with_its_request_and_the_replica_lives() -> None:
    async def check() -> None:
        async with worker(once()) as process:
            await process.until_reported(S.RUNNING)
            with pytest.raises(LookupError):
                await process.handle.nested.remote()
            await process.until_printed("LookupError: found nothing")
            assert "Echo.nested raised LookupError" in process.output
            assert await process.handle.add.remote(1, 2) == 3

    run(check())


def test_a_handle_inside_goes_by_the_snapshots_that_come_in() -> None:
    async def check() -> None:
        from hosting import Bound

        async with worker(spec_of("Echo", other=Bound("Echo"))) as process:
            await process.until_reported(S.RUNNING)
            process.peer.channels[-1].send(SnapshotMessage(snapshot_of(process.order, version=3)))
            assert await process.handle.forward.remote(4) == 8

    run(check())
