"""The keeper as a process: what it survives, what it leaves behind (nothing), and that no output holds it up."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from instances import KeeperProcess, alive, kept, members, until, until_async

from headrace.engine.base import EngineEvent, EngineLost, ProcessExited, ProcessInfo, ProcessRequest, Resources
from headrace.engine.directory import InstanceDirectory
from headrace.engine.local import LocalEngine
from headrace.spec.errors import InstanceError, OptionError
from headrace.spec.placement import Placement

# A controller that says what it does, and ends when it is told to, in its own time: when GO is there.
SLOW_CONTROLLER = (
    sys.executable,
    "-S",
    "-c",
    """
import os, signal, sys, time
home = os.environ["HEADRACE_HOME"]
def drain(*_):
    open(home + "/draining", "w")
    while not os.path.exists(home + "/go"):
        time.sleep(0.005)
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
open(home + "/up", "w")
while True:
    time.sleep(0.02)  # not pause(): a signal just before it would be noticed after the next one
""",
)


@pytest.fixture
def keeper() -> Iterator[KeeperProcess]:
    with kept() as running:
        yield running


def program(text: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", text)


async def start(keeper: KeeperProcess, *requests: ProcessRequest) -> tuple[LocalEngine, list[EngineEvent]]:
    events: list[EngineEvent] = []
    engine = LocalEngine(keeper.directory)
    await engine.open(events.append)
    for request in requests:
        await engine.start(request)
    return engine, events


def run_processes(keeper: KeeperProcess, *requests: ProcessRequest) -> list[ProcessInfo]:
    """Start them and go away."""

    async def main() -> list[ProcessInfo]:
        engine, _ = await start(keeper, *requests)
        infos = list(await engine.list())
        await engine.close()
        return infos

    return asyncio.run(main())


def exit_of(keeper: KeeperProcess, request: ProcessRequest) -> ProcessExited:
    """Start it and wait for its end."""

    async def main() -> ProcessExited:
        engine, events = await start(keeper, request)
        await until_async(lambda: events, f"the exit of {request.id}")
        await engine.close()
        (event,) = events
        assert isinstance(event, ProcessExited)
        return event

    return asyncio.run(main())


def worker(id: str, argv: tuple[str, ...], env: dict[str, str] | None = None, **resources: float) -> ProcessRequest:
    return ProcessRequest(id=id, role="worker", argv=argv, env=env or {}, resources=Resources(**resources))


# The controller


def test_a_killed_controller_is_started_again_and_the_others_stay(keeper: KeeperProcess) -> None:
    until(keeper.controller_pid)
    (info,) = run_processes(keeper, worker("a", ("/bin/sleep", "1000")))
    first = keeper.controller_pid()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: keeper.controller_pid() not in (None, first), "the next controller")
    assert alive(info.pid)
    assert run_processes(keeper) == [info]
    until(lambda: "controller died (signal SIGKILL); it starts again in 0 s" in keeper.printed())


def test_a_controller_that_does_not_come_up_ends_the_instance_with_its_last_lines() -> None:
    keeper = KeeperProcess(program("raise SystemExit('no such thing')"))
    try:
        assert keeper.start().wait() == 1
        assert "the controller did not start (exit code 1); its last lines:\nno such thing" in keeper.printed()
        assert members(keeper.directory) == []
    finally:
        keeper.close()


def test_an_instance_that_serves_goes_on_without_a_controller_for_as_long_as_none_comes_up() -> None:
    """A full disk, say: what runs answers requests without a controller, and the next one may find room again."""
    flawed = """
import os, sys, time
home = os.environ["HEADRACE_HOME"]
while not os.path.exists(home + "/flaw"):
    time.sleep(0.005)
sys.exit("no room")
"""
    with kept(program(flawed)) as keeper:
        (info,) = run_processes(keeper, worker("a", ("/bin/sleep", "1000")))
        (keeper.home / "flaw").touch()
        until(lambda: "it starts again in 0.8 s" in keeper.printed(), "the fifth try")
        assert keeper.poll() is None
        assert alive(info.pid)
        (keeper.home / "flaw").unlink()
        until(keeper.controller_pid, "a controller that stays")
        assert run_processes(keeper) == [info]


def test_a_controller_that_ends_by_itself_ends_the_instance() -> None:
    keeper = KeeperProcess(program(""))
    try:
        assert keeper.start().wait() == 0
    finally:
        keeper.close()


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_all_in_order_and_leaves_nothing(number: signal.Signals) -> None:
    with kept(SLOW_CONTROLLER) as keeper:
        (info,) = run_processes(keeper, worker("a", ("/bin/sleep", "1000")))
        until((keeper.home / "up").exists)
        keeper.signal(number)
        until((keeper.home / "draining").exists)
        assert alive(info.pid), "workers stay as long as the controller drains"
        (keeper.home / "go").touch()
        assert keeper.wait() == 0, keeper.printed()
        assert members(keeper.directory) == []
        assert not list(keeper.directory.path.rglob("*.sock"))
        assert keeper.directory.keeper_pid() is None


def test_a_second_signal_kills_at_once() -> None:
    with kept(SLOW_CONTROLLER) as keeper:
        run_processes(keeper, worker("a", ("/bin/sleep", "1000")))
        until((keeper.home / "up").exists)
        keeper.signal(signal.SIGINT)
        until((keeper.home / "draining").exists)
        keeper.signal(signal.SIGINT)
        assert keeper.wait() == 0, keeper.printed()
        assert members(keeper.directory) == []


def test_while_it_stops_nothing_is_started() -> None:
    async def main(keeper: KeeperProcess) -> None:
        engine, _ = await start(keeper)
        engine.shutdown(20)
        with pytest.raises(InstanceError, match="t is stopping: a was not started"):
            await engine.start(worker("a", ("/bin/sleep", "1000")))
        await engine.close()

    with kept(SLOW_CONTROLLER) as keeper:
        until((keeper.home / "up").exists)
        asyncio.run(main(keeper))


def test_a_controller_that_drains_for_too_long_is_killed() -> None:
    async def main(keeper: KeeperProcess) -> None:
        engine, _ = await start(keeper)
        engine.shutdown(3600)
        await until_async((keeper.home / "draining").exists)
        engine.shutdown(0.02)
        await engine.close()

    with kept(SLOW_CONTROLLER) as keeper:
        until((keeper.home / "up").exists)
        asyncio.run(main(keeper))
        assert keeper.wait() == 0, keeper.printed()
        assert members(keeper.directory) == []


def test_the_end_of_its_driver_is_its_end() -> None:
    reader, writer = os.pipe()
    keeper = KeeperProcess()
    try:
        keeper.start_ready(driver_fd=reader)
        os.close(writer)
        assert keeper.wait() == 0, keeper.printed()
        assert "the driver is gone: stopping" in keeper.printed()
        assert members(keeper.directory) == []
    finally:
        os.close(reader)
        keeper.close()


def test_killed_itself_its_children_learn_and_the_next_one_starts_clean() -> None:
    reads_lifeline = program("import os, select; select.select([int(os.environ['HEADRACE_LIFELINE_FD'])], [], [])")
    with kept(SLOW_CONTROLLER) as keeper:

        async def main() -> None:
            engine, events = await start(keeper, worker("a", reads_lifeline), worker("b", ("/bin/sleep", "1000")))
            a, b = await engine.list()
            keeper.signal(signal.SIGKILL)
            await until_async(lambda: events, "the loss of the keeper")
            assert isinstance(events[0], EngineLost)
            await until_async(lambda: not alive(a.pid), "the end of what watches its lifeline")
            with pytest.raises(InstanceError, match="is gone"):
                await engine.start(worker("c", ("/bin/sleep", "1000")))
            assert alive(b.pid)
            engine.stop("b", 20)  # the controller ends what does not go by itself
            await until_async(lambda: not alive(b.pid), "the end of b")
            await engine.close()

        asyncio.run(main())
        keeper.wait()
        keeper.directory.replica_socket(3).touch()
        keeper.directory.snapshot.write_bytes(b"of another life")
        with kept(home=keeper.home) as successor:
            assert successor.directory.keeper_pid() == successor.pid
            assert not keeper.directory.replica_socket(3).exists()
            assert not keeper.directory.snapshot.exists()
            assert run_processes(successor) == []


def test_a_second_keeper_is_refused_and_told_by_whom(keeper: KeeperProcess) -> None:
    second = KeeperProcess(home=keeper.home)
    try:
        assert second.start().wait() == 1
        assert second.printed().strip() == (
            f"InstanceError: instance t already runs, pid {keeper.pid}; stop it by `headrace shutdown --instance t` "
            f"or choose another name by --instance"
        )
    finally:
        second.close()
    assert run_processes(keeper) == []


def test_it_starts_while_others_ask_whether_it_runs() -> None:
    keeper = KeeperProcess()
    keeper.directory.create()
    keeper.directory.lock.touch()
    asks = f"""
import fcntl, os, sys
fd = os.open({str(keeper.directory.lock)!r}, os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_SH)
print("held", flush=True)
sys.stdin.read()
"""
    asker = subprocess.Popen(program(asks), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert asker.stdout is not None
        asker.stdout.readline()
        keeper.start()
        asker.communicate()
        until(keeper.directory.keeper_socket.exists)
    finally:
        asker.kill()
        asker.wait()
        keeper.close()


# What user code started


def test_what_a_process_started_goes_with_it(keeper: KeeperProcess) -> None:
    folder = keeper.home
    text = f"""
import os, subprocess, sys, time
script = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(1000)"
for name, own_session in (("grouped", False), ("escaped", True)):
    subprocess.Popen([sys.executable, "-S", "-c", script, {str(folder)!r} + "/" + name], start_new_session=own_session)
while not all(os.path.exists({str(folder)!r} + "/" + name) for name in ("grouped", "escaped")):
    time.sleep(0.005)
"""
    event = exit_of(keeper, worker("a", program(text)))
    assert event.code == 0, event.tail
    for name in ("grouped", "escaped"):
        until(lambda name=name: (folder / name).read_text().isdigit())
        pid = int((folder / name).read_text())
        until(lambda pid=pid: not alive(pid), f"the end of the {name} one")
    controller = keeper.controller_pid()
    assert controller is not None
    assert members(keeper.directory) == [controller]


def test_an_orphan_of_a_living_process_stays_and_goes_with_the_instance(keeper: KeeperProcess) -> None:
    pid_file = keeper.home / "daemon"
    # Daemons fork twice, and this one forgets its environment as well.
    text = f"""
import os, subprocess, sys, time
script = "import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(1000)"
middle = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True, env={{}})"
subprocess.run([sys.executable, "-S", "-c", middle, sys.executable, "-S", "-c", script])
time.sleep(1000)
"""
    run_processes(keeper, worker("a", program(text)))
    until(lambda: pid_file.exists() and pid_file.read_text().isdigit())
    daemon = int(pid_file.read_text())
    until(lambda: f"\nPPid:\t{keeper.pid}\n" in Path(f"/proc/{daemon}/status").read_text(), "the keeper to inherit it")
    assert alive(daemon)
    keeper.signal(signal.SIGTERM)
    assert keeper.wait() == 0, keeper.printed()
    assert not alive(daemon)


# Output


def test_a_flood_that_nobody_reads_holds_up_neither_the_process_nor_the_keeper() -> None:
    megabytes = 48
    flood = program(f"import os\nfor _ in range({megabytes}): os.write(1, (b'x' * 1023 + b'\\n') * 1024)")
    reader, writer = os.pipe()
    keeper = KeeperProcess(printed=writer)
    try:
        keeper.start_ready()
        os.close(writer)
        event = exit_of(keeper, worker("flood", flood))
        assert event.code == 0
        assert event.tail[-1] == "x" * 1023
        log = keeper.directory.log("flood")
        sizes = [path.stat().st_size for path in (log, log.with_name(log.name + ".1"))]
        assert all(0 < size <= 16 * 1024 * 1024 for size in sizes)
        keeper.signal(signal.SIGTERM)
        assert keeper.wait() == 0, keeper.printed()
        with os.fdopen(os.dup(reader), "rb") as pipe:  # what the keeper had in its pipe when it went
            assert len(pipe.read()) < 1024 * 1024
    finally:
        os.close(reader)
        keeper.close()


def test_lines_come_whole_and_prefixed_whatever_the_chunks_and_bytes(keeper: KeeperProcess) -> None:
    text = r"""
import os, sys
os.write(1, b"half ")
os.write(2, b"a line\nbytes \xff\x00 in it\r\n")
os.write(1, "gr\u00fc".encode()[:-1])
os.write(1, "\u00fc".encode()[-1:] + b"n\n 10%\r 50%\r100%\n")
os.write(1, b"the end")
"""
    event = exit_of(keeper, worker("Digits#3@app", program(text)))
    assert event.tail == ("half a line", "bytes \ufffd\x00 in it", "gr\u00fcn", "100%", "the end")
    until(lambda: "the end" in keeper.printed())
    shown = [line for line in keeper.printed().split("\n") if line.startswith("Digits#3@app | ")]
    assert [line.removeprefix("Digits#3@app | ") for line in shown] == list(event.tail)
    assert keeper.directory.log("Digits#3@app").read_bytes().startswith(b"half a line\nbytes \xff\x00 in it\r\n")


def test_the_tail_is_the_last_hundred_lines(keeper: KeeperProcess) -> None:
    event = exit_of(keeper, worker("a", program("for i in range(100_000): print('line', i)")))
    assert event.tail == tuple(f"line {i}" for i in range(99_900, 100_000))


def test_a_process_that_closes_its_output_is_watched_all_the_same(keeper: KeeperProcess) -> None:
    event = exit_of(keeper, worker("a", program("import os, sys; os.close(1); os.close(2); os._exit(5)")))
    assert event.code == 5


# What a process is given


def test_a_process_knows_who_it_is_and_what_it_may_use() -> None:
    shows = "import os\nfor name, value in sorted(os.environ.items()): print(f'{name}={value}')"
    environment = {"HEADRACE_NUM_CPUS": "6", "HEADRACE_NUM_GPUS": "3", "OMP_NUM_THREADS": "", "MKL_NUM_THREADS": "5"}
    with kept(environment=environment) as keeper:

        def given(id: str, env: dict[str, str] | None = None, **resources: float) -> dict[str, str]:
            event = exit_of(keeper, worker(id, program(shows), env, **resources))
            return dict(line.split("=", 1) for line in event.tail)

        plain = given("Digits#1@app")
        assert plain["HEADRACE_PROCESS_ID"] == "Digits#1@app"
        assert plain["HEADRACE_INSTANCE"] == "t"
        assert plain["HEADRACE_RUNTIME_DIR"] == str(keeper.directory.path)
        assert plain["HEADRACE_LIFELINE_FD"] == "3"
        assert plain["CUDA_VISIBLE_DEVICES"] == ""
        assert plain["OPENBLAS_NUM_THREADS"] == "3"
        assert plain["MKL_NUM_THREADS"] == "5"
        assert plain["OMP_NUM_THREADS"] == ""
        assert given("a", cpus=2)["OPENBLAS_NUM_THREADS"] == "2"
        assert given("a", cpus=0.5)["OPENBLAS_NUM_THREADS"] == "1"
        assert given("a", {"MKL_NUM_THREADS": "7"})["MKL_NUM_THREADS"] == "7"
        assert given("a", gpus=2.0)["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert given("a", {"HEADRACE_PROCESS_ID": "mine"})["HEADRACE_PROCESS_ID"] == "a"
        run_processes(keeper, worker("share", ("/bin/sleep", "1000"), gpus=0.5))
        assert given("a", gpus=0.5)["CUDA_VISIBLE_DEVICES"] == "0"
        assert given("a", gpus=0.6)["CUDA_VISIBLE_DEVICES"] == "1"
        assert given("a", {"CUDA_VISIBLE_DEVICES": "7"}, gpus=1.0)["CUDA_VISIBLE_DEVICES"] == "7"


def test_a_process_inherits_no_descriptor_but_its_lifeline(keeper: KeeperProcess) -> None:
    event = exit_of(
        keeper, worker("a", program("import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"))
    )
    assert event.tail == ("[0, 1, 2, 3]",)


# Who asks


def test_nonsense_on_the_socket_cuts_off_whoever_sent_it(keeper: KeeperProcess) -> None:
    tag, nested = b"\x81\xa4type", b"\x82\xa4type\xa4Open\xa1x" + b"\x91" * 100_000
    broken = [tag + b"\xa1\xff", b"\x82\xa4type\xa4Stop\xa2id\xa1\xff", nested]
    whole = [len(body).to_bytes(4, "little") + body for body in broken]
    for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\x05\0\0\0hello", b"\xff\xff\xff\xff", b"\x02\0\0\0\x81\xa4", *whole):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(keeper.directory.keeper_socket))
            client.sendall(nonsense)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    assert run_processes(keeper) == []


def test_a_stopped_controller_holds_up_nobody(keeper: KeeperProcess) -> None:
    until(keeper.controller_pid)
    controller = keeper.controller_pid()
    assert controller is not None
    os.kill(controller, signal.SIGSTOP)
    assert exit_of(keeper, worker("a", program("print('hello')"))).tail == ("hello",)
    keeper.signal(signal.SIGTERM)
    until(lambda: "SIGTERM: stopping" in keeper.printed())
    keeper.signal(signal.SIGTERM)
    assert keeper.wait() == 0, keeper.printed()
    assert members(keeper.directory) == []


def test_an_engine_without_a_keeper_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(InstanceError, match=r"the keeper of instance gone does not answer at .*keeper\.sock"):
            await LocalEngine(InstanceDirectory(tmp_path / "gone")).open(lambda _: None)

    asyncio.run(main())


def test_options_for_many_machines_are_refused_or_said_once_to_have_no_effect(
    keeper: KeeperProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        engine, _ = await start(keeper)
        for id in ("a", "b"):
            request = worker(id, ("/bin/true",))
            placement = Placement(max_per_node=1, group="shop/Model@1f")
            await engine.start(msgspec.structs.replace(request, placement=placement))
        request = msgspec.structs.replace(worker("c", ("/bin/true",)), placement=Placement(resources={"TPU": 1}))
        with pytest.raises(OptionError, match=r"resources=.*does not work on the local engine"):
            await engine.start(request)
        await engine.close()

    asyncio.run(main())
    told = [record.message for record in caplog.records if "no effect" in record.message]
    assert told == ["options of shop/Model have no effect: max_replicas_per_node: the local engine has one machine"]


@pytest.mark.parametrize("body", [b"\x82\xa4type\xa6Opened\xa1x" + b"\x91" * 100_000, b"\x81\xa4type\xa1\xff", b"\xc1"])
def test_a_keeper_that_speaks_nonsense_is_as_good_as_none(body: bytes) -> None:
    async def main(directory: InstanceDirectory) -> None:
        def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(len(body).to_bytes(4, "little") + body)

        async with await asyncio.start_unix_server(answer, directory.keeper_socket):
            with pytest.raises(InstanceError, match="the keeper of instance t is gone"):
                await LocalEngine(directory).open(lambda _: None)

    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp") as home:
        directory = InstanceDirectory(Path(home) / "t")
        directory.create()
        asyncio.run(main(directory))


def test_without_descriptors_a_start_is_refused_and_the_keeper_lives(keeper: KeeperProcess) -> None:
    async def main() -> None:
        engine, _ = await start(keeper)
        used = keeper.descriptors()
        first_free = next(number for number in itertools.count() if number not in used)
        soft, hard = resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (first_free, hard))
        with pytest.raises(InstanceError, match=r"the keeper cannot do it now: .*Too many open files"):
            await engine.start(worker("a", ("/bin/sleep", "1000"), cpus=1))
        resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (soft, hard))
        await engine.start(worker("a", ("/bin/sleep", "1000"), cpus=1))
        await engine.close()

    asyncio.run(main())


def test_without_descriptors_the_controller_is_started_later_and_what_runs_goes_on(keeper: KeeperProcess) -> None:
    until(keeper.controller_pid)
    (info,) = run_processes(keeper, worker("a", ("/bin/sleep", "1000")))
    first = keeper.controller_pid()
    assert first is not None
    soft, hard = resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (3, hard))
    os.kill(first, signal.SIGKILL)
    until(lambda: "Too many open files" in keeper.printed(), "that the controller cannot be started")
    assert keeper.poll() is None, keeper.printed()
    assert alive(info.pid)
    resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (soft, hard))
    until(keeper.controller_pid, "the next controller")
    assert run_processes(keeper) == [info]


# As `serve.run` starts it


def test_as_a_program_it_ends_with_its_driver(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    home = KeeperProcess()
    command = [sys.executable, "-m", "headrace.engine.keeper", "--instance", "t"]
    environment = {**os.environ, "HEADRACE_HOME": str(home.home), "HEADRACE_LIFELINE_FD": str(reader)}
    program = subprocess.Popen(command, env=environment, pass_fds=[reader], start_new_session=True)
    try:
        until(lambda: home.controller_pid() is not None and home.listens())
        assert home.directory.keeper_pid() == program.pid
        os.close(writer)
        assert program.wait(30) == 0
        assert members(home.directory) == []
    finally:
        os.close(reader)
        program.kill()
        program.wait()
        home.close()


def test_as_a_program_without_a_driver_it_lets_go_of_the_terminal(tmp_path: Path) -> None:
    home = KeeperProcess()
    command = [sys.executable, "-m", "headrace.engine.keeper", "--instance", "t"]
    environment = {name: value for name, value in os.environ.items() if name != "HEADRACE_LIFELINE_FD"}
    environment["HEADRACE_HOME"] = str(home.home)
    program = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        assert program.stdout is not None
        assert program.stdout.read() == b""  # its end, while the keeper runs
        until(home.listens)
        refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"headrace: instance t already runs, pid {program.pid}")
        program.send_signal(signal.SIGTERM)
        assert program.wait(30) == 0
    finally:
        program.kill()
        program.wait()
        program.communicate()
        home.close()


@pytest.mark.parametrize("arguments", [["--instance"], ["x"], ["--instance", "a", "b"], ["--help", "x"]])
def test_as_a_program_it_takes_a_name_and_nothing_else(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "headrace.engine.keeper", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")
