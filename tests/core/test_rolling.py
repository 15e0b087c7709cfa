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
