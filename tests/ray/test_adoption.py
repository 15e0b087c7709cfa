"""Seats of an earlier controller, by actors that say what the test has them say: no cluster is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError

from headrace.core.resources import Resources
from headrace.engine.base import ProcessExited, ProcessInfo, ProcessRequest
from headrace.engine.messages import Exited
from headrace.engine.ray.adoption import adopt_seat
from headrace.engine.ray.host import Heard, Where
from headrace.engine.ray.hosts import Host
from headrace.engine.ray.places import Process
from headrace.engine.ray.seats import Seating

NODE = "ab" * 28
AWAY = ActorUnavailableError("the actor is temporarily unavailable", b"x" * 16)
DEAD = ActorDiedError()
RUNS = ProcessInfo(id="d#1", role="worker", pid=71, started_at=5.0, resources=Resources(), node=NODE)


class Answered:
    def __init__(self, answer: Any) -> None:
        self._future: Future[Any] = Future()
        if isinstance(answer, BaseException):
            self._future.set_exception(answer)
        elif answer is not None:
            self._future.set_result(answer)

    def future(self) -> Future[Any]:
        return self._future


class Method:
    """Each call has the next answer, the last for ever; None: it is never answered."""

    def __init__(self, answers: list[Any]) -> None:
        self._answers = answers

    def remote(self, *_: object) -> Answered:
        return Answered(self._answers[0] if len(self._answers) == 1 else self._answers.pop(0))


class Actor:
    def __init__(self, where: list[Any], exits: Sequence[Exited] = ()) -> None:
        self.where = Method(where)
        self.exits = Method([Heard("life", list(exits))])


class Owner:
    """The engine's part, written down."""

    def __init__(self, node: str = NODE) -> None:
        self.node = node
        self.processes: dict[str, Process] = {}
        self.told: list[tuple[int, int]] = []  # code and pid
        self.followed: list[Host] = []
        self.left: list[Host] = []
        self.ended_seats: list[Seating] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def ask_ray(self, question: Callable[[], Any]) -> Any:
        return self.node

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(work))
        return self.tasks[-1]

    def take_up(self, info: ProcessInfo, host: Host, request: ProcessRequest | None) -> Process:
        process = self.processes.setdefault(info.id, Process(info.id, info.role, "", 0))
        process.info, process.host, process.node = info, host, host.node
        return process

    def runs(self, process: Process) -> bool:
        return self.processes.get(process.id) is process

    def follow(self, host: Host) -> None:
        self.followed.append(host)

    def tell(self, event: ProcessExited) -> None:
        self.told.append((event.code, event.pid))

    def ended(self, process: Process, code: int, tail: Sequence[str], pid: int = 0) -> None:
        if self.processes.pop(process.id, None) is not None:
            self.told.append((code, pid))

    def gone(self, host: Host, why: str) -> None:
        self.processes.clear()
        self.told.append((-9, 0))

    def leave_seat(self, host: Host) -> None:
        self.left.append(host)

    def end_seat(self, seating: Seating) -> None:
        self.ended_seats.append(seating)


def where(*processes: ProcessInfo) -> Where:
    return Where(node=NODE, pid=70, life="life", processes=processes)


def adopt(actor: Actor, owner: Owner, meanwhile: Callable[[], None] = lambda: None) -> Process | None:
    async def main() -> Process | None:
        process = await adopt_seat(owner, "d#1", Seating("seat", actor, None), patience_s=0.01)
        meanwhile()
        await asyncio.gather(*owner.tasks)
        return process

    return asyncio.run(main())


def test_a_process_that_runs_is_taken_up_and_followed() -> None:
    owner = Owner()
    process = adopt(Actor([where(RUNS)]), owner)
    assert process is not None
    assert process.info == RUNS
    assert [host.life for host in owner.followed] == ["life"]


def test_an_end_that_nobody_heard_is_told_and_its_seat_left() -> None:
    owner = Owner()
    assert adopt(Actor([where()], [Exited(3, ProcessExited(id="d#1", pid=71, code=2))]), owner) is None
    assert owner.told == [(2, 71)]
    assert [host.told for host in owner.left] == [3]


def test_a_seat_that_is_dead_is_ended() -> None:
    owner = Owner()
    assert adopt(Actor([DEAD]), owner) is None
    assert len(owner.ended_seats) == 1


def test_a_seat_out_of_reach_runs_on_and_is_known_again_when_it_answers() -> None:
    for silence in (AWAY, None):
        owner = Owner()
        process = adopt(Actor([silence, where(RUNS)]), owner)
        assert process is not None
        assert process.info == RUNS
        assert [host.life for host in owner.followed] == ["life"]
        assert (owner.told, owner.ended_seats, owner.left) == ([], [], [])


def test_a_seat_out_of_reach_that_comes_back_empty_tells_the_end() -> None:
    owner = Owner()
    adopt(Actor([AWAY, where()]), owner)
    assert owner.told == [(-9, 0)]
    assert len(owner.left) == 1


def test_a_seat_out_of_reach_that_turns_out_dead_is_told_as_gone() -> None:
    owner = Owner()
    adopt(Actor([AWAY, DEAD]), owner)
    assert owner.told == [(-9, 0)]


def test_a_seat_that_was_given_up_is_not_taken_up_again() -> None:
    owner = Owner()
    adopt(Actor([None, where(RUNS)]), owner, owner.processes.clear)
    assert (owner.processes, owner.followed) == ({}, [])


def test_a_seat_that_has_no_place_is_ended_as_nobody_waits_for_it() -> None:
    owner = Owner(node="")
    assert adopt(Actor([None]), owner) is None
    assert len(owner.ended_seats) == 1
