"""What every engine promises: scenarios for any of them, which the tests of each engine import and give a `world`.

The worlds: in one process (fake), real processes under a keeper (local), and on a Ray cluster.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace.engine.base import Engine, EngineEvent, ProcessExited, ProcessRequest, Resources
from headrace.engine.fake import FakeEngine, HostedProcess
from headrace.spec.errors import InstanceError, OptionError, PortBusyError, ResourcesShortError
from tests.engine.instances import alive, until_async

CPUS, GPUS = 4.0, 2

# What a process does, by name: as a program, and hosted in this loop. READY names a file that it makes when it is up.
PROGRAMS = {
    "wait": "import os, signal, time; open(os.environ['READY'], 'w'); time.sleep(1000)",
    "orderly": """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that it is not missed before the wait
open(os.environ['READY'], 'w')
signal.sigwait({signal.SIGTERM})
""",
    "stubborn": """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(os.environ['READY'], 'w')
time.sleep(1000)
""",
    "fail": "raise RuntimeError('boom')",
    "leave": "raise SystemExit(7)",
}


class Hosted:
    """The same behaviours without a process."""

    def __init__(self, request: ProcessRequest) -> None:
        self.behaviour = request.argv[-1]
        self.ready = Path(request.env["READY"]) if "READY" in request.env else None
        self.asked = asyncio.Event()

    async def run(self) -> int:
        if self.ready is not None:
            self.ready.touch()
        match self.behaviour:
            case "fail":
                raise RuntimeError("boom")
            case "leave":
                return 7
            case "stubborn":
                await asyncio.Event().wait()
        await self.asked.wait()
        return 0 if self.behaviour == "orderly" else -15

    def stop(self) -> None:
        self.asked.set()


async def host(request: ProcessRequest) -> HostedProcess:
    if request.argv[0] == "/no/such/program":
        raise FileNotFoundError(request.argv[0])
    return Hosted(request)


class World:
    """One kind of engine, to be opened as often as a test likes, and requests that it understands.

    It has CPUS and GPUS. `short` is how it says that 2 CPUs, and 2 GPUs, are not free (regular expressions).
    """

    def __init__(
        self, kind: str, folder: Path, engine: Callable[[], Engine], short: tuple[str, str], shutdown_s: float = 20
    ) -> None:
        self.kind = kind
        self.short = short
        self.shutdown_s = shutdown_s
        self.folder = folder
        self.engine = engine
        self.events: list[EngineEvent] = []

    def request(self, id: str, behaviour: str = "wait", **resources: float) -> ProcessRequest:
        argv = (sys.executable, "-S", "-c", PROGRAMS[behaviour]) if self.kind != "fake" else ("hosted", behaviour)
        env = {"READY": str(self.folder / f"{id}.ready")}
        return ProcessRequest(id=id, role="worker", argv=argv, env=env, resources=Resources(**resources))

    async def ready(self, id: str) -> None:
        await until_async((self.folder / f"{id}.ready").exists, f"{id} to be up")

    async def exited(self, id: str) -> ProcessExited:
        await until_async(lambda: any(event.id == id for event in self.exits()), f"the exit of {id}")
        (event,) = (event for event in self.exits() if event.id == id)
        return event

    def exits(self) -> list[ProcessExited]:
        return [event for event in self.events if isinstance(event, ProcessExited)]

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Engine]:
        engine = self.engine()
        await engine.open(self.events.append)
        try:
            yield engine
        finally:
            await engine.close()


def run(world: World, scenario: Callable[[World, Engine], Awaitable[None]]) -> None:
    """The scenario on an open engine; afterwards nothing that it started may live."""

    async def main() -> None:
        async with world.opened() as engine:
            await scenario(world, engine)
            for info in await engine.list():
                engine.stop(info.id, 0)
                await world.exited(info.id)
        if isinstance(engine, FakeEngine):
            await engine.end()

    asyncio.run(main())


def test_a_started_process_is_listed_until_its_exit_is_told(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        info = await engine.start(world.request("a", cpus=1, gpus=0.5))
        assert (info.id, info.role, info.resources) == ("a", "worker", Resources(cpus=1, gpus=0.5))
        assert list(await engine.list()) == [info]
        await world.ready("a")
        engine.stop("a", 20)
        event = await world.exited("a")
        assert (event.id, event.pid, event.code) == ("a", info.pid, -15)
        assert list(await engine.list()) == []

    run(world, scenario)


def test_an_orderly_end_within_the_grace_has_its_own_code(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        await engine.start(world.request("a", "orderly"))
        await world.ready("a")
        engine.stop("a", 20)
        assert (await world.exited("a")).code == 0

    run(world, scenario)


def test_what_does_not_end_within_the_grace_is_killed(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        await engine.start(world.request("a", "stubborn"))
        await world.ready("a")
        engine.stop("a", 0.02)
        assert (await world.exited("a")).code == -9

    run(world, scenario)


def test_a_shorter_grace_counts_and_a_longer_one_does_not(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        await engine.start(world.request("a", "stubborn"))
        await world.ready("a")
        engine.stop("a", 3600)
        engine.stop("a", 0.02)
        engine.stop("a", 3600)
        assert (await world.exited("a")).code == -9

    run(world, scenario)


def test_no_grace_kills_at_once(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        await engine.start(world.request("a", "orderly"))
        await world.ready("a")
        engine.stop("a", 0)
        assert (await world.exited("a")).code == -9

    run(world, scenario)


def test_what_is_stopped_while_it_starts_does_not_go_on(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        starting = asyncio.create_task(engine.start(world.request("a", "stubborn")))
        await asyncio.sleep(0)
        engine.stop("a", 0)
        try:
            await starting
        except InstanceError:
            assert world.exits() == []
        else:
            await world.exited("a")
        assert list(await engine.list()) == []

    run(world, scenario)


def test_stopping_what_is_not_there_is_no_error(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        engine.stop("nobody", 0)
        engine.stop("nobody", 5)
        assert list(await engine.list()) == []

    run(world, scenario)


def test_an_exit_by_itself_is_told_with_code_and_last_lines(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        failed = await engine.start(world.request("a", "fail"))
        await engine.start(world.request("b", "leave"))
        event = await world.exited("a")
        assert (event.pid, event.code) == (failed.pid, 1)
        assert event.tail[0] == "Traceback (most recent call last):"
        assert event.tail[-1] == "RuntimeError: boom"
        assert (await world.exited("b")).code == 7

    run(world, scenario)


def test_an_id_is_unique_among_the_living_and_free_after_its_exit(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        first = await engine.start(world.request("a"))
        with pytest.raises(InstanceError, match="a already runs"):
            await engine.start(world.request("a"))
        engine.stop("a", 0)
        await world.exited("a")
        world.events.clear()
        second = await engine.start(world.request("a"))
        assert second.pid != first.pid

    run(world, scenario)


def test_pid_and_start_name_a_process(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        infos = [await engine.start(world.request(f"p{i}")) for i in range(3)]
        assert len({info.pid for info in infos}) == 3
        assert all(info.started_at > 0 for info in infos)
        assert list(await engine.list()) == infos

    run(world, scenario)


def test_what_cannot_be_started_is_an_error_and_holds_nothing(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        wrong = ProcessRequest(id="a", role="worker", argv=("/no/such/program",), resources=Resources(cpus=CPUS))
        with pytest.raises(InstanceError, match="a cannot be started"):
            await engine.start(wrong)
        assert list(await engine.list()) == []
        await engine.start(world.request("a", cpus=CPUS))

    run(world, scenario)


def test_resources_are_accounted_and_a_shortage_is_explained(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        assert engine.capacity() == Resources(cpus=CPUS, gpus=float(GPUS))
        await engine.start(world.request("a", cpus=3))
        await engine.start(world.request("b", gpus=1.0))
        await engine.start(world.request("free"))
        with pytest.raises(ResourcesShortError, match=world.short[0]):
            await engine.start(world.request("c", cpus=2))
        with pytest.raises(ResourcesShortError, match=world.short[1]):
            await engine.start(world.request("c", gpus=2.0))
        with pytest.raises(OptionError, match=r"num_gpus=1\.5"):
            await engine.start(world.request("c", gpus=1.5))
        engine.stop("a", 0)
        await world.exited("a")
        await engine.start(world.request("c", cpus=4))

    run(world, scenario)


def test_exits_that_nobody_heard_are_told_at_the_next_open_and_once(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        ended = await engine.start(world.request("ended", "orderly"))
        stayed = await engine.start(world.request("stayed"))
        await world.ready("ended")
        engine.stop("ended", 0.02 if world.kind == "fake" else 20)
        await engine.close()
        assert world.events == []
        if world.kind != "fake":
            await until_async(lambda: not alive(ended.pid), "the exit")
        await asyncio.sleep(0)
        async with world.opened() as second:
            assert (await world.exited("ended")).pid == ended.pid
            assert list(await second.list()) == [stayed]
        async with world.opened() as third:
            assert list(await third.list()) == [stayed]
            assert len(world.exits()) == 1
            third.stop("stayed", 0)
            await world.exited("stayed")
        await engine.open(world.events.append)

    run(world, scenario)


def test_a_closed_engine_refuses(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        await engine.close()
        with pytest.raises(InstanceError):
            await engine.start(world.request("a"))
        with pytest.raises(InstanceError):
            await engine.list()
        await engine.open(world.events.append)

    run(world, scenario)


def test_a_port_is_held_for_the_instance_and_can_be_listened_on(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        port = await engine.reserve_port("127.0.0.1", 0)
        assert port > 0
        assert await engine.reserve_port("127.0.0.1", 0) == port
        assert await engine.reserve_port("127.0.0.1", port) == port
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()
            with socket.create_connection(("127.0.0.1", port), 5):
                listener.accept()[0].close()
        other = await engine.reserve_port("127.0.0.1", 0, "grpc")
        assert other != port

    run(world, scenario)


def test_a_port_that_another_has_is_refused_by_name(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(PortBusyError, match=rf"port {port} is taken by process {os.getpid()} "):
                await engine.reserve_port("127.0.0.1", port)
        assert await engine.reserve_port("127.0.0.1", port) == port

    run(world, scenario)


def test_a_port_moves_when_another_is_wanted(world: World) -> None:
    async def scenario(world: World, engine: Engine) -> None:
        first = await engine.reserve_port("127.0.0.1", 0)
        second = await engine.reserve_port("127.0.0.1", await engine.reserve_port("127.0.0.1", 0, "probe"), "probe")
        assert second != first
        with pytest.raises(OptionError, match="no-such-host"):
            await engine.reserve_port("no-such-host.invalid", 0)
        assert await engine.reserve_port("127.0.0.1", first) == first
        moved = await engine.reserve_port("0.0.0.0", first)
        assert moved == first

    run(world, scenario)


def test_shutdown_stops_all(world: World) -> None:
    async def main() -> None:
        async with world.opened() as engine:
            for id in ("a", "b"):
                await engine.start(world.request(id, "orderly"))
                await world.ready(id)
            engine.shutdown(world.shutdown_s)
            assert [(await world.exited(id)).code for id in ("a", "b")] == [0, 0]

    asyncio.run(main())
