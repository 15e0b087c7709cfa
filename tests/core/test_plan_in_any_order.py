"""Plans: what is done next, by a world in which anything happens in any order."""

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
from headrace.core.lifecycle import COUNTED, Phase
from headrace.core.plan import Start
from headrace.core.rollout import Stage
from headrace.spec.errors import RolloutError
from headrace.spec.rollout import BlueGreen, Canary, Command, RollingUpdate, Shadow, Strategy

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
