"""What is held for requests that a revision got before it lost its traffic."""

from __future__ import annotations

from fleet_world import World, application, deployment

from headrace.core.lifecycle import Phase
from headrace.core.plan import Start
from headrace.spec.application import ApplicationSpec
from headrace.spec.rollout import Canary, Command


def running(spec: ApplicationSpec) -> World:
    world = World()
    world.deploy(spec)
    world.run()
    world.log.clear()
    return world


def open_in(world: World, number: int) -> set[str]:
    """The deployments that routers know in the revision."""
    revisions = world.snapshot.applications["app"].revisions
    return {name for each in revisions if each.number == number for name in each.deployments}


def test_what_requests_in_work_at_a_shared_replica_may_call_is_held_for_a_while() -> None:
    door = deployment("A", uses=("B",), graceful_shutdown_timeout_s=7.0)
    world = running(application(door, deployment("B")))
    world.deploy(application(door, deployment("B", digest="2")))
    for _ in range(3):
        world.settle()
        world.all_become_ready_and_the_leaving_leave()
    world.settle()
    assert (world.app.weights, world.app.deploying) == ({2: 1.0}, False)
    assert world.serving("app/B@1") == 1
    assert world.wake_at == world.now + 7.0
    world.exit("B#1")  # what waits for it is not lost
    world.settle()
    assert world.phases()["B#4"] is Phase.LAUNCHING
    assert open_in(world, 1) == {"A", "B"}
    world.all_become_ready_and_the_leaving_leave()
    world.settle()
    assert world.serving("app/B@1") == 1
    world.now += 7.0
    world.run()
    assert world.phases() == {"A#2": Phase.RUNNING, "B#3": Phase.RUNNING}
    assert list(world.app.revisions) == [2]


def test_a_callee_that_dies_while_its_callers_finish_is_started_again() -> None:
    world = running(application(deployment("A", uses=("B",)), deployment("B")))
    world.deploy(application(deployment("A", digest="2", uses=("B",)), deployment("B", digest="2")))
    for _ in range(2):
        world.settle()
        for id, phase in world.phases().items():
            if phase is Phase.LAUNCHING:
                world.ready(id)
    world.settle()
    assert world.phases()["A#2"] is Phase.DRAINING
    world.exit("B#1")
    world.settle()
    assert [each.spec.digest for each in world.log if isinstance(each, Start)] == ["2", "2", "1"]
    assert open_in(world, 1) == {"B"}
    world.run()
    assert {replica.key for replica in world.app.replicas.values()} == {"app/A@2", "app/B@2"}


def test_a_revision_whose_deployments_are_all_shared_is_known_as_long_as_its_requests_may_be_in_work() -> None:
    door = deployment("A", uses=("B",), graceful_shutdown_timeout_s=7.0)
    world = running(application(door, deployment("B")))
    world.deploy(application(door, deployment("B"), deployment("C")))
    for _ in range(3):
        world.settle()
        world.all_become_ready_and_the_leaving_leave()
    world.settle()
    assert world.app.weights == {2: 1.0}
    assert [each.number for each in world.snapshot.applications["app"].revisions] == [1, 2]
    world.now += 7.0
    world.run()
    assert list(world.app.revisions) == [2]


def test_a_callee_that_is_away_as_its_revision_loses_the_traffic_is_known_throughout() -> None:
    world = running(application(deployment("A", uses=("B",)), deployment("B")))
    canary = Canary(steps=((0.5, None),), analysis=())
    world.deploy(application(deployment("A", digest="2", uses=("B",)), deployment("B", digest="2")), canary)
    world.run()
    assert world.app.weights == {1: 0.5, 2: 0.5}
    callee = next(each.id for each in world.app.of("app/B@2"))
    world.exit(callee)
    world.command(Command.ABORT)
    for _ in range(20):
        world.round()
        world.routed = world.snapshot.version
        assert "B" in open_in(world, 2)
    assert world.app.weights == {1: 1.0}
