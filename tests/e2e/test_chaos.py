"""Real processes in trouble: two die at once, one never starts, one blocks, a client never reads. Others go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.checked_load import Load, Tally, plain_body
from bench.instance import Instance, alive, wait_for

HERE = Path(__file__).parent


@contextlib.contextmanager
def running(tmp_path: Path, target: str = "app", *arguments: str) -> Iterator[Instance]:
    instance = Instance(tmp_path / "home", f"chaos_apps:{target}", HERE, *arguments)
    instance.env["CHAOS_FOLDER"] = str(tmp_path)
    with instance:
        yield instance


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    with running(tmp_path) as instance:
        yield instance.ready()


def replicas(instance: Instance, count: int = 2, deployment: str = "Model", without: int = 0) -> dict[str, int]:
    """Wait until so many run, none of them with the pid `without`."""
    return dict(
        wait_for(
            lambda: (
                (r := instance.replicas(deployment=deployment)) and len(r) == count and without not in r.values() and r
            ),
            f"{count} replicas of {deployment} run",
        )
    )


def large_body(number: int) -> bytes:
    return plain_body(number) + random.Random(number).randbytes(random.Random(number).randint(100_000, 1_000_000))


def check_body(number: int, body: bytes, answer: dict[str, Any]) -> str:
    if (answer["n"], answer["crc"]) != (number, zlib.crc32(body)):
        return f"of {len(body)} bytes was answered {answer}"
    return ""


def under_load(
    instance: Instance,
    fault: Callable[[Load], Awaitable[None]],
    rate: int = 500,
    body: Callable[[int], bytes] = plain_body,
) -> Tally:
    """The tally of a load during which `fault` happens, with some of it before and after."""

    async def run() -> Tally:
        load = Load(instance.port, rate, body=body, check=check_body)
        await load.start()
        await load.until_answered(rate // 2)
        await fault(load)
        await load.until_answered(rate // 2)
        return await load.stop()

    return asyncio.run(run())


def kill(*pids: int) -> Callable[[Load], Awaitable[None]]:
    """At once: none begins with what another left before it dies, and so is no second crash of the same request."""

    async def fault(load: Load) -> None:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                os.kill(pid, number)

    return fault


def run_script(instance: Instance, code: str) -> subprocess.CompletedProcess[str]:
    """A driver's script beside the instance."""
    environment = instance.env | {"HEADRACE_INSTANCE": instance.name, "PYTHONPATH": str(HERE)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


# Processes die


def test_a_killed_replica_costs_no_request_with_a_body_of_up_to_a_megabyte(instance: Instance) -> None:
    async def fault(load: Load) -> None:
        for _ in range(3):
            found = await asyncio.to_thread(replicas, instance)
            os.kill(next(iter(found.values())), signal.SIGKILL)
            await load.until_answered(20)

    tally = under_load(instance, fault, rate=60, body=large_body)
    assert tally.failures == []
    assert tally.answered == tally.sent


def test_all_replicas_killed_at_once_cost_no_request(instance: Instance) -> None:
    before = replicas(instance)
    tally = under_load(instance, kill(*before.values()))
    assert tally.failures == []
    assert tally.answered == tally.sent
    assert set(replicas(instance).values()).isdisjoint(before.values())


def test_a_controller_and_a_replica_killed_at_once_cost_no_request(instance: Instance) -> None:
    victim = next(iter(replicas(instance).values()))
    tally = under_load(instance, kill(instance.children()["controller"], victim))
    assert tally.failures == []
    assert tally.answered == tally.sent
    replicas(instance, without=victim)


def test_a_deploy_outlives_the_controller_that_took_it(tmp_path: Path) -> None:
    with running(tmp_path, "app") as instance:
        instance.ready()
        done: list[subprocess.CompletedProcess[str]] = []
        code = "from headrace import serve; import chaos_apps; serve.run(chaos_apps.starts)"
        deploying = threading.Thread(target=lambda: done.append(run_script(instance, code)))
        deploying.start()
        wait_for(lambda: list(tmp_path.glob("starting-*")), "the new replica constructs")
        controller = instance.children()["controller"]
        os.kill(controller, signal.SIGKILL)
        wait_for(lambda: instance.children().get("controller") not in (None, controller), "the controller is back")
        assert instance.ask()[0] == 200  # by the revision that was there
        (tmp_path / "start").touch()
        deploying.join(60)
        assert done[0].returncode == 0, done[0].stderr
        assert instance.ask()[1] == b"started"


def test_a_replica_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    with running(tmp_path, "starts") as instance:
        (first,) = wait_for(lambda: list(tmp_path.glob("starting-*")), "the replica constructs")
        os.kill(int(first.name.partition("-")[2]), signal.SIGKILL)
        wait_for(lambda: len(list(tmp_path.glob("starting-*"))) == 2, "another constructs")
        (tmp_path / "start").touch()
        instance.ready()
        assert instance.ask()[1] == b"started"


# Constructors


def test_a_constructor_that_segfaults_fails_the_deploy_with_the_signal(tmp_path: Path) -> None:
    with running(tmp_path, "segfaults") as instance:
        assert instance.process.wait(60) == 1
    assert "died: SIGSEGV" in instance.text
    assert "in __init__" in instance.text  # the stack, from the fault handler


def test_a_constructor_that_hangs_fails_the_deploy_after_its_timeout(tmp_path: Path) -> None:
    with running(tmp_path, "hangs") as instance:
        assert instance.process.wait(60) == 1
    assert "was not ready within start_timeout_s=1; its constructor may hang" in instance.text


def test_replicas_that_crash_again_and_again_are_unhealthy_and_recover(tmp_path: Path) -> None:
    with running(tmp_path, "crashes") as instance:
        instance.ready()
        (tmp_path / "crash").touch()
        status = wait_for(
            lambda: (s := deployment(instance, "Crashes"))["status_trigger"] == "RESTARTING_TOO_OFTEN" and s,
            "it is known that they crash too often",
        )
        assert status["status"] == "UNHEALTHY"
        assert "SIGABRT" in status["message"]
        assert instance.status()["applications"]["default"]["status"] == "UNHEALTHY"
        (tmp_path / "crash").unlink()
        # A deploy is a person who says that it is well now: it does not wait for the backoff.
        done = run_script(instance, "from headrace import serve; import chaos_apps; serve.run(chaos_apps.crashes)")
        assert done.returncode == 0, done.stderr
        assert instance.ask()[1] == b"alive"
        assert deployment(instance, "Crashes")["status"] == "HEALTHY"


def deployment(instance: Instance, name: str) -> dict[str, Any]:
    return dict(instance.status()["applications"]["default"]["deployments"][name])


# Handlers


def test_a_handler_that_blocks_its_loop_is_left_alone_and_others_go_on(instance: Instance, tmp_path: Path) -> None:
    before = replicas(instance)
    answers: list[tuple[int, bytes, dict[str, str]]] = []
    blocked = threading.Thread(target=lambda: answers.append(instance.ask("/block", b'{"n": 7}')))
    blocked.start()
    wait_for((tmp_path / "blocked").exists, "a replica blocks")
    # The other replica takes what comes; a deploy of other options does not hang on the one that does not listen.
    assert instance.ask()[0] == 200
    code = "from headrace import serve; import chaos_apps; serve.run(chaos_apps.Model.options(num_replicas=3).bind())"
    assert run_script(instance, code).returncode == 0
    assert instance.ask()[0] == 200
    (tmp_path / "unblock").touch()
    blocked.join(30)
    assert answers[0][0] == 200
    assert before.items() <= replicas(instance, 3).items()


def test_threads_that_handlers_left_behind_hold_up_no_end(instance: Instance) -> None:
    for _ in range(4):
        assert instance.ask("/leak")[0] == 200
    pids = instance.children()
    instance.process.send_signal(signal.SIGTERM)
    assert instance.process.wait(20) == 0
    assert not any(alive(pid) for pid in pids.values())


def test_a_stop_under_load_answers_what_was_asked(tmp_path: Path) -> None:
    with running(tmp_path) as instance:
        instance.ready()
        answers: list[tuple[int, bytes, dict[str, str]]] = []
        asked = [
            threading.Thread(target=lambda n=n: answers.append(instance.ask(f"/slow?n={n}", plain_body(n))))
            for n in range(20)
        ]
        for thread in asked:
            thread.start()
        wait_for(lambda: len(list(tmp_path.glob("slow-*"))) == 20, "all are in work")
        instance.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in instance.text, "it stops")
        (tmp_path / "go").touch()
        for thread in asked:
            thread.join(30)
        assert [status for status, _, _ in answers] == [200] * 20
        assert instance.process.wait(30) == 0


# The machine


def test_a_full_disk_costs_no_request_and_is_said_to_who_deploys(instance: Instance) -> None:
    controller = instance.children()["controller"]
    victim = next(iter(replicas(instance).values()))
    unlimited = resource.prlimit(controller, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    tally = under_load(instance, kill(victim))
    assert tally.failures == []
    replicas(instance, without=victim)
    code = "from headrace import serve; import chaos_apps; serve.run(chaos_apps.Model.options(num_replicas=3).bind())"
    done = run_script(instance, code)
    assert done.returncode != 0
    assert "disk full?" in done.stderr
    resource.prlimit(controller, resource.RLIMIT_FSIZE, unlimited)
    assert run_script(instance, code).returncode == 0
    replicas(instance, 3)
    assert instance.children()["controller"] == controller


def test_a_runtime_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("no directory")
    done = run_cli(home / "below")
    assert done.returncode != 0
    assert str(home) in done.stderr
    assert "Traceback" not in done.stderr


def test_too_few_descriptors_are_said(tmp_path: Path) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))

    done = run_cli(tmp_path, few)
    assert done.returncode == 1
    assert "Too many open files" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def run_cli(home: Path, prepare: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace.cli", "run", "chaos_apps:app", "--port", "0", "--app-dir", str(HERE)]
    return subprocess.run(
        command,
        env=os.environ | {"HEADRACE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=prepare,
    )


# Clients


def memory_mb(pid: int) -> float:
    """What the process alone has in memory."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")) / 1000


def cpu_ticks(pids: list[int]) -> int:
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields)


def wait_until_at_rest(pids: list[int]) -> None:
    """Wait until the processes have computed nothing over twenty looks in a row."""
    seen = [-1]

    def rests() -> bool:
        ticks = cpu_ticks(pids)
        if ticks != seen[-1]:
            seen[:] = [ticks]
        else:
            seen.append(ticks)
        return len(seen) > 20

    wait_for(rests, f"{pids} are at rest")


def test_a_client_that_does_not_read_holds_up_the_writer_and_fills_no_memory(instance: Instance) -> None:
    assert instance.ask("/stream")[0] == 200  # code and buffers are warm
    pids = [*replicas(instance).values(), instance.children()["ingress#0"]]
    before = {pid: memory_mb(pid) for pid in pids}
    clients = []
    for _ in range(4):
        client = socket.create_connection(("127.0.0.1", instance.port))
        client.sendall(b"GET /stream HTTP/1.1\r\nhost: test\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        clients.append(client)
    wait_until_at_rest(pids)  # for they wait for the clients
    assert instance.ask()[0] == 200
    # 200 MB were asked for; a few of them are on their way.
    assert all(memory_mb(pid) - before[pid] < 30 for pid in pids)
    for client in clients:
        received = 0
        while received < 50_000_000:
            received += len(client.recv(1 << 20))
        client.close()


def test_idle_connections_cost_little(instance: Instance) -> None:
    door = instance.children()["ingress#0"]
    assert instance.ask()[0] == 200
    before = memory_mb(door)
    request = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
    clients = [socket.create_connection(("127.0.0.1", instance.port)) for _ in range(500)]
    for client in clients:
        client.sendall(request)
    for client in clients:
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    grown = memory_mb(door) - before
    for client in clients:
        client.close()
    assert grown < 500 * 0.02
