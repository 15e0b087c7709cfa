"""Plans: what is done next, by tables, and by a world in which anything happens in any order."""

from __future__ import annotations

import contextlib
import math

import pytest
from fleet_world import World, application, deployment
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.core import plan
from headrace.core.analysis import FAIL, HOLD, PASS, Verdict
from headrace.core.fleet import callees_first
from headrace.core.lifecycle import COUNTED, Phase
from headrace.core.plan import Drain, Promote, Retire, Settle, Share, Start, Stop
from headrace.core.rollout import Stage
from headrace.spec.application import ApplicationSpec
from headrace.spec.errors import GraphError, RolloutError
from headrace.spec.rollout import BlueGreen, Canary, Command, RollingUpdate, Shadow, Strategy

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


STRATEGIES: list[Strategy] = [
    RollingUpdate(),
    RollingUpdate(max_surge=1),
    RollingUpdate(max_surge=0, max_unavailable=1),
    Canary(steps=((0.1, 10.0), (0.5, None), (0.9, 0.0))),
    BlueGreen(hold_s=10.0),
    Shadow(fraction=0.3, duration_s=10.0),
    Shadow(duration_s=10.0, promote=False),
]


class AnythingHappens(RuleBasedStateMachine):
    """Deploys, crashes, failures, reports, slow routers and time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World("a", "b", "c")
        self.harmed: set[str] = set()  # keys of which a replica failed since they were last whole
        self.promised: dict[str, int] = {}  # key -> how many served at the last look
        self.requests: list[tuple[int, str, float]] = []  # in work: of this revision, at this replica, since then
        self.unavailable = 1  # the most that a strategy among them lets be missing

    @rule(
        door=st.sampled_from("12"),
        shared=st.sampled_from("12"),
        replicas=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        config=st.integers(0, 1),
        strategy=st.sampled_from(STRATEGIES),
    )
    def deploy(self, door: str, shared: str, replicas: tuple[int, int], config: int, strategy: Strategy) -> None:
        if not self.world.app.deleting:
            self.world.deploy(
                application(
                    deployment("D", digest=door, num_replicas=replicas[0], uses=("S",)),
                    deployment("S", digest=shared, num_replicas=replicas[1], user_config=config),
                ),
                strategy,
            )

    @precondition(lambda self: self.world.app.rollout)
    @rule(says=st.sampled_from([PASS, PASS, HOLD, FAIL]))
    def the_analysis_says(self, says: str) -> None:
        self.world.app.verdict = Verdict(says, f"it says {says}")

    @precondition(lambda self: self.world.app.rollout)
    @rule(command=st.sampled_from(list(Command)))
    def somebody_commands(self, command: Command) -> None:
        with contextlib.suppress(RolloutError):  # it may make no sense now
            self.world.command(command)

    @precondition(lambda self: self.world.app.current and not self.world.app.rollout and not self.world.app.deleting)
    @rule(data=st.data(), share=st.sampled_from([0.0, 0.1, 0.5]))
    def somebody_shares_the_traffic(self, data: st.DataObject, share: float) -> None:
        app = self.world.app
        other = data.draw(st.sampled_from(sorted(app.revisions)))
        if other != app.current and share:
            self.world.split({app.current: 1.0 - share, other: share})
        else:
            self.world.split({other: 1.0})

    @precondition(lambda self: self.world.app.target and not self.world.vanished)
    @rule()
    def round(self) -> None:
        before = self.world.phases()
        actions = self.world.round()
        again = plan.plan_application(self.world.app, self.world.routed, self.world.now).actions
        if self.world.vanished:
            return
        # What was taken up is not planned again. (Starts would show as too many replicas in the world.)
        assert not [a for a in again if a in actions and not isinstance(a, Start)], (before, actions, again)

    @precondition(lambda self: self.world.app.replicas)
    @rule(data=st.data())
    def a_replica_gets_ready(self, data: st.DataObject) -> None:
        starting = [id for id, phase in self.world.phases().items() if phase in (Phase.LAUNCHING, Phase.STARTING)]
        if starting:
            self.world.ready(data.draw(st.sampled_from(starting)))

    @precondition(lambda self: self.world.app.replicas)
    @rule(data=st.data())
    def a_process_exits(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.world.app.replicas)))
        replica = self.world.app.replicas[id]
        if replica.phase in COUNTED:
            self.harmed.add(replica.key)
        self.world.exit(id)

    @precondition(lambda self: len(self.world.nodes) - len(self.world.app.leaving) > 1)
    @rule(data=st.data(), lost=st.booleans())
    def a_node_leaves_or_is_lost(self, data: st.DataObject, lost: bool) -> None:
        world = self.world
        node = data.draw(st.sampled_from([node for node in world.nodes if node not in world.app.leaving]))
        if lost:
            self.harmed |= {replica.key for replica in world.app.replicas.values() if replica.node == node}
            world.lose(node)
        else:
            world.app.leaving |= {node}

    @precondition(lambda self: self.world.app.leaving)
    @rule(data=st.data(), lost=st.booleans())
    def a_node_that_leaves_is_gone_or_stays_after_all(self, data: st.DataObject, lost: bool) -> None:
        world = self.world
        node = data.draw(st.sampled_from(sorted(world.app.leaving)))
        if lost:
            self.harmed |= {replica.key for replica in world.app.replicas.values() if replica.node == node}
            world.lose(node)
        else:
            world.app.leaving -= {node}

    @precondition(lambda self: len(self.world.nodes) < 4)
    @rule(node=st.sampled_from("abcd"))
    def a_node_comes(self, node: str) -> None:
        if node not in self.world.nodes:
            self.world.nodes.append(node)

    @precondition(lambda self: self.world.app.replicas)
    @rule()
    def those_that_were_told_to_leave_do(self) -> None:
        for id, phase in self.world.phases().items():
            if phase in (Phase.DRAINING, Phase.STOPPING):
                self.world.exit(id)

    @precondition(lambda self: self.world.app.target and not self.world.vanished)
    @rule()
    def all_goes_well_for_a_while(self) -> None:
        self.world.run()

    @precondition(lambda self: self.world.app.weights)
    @rule(data=st.data())
    def a_request_comes(self, data: st.DataObject) -> None:
        """To the door, by the snapshot that the router knows."""
        snapshot = self.world.published[self.world.routed]
        for entry in snapshot.applications.values():
            weighted = [revision for revision in entry.revisions if revision.weight]
            if weighted:
                revision = data.draw(st.sampled_from(weighted))
                replicas = snapshot.deployments[revision.deployments["D"]].replicas
                if replicas:
                    self.requests.append((revision.number, replicas[0].id, self.world.now))

    @rule(behind=st.integers(0, 3))
    def the_router_acknowledges(self, behind: int) -> None:
        self.world.routed = max(self.world.routed, self.world.snapshot.version - behind)

    @precondition(lambda self: self.world.app.target)
    @rule()
    def it_is_deleted(self) -> None:
        self.world.delete()

    @rule(seconds=st.sampled_from([0.5, 5.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @invariant()
    def who_has_traffic_has_replicas_for_it(self) -> None:
        """Unless one died since: replicas of a revision never get fewer than its weight needs by anything we do."""
        app = self.world.app
        if app.deleting:
            return
        for number, weight in app.weights.items():
            for key, spec in self.world.keys(number).items():
                serving = sum(replica.phase is Phase.RUNNING for replica in app.of(key))
                count = spec.options.num_replicas
                needed = math.ceil(count * weight - 1e-6) - self.unavailable
                if serving >= count:
                    self.harmed.discard(key)
                promised = min(needed, self.promised.get(key, 0))
                self.promised[key] = serving
                assert serving >= promised or key in self.harmed, f"{key} has {serving} replicas for {weight:.0%}"

    @invariant()
    def what_a_request_in_work_may_call_is_there(self) -> None:
        """Until its replica is gone, or for as long as that would have it in work if it left now."""
        world = self.world
        living = {
            id for id, phase in world.phases().items() if phase in (Phase.RUNNING, Phase.RETIRING, Phase.DRAINING)
        }
        given_s = 20.0  # graceful_shutdown_timeout_s
        self.requests = [each for each in self.requests if each[1] in living and world.now < each[2] + given_s]
        if not world.app.deleting:
            for number, id, _ in self.requests:
                revisions = {each.number: each.deployments for each in world.snapshot.applications["app"].revisions}
                assert "S" in revisions.get(number, ()), f"{id} has a request of revision {number} in work"

    @invariant()
    def weights_add_up(self) -> None:
        app = self.world.app
        if app.weights:
            assert sum(app.weights.values()) == pytest.approx(1.0)
            assert set(app.weights) <= set(app.revisions)

    @invariant()
    def routes_name_what_is_there(self) -> None:
        snapshot = self.world.snapshot
        for entry in snapshot.applications.values():
            for revision in entry.revisions:
                for name, key in revision.deployments.items():
                    assert snapshot.deployments[key].name == name
            total = sum(revision.weight for revision in entry.revisions)
            assert total == 0.0 or total == pytest.approx(1.0)

    def teardown(self) -> None:
        """When all goes well from now on, it comes to be as it should; an abort leaves the last good one."""
        world = self.world
        app = world.app
        if not app.target:
            return
        base = app.base()
        if app.rollout is not None and app.rollout.stage is not Stage.RETREATING and not app.deleting:
            world.command(Command.ABORT)
        world.run()
        if app.deleting:
            assert world.vanished
            return
        if app.ended is not None and app.failure and base:
            assert app.base() == base
        assert app.rollout is None
        assert app.weights == pytest.approx(app.base())
        assert set(app.revisions) == ({app.target, app.current, *app.split} - {0})
        wanted = app.wanted()
        for key in wanted:
            assert world.serving(key) == app.number_wanted(key) > 0
        assert all(replica.phase is Phase.RUNNING for replica in app.replicas.values())
        assert not any(replica.node in app.leaving for replica in app.replicas.values())
        assert {replica.key for replica in app.replicas.values()} == set(wanted)
        world.delete()
        world.run()
        assert world.vanished
        assert world.snapshot.applications == {}


AnythingHappens.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnythingHappens = AnythingHappens.TestCase
