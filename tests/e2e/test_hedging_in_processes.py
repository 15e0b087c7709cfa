"""Hedged calls in real processes: a replica that stands still, or dies, delays nobody who can be served elsewhere.

Nothing here is timed. A replica that stands still does so until the test lets it go on; who is answered meanwhile was
answered by another.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.instance import Instance, wait_for
from headrace import runtime as runtimes
from headrace import serve
from headrace.handle import DeploymentHandle
from headrace.spec.errors import OptionError, RequestCancelledError

HERE = Path(__file__).parent
WARM = 60
numbers = itertools.count()


class World:
    """One instance, what stands still in it, and what its replicas have noted."""

    def __init__(self, instance: Instance, folder: Path) -> None:
        self.instance = instance
        self.folder = folder

    def handle(self, deployment: str = "Model") -> DeploymentHandle:
        return serve.get_deployment_handle(deployment, "default")

    def noted(self, what: str, number: int | None = None) -> list[tuple[str, int]]:
        """(replica, number) of each line that says so."""
        lines = (self.folder / "log").read_text().splitlines()
        found = [(where, int(which)) for said, where, which in map(str.split, lines) if said == what]
        return [each for each in found if number is None or each[1] == number]

    def came_first(self) -> dict[int, str]:
        """The replica that each call came to first, whether or not it had waited by then."""
        lines = map(str.split, reversed((self.folder / "log").read_text().splitlines()))
        return {int(number): replica for said, replica, number in lines if said in ("came", "waited")}

    @contextlib.contextmanager
    def stalled(self, *replicas: str) -> Iterator[None]:
        files = [self.folder / f"stall-{replica}" for replica in replicas]
        for file in files:
            file.touch()
        try:
            yield
        finally:
            for file in files:
                file.unlink(missing_ok=True)

    def warm(self, ask: Callable[[int], Any]) -> None:
        """Until the latency of its calls is known."""
        for _ in range(WARM):
            ask(next(numbers))

    def running(self, count: int = 3) -> dict[str, int]:
        return wait_for(lambda: (r := self.instance.replicas()) and len(r) == count and r, f"{count} replicas run")


@contextlib.contextmanager
def running(folder: Path, target: str) -> Iterator[World]:
    (folder / "log").touch()
    instance = Instance(folder / "home", f"hedging_apps:{target}", HERE)
    instance.env["HEDGING_FOLDER"] = str(folder)
    with pytest.MonkeyPatch.context() as patch, instance:
        instance.ready()
        patch.setenv("HEADRACE_HOME", instance.env["HEADRACE_HOME"])
        patch.setenv("HEADRACE_INSTANCE", instance.name)
        yield World(instance, folder)
        runtimes.close_own()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("hedging"), "composed") as world:
        yield world


@pytest.mark.parametrize("method", ["ask", "compute"])
def test_a_replica_that_stands_still_delays_nobody(world: World, method: str) -> None:
    call = getattr(world.handle(), method)

    def ask(number: int) -> str:
        answer, replica = call.remote(number).result(timeout_s=60)
        assert answer == number
        return replica

    world.warm(ask)
    still = next(iter(world.running()))
    first = next(numbers)
    with world.stalled(still):
        answered = Counter(ask(next(numbers)) for _ in range(30))
        assert still not in answered
        began = {number for replica, number in world.noted("began") if replica == still and number > first}
        assert began, "some were there first"
        wait_for(lambda: began <= {n for _, n in world.noted("cancelled")}, "the losers have heard that they lost")
    assert not {number for replica, number in world.noted("ended") if replica == still and number > first}


def test_an_http_request_is_hedged_in_the_ingress(tmp_path: Path) -> None:
    with running(tmp_path, "app") as world:

        def ask(number: int) -> str:
            status, body, _ = world.instance.ask(f"/?n={number}", timeout=60)
            assert status == 200
            answer, replica = json.loads(body)
            assert answer == number
            return str(replica)

        world.warm(ask)
        still = next(iter(world.running()))
        with world.stalled(still):
            assert still not in {ask(next(numbers)) for _ in range(30)}
            began = {number for replica, number in world.noted("began") if replica == still}
            assert began
            wait_for(lambda: world.noted("cancelled"), "a loser has heard that it lost")


def test_what_is_not_to_be_hedged_waits_for_its_replica(world: World) -> None:
    handle = world.handle()
    world.warm(lambda number: handle.ask.remote(number).result(timeout_s=60))
    still, *_ = world.running()
    calls = [handle.exempt, handle.once, handle.ask.options(hedge=False)]
    for call in calls:
        with world.stalled(still):
            while True:
                number = next(numbers)
                response = call.remote(number)
                ((replica, _),) = wait_for(lambda number=number: world.noted("began", number), "it began")
                if replica == still:
                    break
                response.result(timeout_s=60)
            world.warm(lambda number: handle.ask.remote(number).result(timeout_s=60))
            assert not response.done()
        assert response.result(timeout_s=60) == [number, still]
        assert world.noted("began", number) == [(still, number)]


def test_a_copy_can_be_asked_for_where_the_deployment_says_nothing(world: World) -> None:
    with pytest.raises(OptionError, match=r"hedge=True of a call of Model\.once"):
        world.handle().once.options(hedge=True).remote(1).result(timeout_s=60)
    ask = world.handle("Batched").ask.options(hedge={"budget": 1.0, "quantile": 0.9})
    assert ask.remote(5).result(timeout_s=60)[0] == 5


def test_a_call_that_is_cancelled_ends_in_both(world: World) -> None:
    handle = world.handle()
    world.warm(lambda number: handle.ask.remote(number).result(timeout_s=60))
    number = next(numbers)
    with world.stalled(*world.running()):
        response = handle.ask.remote(number)
        wait_for(lambda: len(world.noted("began", number)) == 2, "its copy has begun")
        assert len({replica for replica, _ in world.noted("began", number)}) == 2
        response.cancel()
        wait_for(lambda: len(world.noted("cancelled", number)) == 2, "both have heard of it")
    with pytest.raises(RequestCancelledError):
        response.result(timeout_s=60)


def test_a_batch_is_not_waited_for_twice_and_a_loser_leaves_one_that_has_not_begun(world: World) -> None:
    ask = world.handle("Batched").ask
    world.warm(lambda number: ask.remote(number).result(timeout_s=60))
    still, other = world.instance.replicas(deployment="Batched")
    first = next(numbers)
    with world.stalled(still):
        answered = [ask.remote(next(numbers)).result(timeout_s=60) for _ in range(20)]
        assert {replica for _, replica in answered} == {other}
        # Not by "came" alone: on a busy machine a call may have waited for long before it comes anywhere.
        there = {number for number, replica in world.came_first().items() if replica == still and number > first}
        assert len(there) > 1
        copies = {number for replica, number in world.noted("waited") if replica == other and number > first}
        assert there <= copies, "what they waited for the first counts for their second batch"
    again = [ask.remote(next(numbers)).result(timeout_s=60) for _ in range(20)]
    assert {replica for _, replica in again} == {still, other}
    begun = {
        number for replica, number in world.noted("batch") if replica == still and first < number <= answered[-1][0]
    }
    assert begun == {min(there)}, "but for the first, which stood still, they left before their batch began"


class Load:
    """Callers that call all the time, and what they were told."""

    def __init__(self, call: Callable[[int], Any], callers: int = 6) -> None:
        self.answers: list[tuple[int, str]] = []
        self.errors: list[BaseException] = []
        self.over = threading.Event()
        self.call = call
        self.threads = [threading.Thread(target=self._go_on) for _ in range(callers)]
        for thread in self.threads:
            thread.start()

    def _go_on(self) -> None:
        while not self.over.is_set():
            number = next(numbers)
            try:
                answer, replica = self.call(number)
                assert answer == number
                self.answers.append((number, replica))
            except Exception as error:  # the top of a thread: all of them are counted
                self.errors.append(error)

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        before = len(self.answers)
        wait_for(lambda: self.errors or len(self.answers) >= before + count, f"{count} more answers")
        assert not self.errors, self.errors[:3]

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self.threads), "somebody hangs"
        assert not self.errors, self.errors[:3]


def test_replicas_killed_with_first_ones_and_copies_in_work_fail_no_call(world: World) -> None:
    handle = world.handle()
    world.warm(lambda number: handle.ask.remote(number).result(timeout_s=60))
    load = Load(lambda number: handle.ask.remote(number).result(timeout_s=60))
    try:
        load.more(50)
        for _ in range(2):
            replicas = world.running()
            still, other, third = replicas
            with world.stalled(still):  # it has the first ones, whose copies are elsewhere
                before = len(world.noted("cancelled"))
                wait_for(lambda: len(world.noted("cancelled")) > before + 5, "copies win")  # noqa: B023
                os.kill(replicas[still], signal.SIGKILL)
                load.more(50)
            wait_for(lambda: len(set(world.running()) - {still}) == 3, "there is another in its place")  # noqa: B023
            load.more(50)
            with world.stalled(other):  # and now who has the copies dies
                before = len(world.noted("cancelled"))
                wait_for(lambda: len(world.noted("cancelled")) > before + 5, "copies win")  # noqa: B023
                os.kill(replicas[third], signal.SIGKILL)
                load.more(50)
            wait_for(lambda: len(set(world.running()) - {third}) == 3, "there is another in its place")  # noqa: B023
            load.more(50)
    finally:
        load.end()
    counts = Counter(number for number, _ in load.answers)
    assert set(counts.values()) == {1}
