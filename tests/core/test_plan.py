"""Plans: what is done next, by tables."""

from __future__ import annotations

import pytest
from fleet_world import World, application, deployment

from headrace.core import plan
from headrace.core.fleet import callees_first
from headrace.core.lifecycle import COUNTED, Phase
from headrace.core.plan import Drain, Promote, Retire, Settle, Share, Start, Stop
from headrace.core.rollout import Stage
from headrace.spec.application import ApplicationSpec
from headrace.spec.errors import GraphError
from headrace.spec.rollout import Canary, Command

KEY = "app/D@1"


def running(spec: ApplicationSpec) -> World:
    world = World()
    world.deploy(spec)
    world.run()
    assert world.app.current == world.app.target
    world.log.clear()
    return world


def test_a_first_deploy_starts_callees_first_and_takes_the_traffic_when_all_is_known() -> None:
    world = World()
    world.deploy(application(deployment("A", uses=("B",)), deployment("B", num_replicas=2)))
    actions = world.round()
    assert [action.spec.name for action in actions if isinstance(action, Start)] == ["B", "B", "A"]
    assert world.round() == []
    world.ready("B#1")
    world.ready("A#3")
    assert world.round() == []
    world.ready("B#2")
    assert world.round() == []  # the router does not know the last one yet
    world.routed = world.snapshot.version - 1
    assert world.round() == []
    world.routed = world.snapshot.version
    assert world.round() == [Share({1: 1.0})]
    assert world.round() == []  # the router does not know the weight yet
    world.routed = world.snapshot.version
    assert [type(action) for action in world.round()] == [Promote]
    assert world.round() == [Settle()]
    assert world.round() == []
    assert world.snapshot.applications["app"].revisions[0].weight == 1.0


def test_a_replica_leaves_step_by_step() -> None:
    world = running(application(deployment("D", num_replicas=2, graceful_shutdown_timeout_s=7.0)))
    world.deploy(application(deployment("D", num_replicas=1, graceful_shutdown_timeout_s=7.0)))
    assert world.round() == [Retire("D#2")]
    assert world.serving(KEY) == 1
    assert Drain("D#2", 7.0) not in world.round()
    world.routed = world.snapshot.version
    assert world.round() == [Settle()]
    assert world.round() == [Drain("D#2", 7.0)]
    assert world.round() == []
    assert world.phases() == {"D#1": Phase.RUNNING, "D#2": Phase.DRAINING}
    assert world.wake_at == 7.0 + plan.DRAIN_MARGIN_S
    world.now = world.wake_at
    assert world.round() == [Stop("D#2", plan.KILL_GRACE_S)]
    assert world.round() == []
    world.exit("D#2")
    assert world.round() == []
    assert world.phases() == {"D#1": Phase.RUNNING}


def test_what_does_not_serve_yet_goes_before_what_does() -> None:
    world = running(application(deployment("D", num_replicas=2)))
    world.exit("D#1")
    world.round()
    assert world.phases() == {"D#2": Phase.RUNNING, "D#3": Phase.LAUNCHING}
    world.deploy(application(deployment("D", num_replicas=1)))
    assert Stop("D#3", plan.KILL_GRACE_S) in world.round()
    assert world.phases() == {"D#2": Phase.RUNNING, "D#3": Phase.STOPPING}


def test_a_shared_deployment_keeps_its_options_until_the_target_has_the_traffic() -> None:
    world = running(application(deployment("D"), deployment("S", num_replicas=3, user_config=1)))
    world.deploy(application(deployment("D", digest="2"), deployment("S", num_replicas=1, user_config=2)))
    world.settle()
    assert world.serving("app/S@1") == 3
    assert not any(isinstance(action, plan.Reconfigure) for action in world.log)
    world.all_become_ready_and_the_leaving_leave()
    world.run()
    assert world.serving("app/S@1") == 1
    assert world.log.count(plan.Reconfigure("S#2", world.app.spec.deployments[1])) == 1


def test_options_are_told_to_one_replica_after_the_other() -> None:
    world = running(application(deployment("D", num_replicas=3)))
    spec = application(deployment("D", num_replicas=3, user_config="new"))
    world.deploy(spec)
    assert world.round() == [plan.Reconfigure("D#1", spec.deployments[0])]
    world.app.replicas["D#1"].reconfiguring = True
    assert world.round() == []
    world.app.replicas["D#1"].reconfiguring = False
    assert world.round() == [plan.Reconfigure("D#2", spec.deployments[0])]


def test_an_abandoned_target_goes_and_the_current_stays() -> None:
    world = running(application(deployment("D", num_replicas=2)))
    world.deploy(application(deployment("D", digest="2", num_replicas=2)))
    world.settle()
    for _ in range(3):
        id = next(id for id, phase in world.phases().items() if phase is Phase.LAUNCHING)
        world.exit(id)
        world.settle()
        world.now += 10.0
    assert world.app.failure.startswith("deployment D failed to start 3 times; its last error:\nD#")
    world.run()
    assert world.phases() == {"D#1": Phase.RUNNING, "D#2": Phase.RUNNING}
    assert world.serving(KEY) == 2
    assert not any(isinstance(action, Promote) for action in world.log)


@pytest.mark.parametrize(("replicas", "retries", "limit"), [(1, 3, 3), (1, 20, 3), (4, 3, 3), (4, 20, 12), (2, 1, 1)])
def test_how_often_a_start_is_tried(replicas: int, retries: int, limit: int) -> None:
    spec = deployment("D", num_replicas=replicas, max_constructor_retry_count=retries)
    assert plan.start_limit(spec) == limit


def test_a_start_that_takes_too_long_is_stopped() -> None:
    world = World()
    world.deploy(application(deployment("D", start_timeout_s=50.0)))
    world.round()
    world.app.replicas["D#1"].phase = Phase.STARTING
    assert world.round() == []
    assert world.wake_at == 50.0
    world.now = 50.0
    (stop,) = world.round()
    assert isinstance(stop, Stop)
    assert "start_timeout_s=50" in stop.error


def test_options_that_are_not_taken_in_time_end_their_replica() -> None:
    world = running(application(deployment("D", start_timeout_s=9.0)))
    replica = world.app.replicas["D#1"]
    replica.reconfiguring, replica.told_at = True, world.now
    assert world.round() == []
    assert world.wake_at == world.now + 9.0
    world.now += 9.0
    (stop,) = world.round()
    assert isinstance(stop, Stop)
    assert "D#1 has not taken its options within start_timeout_s=9" in stop.error


def test_a_deleted_application_goes_callers_first() -> None:
    world = running(application(deployment("A", uses=("B",)), deployment("B", uses=("C",)), deployment("C")))
    world.delete()
    for id in ("A#3", "B#2", "C#1"):
        world.settle()
        drained = [action.id for action in world.log if isinstance(action, Drain)]
        assert drained[-1:] == [id]
        world.all_become_ready_and_the_leaving_leave()
    world.settle()
    assert world.vanished


def test_one_that_was_not_heard_from_is_left_alone() -> None:
    world = running(application(deployment("D", num_replicas=3)))
    for replica in world.app.replicas.values():
        replica.phase = Phase.RECOVERING
    world.now = 1e6
    world.settle()
    assert world.log == []
    assert world.serving(KEY) == 3


def test_a_controller_that_has_come_back_moves_no_traffic_while_routers_have_not_said_what_they_know() -> None:
    world = running(application(deployment("D")))
    world.deploy(application(deployment("D", digest="2")), Canary(steps=((0.5, None),), analysis=()))
    world.run()
    assert world.app.weights == {1: 0.5, 2: 0.5}
    world.log.clear()
    for phase in (Phase.RECOVERING, Phase.RUNNING):
        for replica in world.app.replicas.values():
            replica.phase = phase
        world.routed = 0
        assert world.round() == []
    world.exit(next(world.app.of("app/D@2")).id)
    assert Share({1: 1.0}) in world.round()


def test_callees_first_takes_long_chains_and_refuses_circles() -> None:
    chain = [deployment(f"D{i}", uses=(f"D{i + 1}",)) for i in range(5000)]
    ordered = callees_first(application(*chain, deployment("D5000")))
    assert [each.name for each in ordered] == [f"D{i}" for i in range(5000, -1, -1)]
    with pytest.raises(GraphError, match="uses itself"):
        callees_first(application(*chain, deployment("D5000", uses=("D0",))))
    diamond = [deployment("A", uses=("B", "C")), deployment("B", uses=("D",)), deployment("C", uses=("D",))]
    assert [each.name for each in callees_first(application(*diamond, deployment("D")))] == ["D", "B", "C", "A"]


def test_a_first_revision_that_is_aborted_as_it_gets_the_traffic_has_none() -> None:
    world = World()
    world.deploy(application(deployment("D")))
    world.round()
    world.ready("D#1")
    world.round()
    world.routed = world.snapshot.version
    assert world.round() == [Share({1: 1.0})]
    world.command(Command.ABORT)
    world.run()
    assert (world.app.weights, world.app.replicas) == ({}, {})
    assert "failed to deploy" in world.snapshot.applications["app"].failed


def test_a_split_that_breaks_before_it_is_whole_goes_back_to_a_revision_that_is_still_there() -> None:
    world = running(application(deployment("D")))
    world.deploy(application(deployment("D", digest="2")), Canary(steps=((0.5, None),), analysis=()))
    world.run()
    world.command(Command.ABORT)
    world.run()
    world.split({2: 1.0})
    while world.app.weights != {2: 1.0}:
        world.routed = world.snapshot.version
        world.round()
        for id, phase in world.phases().items():
            if phase is Phase.LAUNCHING:
                world.ready(id)
    for _ in range(4):
        for replica in list(world.app.of("app/D@2")):
            if replica.phase in COUNTED:
                world.exit(replica.id)
        world.now += 10.0
        world.settle()
        for replica in list(world.app.of(KEY)):
            if replica.phase is Phase.DRAINING:
                world.exit(replica.id)
    assert world.app.failure
    world.run()
    assert (world.app.weights, world.app.current) == ({1: 1.0}, 1)
    assert world.serving(KEY) == 1


def test_a_rollout_does_not_fail_for_what_it_began_with() -> None:
    world = running(application(deployment("D")))
    world.deploy(application(deployment("D", digest="2")), Canary(steps=((0.5, None),), analysis=()))
    world.run()
    world.command(Command.ABORT)
    world.run()
    world.split({1: 0.5, 2: 0.5})
    world.run()
    world.deploy(application(deployment("D", digest="3")), Canary(steps=((0.5, None),), analysis=()))
    world.run()
    for _ in range(5):
        for replica in list(world.app.of("app/D@2")):
            world.exit(replica.id)
        world.now += 10.0
        world.settle()
    assert world.app.rollout is not None
    assert world.app.rollout.stage is Stage.WATCHING
    world.run()
    assert world.app.weights == pytest.approx({1: 0.25, 2: 0.25, 3: 0.5})
