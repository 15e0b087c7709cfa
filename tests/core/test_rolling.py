"""Rolling updates: replicas and weight change places bit by bit, forwards and back, and nobody is left without."""

from __future__ import annotations

import pytest
from fleet_world import World, application, deployment

from headrace.core.lifecycle import COUNTED, Phase
from headrace.core.plan import Promote, Retire, Share
from headrace.spec.application import ApplicationSpec
from headrace.spec.rollout import Canary, Command, RollingUpdate


def running(spec: ApplicationSpec) -> World:
    world = World()
    world.deploy(spec)
    world.run()
    world.log.clear()
    return world


def model(version: int, replicas: int = 4) -> ApplicationSpec:
    return application(deployment("D", digest=str(version), num_replicas=replicas))


def start_one(world: World, key: str) -> None:
    """One more replica of the deployment gets ready, and every router knows all that follows."""
    id = next(each.id for each in world.app.of(key) if each.phase is Phase.LAUNCHING)
    world.ready(id)
    world.settle()
    for each in list(world.app.replicas.values()):
        if each.phase in (Phase.DRAINING, Phase.STOPPING):
            world.exit(each.id)
    world.settle()


def test_with_a_surge_of_one_there_is_never_more_than_one_beyond_the_number() -> None:
    world = running(model(1))
    world.deploy(model(2), RollingUpdate(max_surge=1))
    world.settle()
    for done in range(1, 5):
        assert sum(each.phase in COUNTED for each in world.app.replicas.values()) == 5
        start_one(world, "app/D@2")
        assert world.app.weights == pytest.approx({1: 1 - done / 4, 2: done / 4} if done < 4 else {2: 1.0})
    assert [type(each) for each in world.log].count(Promote) == 1
    assert world.serving("app/D@2") == 4


def test_what_is_given_back_goes_bit_by_bit_too() -> None:
    world = running(model(1))
    world.deploy(model(2), RollingUpdate(max_surge=1))
    world.settle()
    for _ in range(2):
        start_one(world, "app/D@2")
    assert world.app.weights == {1: 0.5, 2: 0.5}
    world.command(Command.ABORT)
    world.settle()
    assert world.app.weights == {1: 0.5, 2: 0.5}
    start_one(world, "app/D@1")
    assert world.app.weights == {1: 0.75, 2: 0.25}
    start_one(world, "app/D@1")
    assert world.app.weights == {1: 1.0}


def test_no_replica_leaves_before_every_router_knows_that_it_is_not_needed() -> None:
    world = running(model(1))
    world.deploy(model(2), RollingUpdate())
    world.settle()
    for id, phase in world.phases().items():
        if phase is Phase.LAUNCHING and len([each for each in world.log if isinstance(each, Share)]) == 0:
            world.ready(id)
            break
    world.round()
    world.routed = world.snapshot.version
    world.round()
    assert world.app.weights == {1: 0.75, 2: 0.25}
    for _ in range(3):
        world.round()  # the router does not know it yet
    assert not [each for each in world.log if isinstance(each, Retire)]
    world.settle()
    assert len([each for each in world.log if isinstance(each, Retire)]) == 1


def test_the_last_old_replica_stays_until_the_new_ones_are_all_there() -> None:
    world = running(model(1, replicas=2))
    world.deploy(model(2, replicas=2), RollingUpdate())
    world.settle()
    for replica in list(world.app.of("app/D@2")):
        world.ready(replica.id)
    while world.app.weights != {2: 1.0}:
        world.routed = world.snapshot.version
        world.round()
    dies = next(each.id for each in world.app.of("app/D@2"))
    world.exit(dies)
    world.settle()
    assert world.app.rollout is not None
    assert [each.phase for each in world.app.of("app/D@1") if each.phase in COUNTED] == [Phase.RUNNING]
    world.run()
    assert world.app.weights == {2: 1.0}


def test_what_all_revisions_share_moves_no_weight_from_one_to_another() -> None:
    def graph(version: int) -> ApplicationSpec:
        return application(deployment("D", digest=str(version), uses=("S",)), deployment("S", num_replicas=2))

    world = running(graph(1))
    world.deploy(graph(2), Canary(steps=((0.75, None),), analysis=()))
    world.run()
    assert world.app.weights == {1: 0.25, 2: 0.75}
    world.log.clear()
    world.exit("S#1")
    world.settle()
    assert not [each for each in world.log if isinstance(each, Share)]
    assert world.app.weights == {1: 0.25, 2: 0.75}


def test_each_has_the_replicas_that_its_share_needs() -> None:
    world = running(model(1))
    world.deploy(model(2), Canary(steps=((0.5, None),), analysis=()))
    world.run()
    assert (world.serving("app/D@1"), world.serving("app/D@2")) == (4, 2)  # there is a way back
    world.command(Command.ABORT)
    world.run()
    assert (world.serving("app/D@1"), world.serving("app/D@2")) == (4, 0)
    world.split({1: 0.75, 2: 0.25})
    world.run()
    assert world.app.weights == {1: 0.75, 2: 0.25}
    assert (world.serving("app/D@1"), world.serving("app/D@2")) == (3, 1)


# Without a surge: old replicas make the room for new ones.

NO_SURGE = RollingUpdate(max_surge=0, max_unavailable=1)


def graph(version: int, doors: int = 3, models: int = 1, door: int | None = None) -> ApplicationSpec:
    return application(
        deployment("D", digest=str(version if door is None else door), num_replicas=doors, uses=("S",)),
        deployment("S", digest=str(version), num_replicas=models),
    )


def step(world: World) -> tuple[dict[str, int], dict[int, float]]:
    """All that leaves is gone, and every router knows all that follows: who serves then, and the weights."""
    for each in list(world.app.replicas.values()):
        if each.phase in (Phase.DRAINING, Phase.STOPPING):
            world.exit(each.id)
    world.settle()
    listed = {key.removeprefix("app/"): len(entry.replicas) for key, entry in world.snapshot.deployments.items()}
    return {key: count for key, count in listed.items() if count}, dict(world.app.weights)


def get_ready(world: World, key: str) -> None:
    for each in world.app.of(f"app/{key}"):
        if each.phase is Phase.LAUNCHING:
            world.ready(each.id)


def test_the_only_replica_of_a_callee_stays_until_the_new_revision_can_begin() -> None:
    world = running(graph(1))
    world.deploy(graph(2), NO_SURGE)
    # One at the door makes room, and what it calls stays: without it the other two would be of no use.
    assert step(world) == ({"D@1": 2, "S@1": 1}, {1: 1.0})
    assert world.app.counted("app/S@2") == []
    # The new door has begun. Now all go over: first new requests, then the doors, and last what they call.
    get_ready(world, "D@2")
    world.settle()
    assert (world.app.weights, world.serving("app/S@1")) == ({2: 1.0}, 1)
    assert {each.phase for each in world.app.of("app/D@1")} == {Phase.DRAINING}
    assert world.app.counted("app/S@2") == []
    assert step(world) == ({"D@2": 1}, {2: 1.0})
    assert [each.phase for each in world.app.of("app/S@1")] == [Phase.DRAINING]
    assert len(world.app.counted("app/S@2")) == 1
    assert len(world.app.counted("app/D@2")) == 3
    world.run()
    assert step(world) == ({"D@2": 3, "S@2": 1}, {2: 1.0})
    assert world.app.rollout is None


def test_where_each_is_the_only_one_all_go_over_at_once() -> None:
    world = running(graph(1, doors=1))
    world.deploy(graph(2, doors=1), NO_SURGE)
    world.settle()
    assert (world.app.weights, world.serving("app/D@1"), world.serving("app/S@1")) == ({2: 1.0}, 0, 1)
    assert step(world) == ({}, {2: 1.0})
    world.run()
    assert step(world) == ({"D@2": 1, "S@2": 1}, {2: 1.0})


def test_the_last_old_replica_leaves_only_when_its_requests_go_elsewhere() -> None:
    world = running(graph(1, doors=3, models=3))
    world.deploy(graph(2, doors=3, models=3), NO_SURGE)
    assert step(world) == ({"D@1": 2, "S@1": 2}, {1: 1.0})
    for each in ("S@2", "D@2"):
        get_ready(world, each)
    assert step(world) == ({"D@1": 1, "S@1": 1, "D@2": 1, "S@2": 1}, {1: pytest.approx(2 / 3), 2: pytest.approx(1 / 3)})
    for each in ("S@2", "D@2"):
        get_ready(world, each)
    world.settle()
    assert world.app.weights == {2: 1.0}
    assert step(world) == ({"D@2": 2, "S@2": 2}, {2: 1.0})
    world.run()
    assert step(world) == ({"D@2": 3, "S@2": 3}, {2: 1.0})


def test_with_room_beside_nothing_is_handed_over() -> None:
    """One more, and one less: the only one leaves when another serves."""
    world = running(graph(1))
    world.deploy(graph(2), RollingUpdate(max_surge=1, max_unavailable=1))
    served = [step(world)]
    while world.app.rollout is not None:
        for each in ("S@2", "D@2"):
            get_ready(world, each)
        served.append(step(world))
    for serving, weights in served:
        assert all(serving.get(f"{name}@{number}") for number in weights for name in "DS"), served
    world.run()
    assert step(world) == ({"D@2": 3, "S@2": 1}, {2: 1.0})


def test_what_both_revisions_share_serves_the_requests_that_it_has_to_their_end() -> None:
    """The door is the same: nobody tells which requests of the old revision it still has, so they have their time."""
    world = running(graph(1, door=1))
    world.deploy(graph(2, door=1), NO_SURGE)
    world.settle()
    assert (world.app.weights, world.serving("app/S@1")) == ({2: 1.0}, 1)
    assert world.app.counted("app/S@2") == []
    world.now = world.wake_at or 0.0
    world.settle()
    assert (world.serving("app/S@1"), len(world.app.counted("app/S@2"))) == (0, 1)
    world.run()
    assert step(world) == ({"D@1": 3, "S@2": 1}, {2: 1.0})


def test_a_revision_that_was_given_all_and_never_begins_gives_all_back() -> None:
    world = running(graph(1))
    world.deploy(graph(2), NO_SURGE)
    step(world)
    get_ready(world, "D@2")
    while not world.app.counted("app/S@2"):
        step(world)
    for _ in range(9):
        world.now += 100.0
        world.settle()
        for each in list(world.app.of("app/S@2")):
            if each.phase is Phase.LAUNCHING:
                world.exit(each.id)
    for _ in range(5):
        step(world)
        get_ready(world, "S@1")
        get_ready(world, "D@1")
        # The bound holds on the way back, too: what the other leaves is the room.
        for name, most in (("D", 3), ("S", 1)):
            assert sum(len(world.app.counted(f"app/{name}@{version}")) for version in (1, 2)) <= most
    assert world.app.failure
    assert step(world) == ({"D@1": 3, "S@1": 1}, {1: 1.0})


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_a_share_that_is_less_than_one_replica_stops_one_nevertheless(replicas: int) -> None:
    world = running(model(1, replicas))
    world.deploy(model(2, replicas), RollingUpdate(max_surge=0.0, max_unavailable=0.25))
    world.run()
    assert step(world) == ({"D@2": replicas}, {2: 1.0})
