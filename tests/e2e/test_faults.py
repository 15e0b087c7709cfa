"""What breaks at 3 a.m.: processes are killed, stopped and crashed under load, and the requests do not notice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from bench.checked_load import Load, Tally
from bench.instance import Instance, alive, wait_for

HERE = Path(__file__).parent
RATE = 2000


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    with Instance(tmp_path, "faulty_apps:app", HERE) as instance:
        yield instance.ready()


@pytest.fixture
def two_doors(tmp_path: Path) -> Iterator[Instance]:
    with Instance(tmp_path, "faulty_apps:app", HERE, "--ingress-workers", "2") as instance:
        yield instance.ready()


def under_load(instance: Instance, fault: Callable[[Load], Awaitable[None]], rate: int = RATE) -> Tally:
    """The tally of a load during which `fault` happens, with a second of load before and after it."""

    async def run() -> Tally:
        load = Load(instance.port, rate)
        await load.start()
        await load.until_answered(rate)
        await fault(load)
        await load.until_answered(rate)
        return await load.stop()

    return asyncio.run(run())


def kill(pid: int) -> Callable[[Load], Awaitable[None]]:
    async def fault(load: Load) -> None:
        os.kill(pid, signal.SIGKILL)

    return fault


def test_a_killed_replica_costs_no_request_and_comes_back(instance: Instance) -> None:
    before = wait_for(lambda: (r := instance.replicas()) and len(r) == 2 and r, "two replicas run")
    victim = next(iter(before.values()))
    tally = under_load(instance, kill(victim))
    assert tally.failures == []
    assert tally.answered == tally.sent
    after = wait_for(lambda: (r := instance.replicas()) and len(r) == 2 and r, "two replicas run again")
    assert victim not in after.values()
    assert len(tally.by) >= 2


def test_a_killed_controller_costs_no_request_and_adopts_what_runs(instance: Instance) -> None:
    before = wait_for(lambda: (r := instance.replicas()) and len(r) == 2 and r, "two replicas run")
    controller = instance.children()["controller"]
    tally = under_load(instance, kill(controller))
    assert tally.failures == []
    assert tally.answered == tally.sent
    wait_for(lambda: instance.children().get("controller") not in (None, controller), "the controller is back")
    wait_for(lambda: instance.cli("status", "--json").returncode == 0, "it answers")
    assert wait_for(lambda: (r := instance.replicas()) and len(r) == 2 and r, "it knows the replicas") == before


def test_a_controller_that_came_back_still_controls(instance: Instance) -> None:
    before = wait_for(lambda: (r := instance.replicas()) and len(r) == 2 and r, "two replicas run")
    os.kill(instance.children()["controller"], signal.SIGKILL)
    victim = next(iter(before.values()))
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: instance.cli("status", "--json").returncode == 0, "the controller answers")
    after = wait_for(
        lambda: (r := instance.replicas()) and len(r) == 2 and victim not in r.values() and r, "two replicas run again"
    )
    assert set(after.values()) & set(before.values())


def test_a_killed_ingress_breaks_its_own_connections_alone(two_doors: Instance) -> None:
    doors = wait_for(
        lambda: (c := two_doors.children()) and "ingress#0" in c and "ingress#1" in c and c, "two ingress processes run"
    )
    tally = under_load(two_doors, kill(doors["ingress#1"]))
    # A connection carries one request at a time, so each that broke lost at most one.
    assert all("its connection broke" in failure for failure in tally.failures), tally.failures
    assert len(tally.failures) <= 40
    assert tally.answered + len(tally.failures) == tally.sent
    wait_for(
        lambda: two_doors.children().get("ingress#1") not in (None, doors["ingress#1"]), "the second ingress is back"
    )


def test_one_request_that_segfaults_fails_alone(instance: Instance) -> None:
    answers: list[tuple[int, bytes, dict[str, str]]] = []

    async def fault(load: Load) -> None:
        answers.append(await asyncio.to_thread(instance.ask, "/", b'{"n": 0, "segfault": true}'))

    tally = under_load(instance, fault)
    assert tally.failures == []
    assert tally.answered == tally.sent
    ((status, body, headers),) = answers
    assert status == 500
    assert headers["x-request-id"] in instance.text
    assert b"Traceback" not in body
    wait_for(lambda: len(instance.replicas()) == 2, "two replicas run again")


def test_a_stopped_ingress_delays_nobody_else(two_doors: Instance) -> None:
    doors = wait_for(
        lambda: (c := two_doors.children()) and "ingress#0" in c and "ingress#1" in c and c, "two ingress processes run"
    )

    async def test() -> None:
        load = Load(two_doors.port, 200)
        await load.start()
        await load.until_answered(200)
        os.kill(doors["ingress#1"], signal.SIGSTOP)
        try:
            # The requests on the connections of the stopped process hang; all others go on as before.
            await load.until_answered(400)
        finally:
            os.kill(doors["ingress#1"], signal.SIGCONT)
        tally = await load.stop()
        assert tally.failures == []
        assert tally.answered == tally.sent

    asyncio.run(test())


def test_a_users_error_is_a_500_with_its_id_and_the_log_has_the_traceback(instance: Instance) -> None:
    status, body, headers = instance.ask(body=b'{"n": 0, "raise": true}')
    assert status == 500
    assert b"Internal Server Error" in body
    assert b"Traceback" not in body
    assert b"the user's own error" not in body
    request_id = headers["x-request-id"]
    assert request_id.encode() in body
    wait_for(lambda: "ValueError: the user's own error" in instance.text, "the traceback is in the log")
    assert request_id in instance.text
    assert instance.ask()[0] == 200


def test_a_full_queue_is_a_503_with_retry_after(tmp_path: Path) -> None:
    with Instance(tmp_path, "faulty_apps:narrow", HERE) as instance:
        instance.ready()
        gate = tmp_path / "gate"
        answers: list[tuple[int, bytes, dict[str, str]]] = []
        # One runs, two wait, and whichever three come last are refused.
        threads = [threading.Thread(target=lambda: answers.append(instance.ask(f"/?until={gate}"))) for _ in range(6)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answers) == 3, "three requests are refused")
        assert [status for status, _, _ in answers] == [503] * 3
        assert all(int(headers["retry-after"]) >= 1 for _, _, headers in answers)
        gate.touch()
        for thread in threads:
            thread.join(30)
        assert [status for status, _, _ in answers[3:]] == [200] * 3


def test_a_constructor_that_raises_shows_its_own_traceback(tmp_path: Path) -> None:
    with Instance(tmp_path, "faulty_apps:broken", HERE) as instance:
        assert instance.process.wait(60) != 0
    assert "RuntimeError: no such weights: model.bin" in instance.text
    assert 'raise RuntimeError("no such weights' in instance.text


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["Ctrl-C", "SIGTERM", "kill -9"])
def test_nothing_is_left_behind(tmp_path: Path, how: signal.Signals) -> None:
    with Instance(tmp_path, "faulty_apps:app", HERE) as instance:
        instance.ready()
        pids = wait_for(lambda: (c := instance.children()) and len(c) >= 4 and c, "all processes run")
        instance.process.send_signal(how)
        instance.process.wait(40)
        wait_for(lambda: not any(alive(pid) for pid in pids.values()), f"{pids} are gone", 20)
        assert instance.children() == {}
    if how != signal.SIGKILL:
        assert list(tmp_path.glob("*/*.sock")) == []


def test_two_instances_stand_side_by_side_and_one_name_runs_once(tmp_path: Path) -> None:
    with (
        Instance(tmp_path, "faulty_apps:app", HERE, name="one") as one,
        Instance(tmp_path, "faulty_apps:app", HERE, name="two") as two,
    ):
        one.ready()
        two.ready()
        assert one.ask()[0] == two.ask()[0] == 200
        assert set(one.replicas().values()).isdisjoint(two.replicas().values())
        again = subprocess.run(
            [
                sys.executable,
                "-m",
                "headrace.cli",
                "run",
                "faulty_apps:app",
                "--app-dir",
                str(HERE),
                "--instance",
                "one",
            ],
            env=one.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert again.returncode != 0
        assert "already" in again.stderr
        assert "Traceback" not in again.stderr


def test_a_busy_port_is_named(instance: Instance, tmp_path: Path) -> None:
    arguments = ["--port", str(instance.port), "--app-dir", str(HERE), "--instance", "other"]
    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli", "run", "faulty_apps:app", *arguments],
        env=instance.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert f"port {instance.port}" in done.stderr
    assert "Traceback" not in done.stderr
