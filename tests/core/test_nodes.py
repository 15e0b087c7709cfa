"""Which nodes are lost: by tables, and by a cluster in which anything happens in any order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.core.nodes import TOLD_GONE, Node, NodePolicy, Nodes
from headrace.spec.status import NodeStatus

POLICY = NodePolicy()
STEP_S = POLICY.look_s


class Cluster:
    """Nodes whose agents report every half second while they are among `reporting`; time goes in looks."""

    def __init__(self, *ids: str) -> None:
        self.now = 100.0
        self.nodes = Nodes(POLICY, self.now)
        self.reporting: set[str] = set()
        self.lost: list[str] = []
        self.name(*ids)

    def name(self, *ids: str, leaving: tuple[str, ...] = (), restarting: tuple[str, ...] = ()) -> None:
        told = [
            Node(id, host=f"host-{id}", head=id == ids[0], leaving=id in leaving, restarting=id in restarting)
            for id in ids
        ]
        self.lost += self.nodes.name(told, self.now)

    def connect(self, *ids: str) -> None:
        for id in ids:
            self.nodes.connected(id, "", self.now)
            self.reporting.add(id)

    def cut(self, *ids: str) -> None:
        for id in ids:
            self.nodes.broken(id, self.now)
            self.reporting.discard(id)

    def silence(self, *ids: str) -> None:
        self.reporting.difference_update(ids)

    def let(self, seconds: float) -> float:
        """Let time pass. Returns after how much of it somebody was lost first, else all of it."""
        count = len(self.lost)
        for number in range(round(seconds / STEP_S)):
            self.now += STEP_S
            for id in self.reporting:
                self.nodes.reported(id, self.now)
            self.lost += self.nodes.look(self.now)
            if len(self.lost) > count:
                return (number + 1) * STEP_S
        return seconds

    def states(self) -> dict[str, str]:
        return {node.id: self.nodes.state(node.id, self.now).value for node in self.nodes}


def alive(*ids: str) -> Cluster:
    cluster = Cluster(*ids)
    cluster.connect(*ids)
    cluster.let(1.0)
    assert set(cluster.states().values()) == {"ALIVE"}
    return cluster


def test_a_broken_connection_has_two_seconds_to_come_back() -> None:
    cluster = alive("a", "b", "c")
    cluster.cut("b")
    assert cluster.states() == {"a": "ALIVE", "b": "SUSPECT", "c": "ALIVE"}
    cluster.let(1.5)
    cluster.connect("b")
    cluster.let(20.0)
    assert cluster.lost == []
    cluster.cut("b")
    assert cluster.let(20.0) == POLICY.broken_s
    assert cluster.lost == ["b"]
    assert cluster.nodes.is_lost("b")
    assert cluster.states() == {"a": "ALIVE", "b": "LOST", "c": "ALIVE"}


def test_a_node_whose_agent_is_started_anew_has_longer_for_it_is_well_itself() -> None:
    cluster = alive("a", "b")
    cluster.cut("b")
    cluster.let(2.0)
    cluster.name("a", "b", restarting=("b",))
    cluster.let(POLICY.broken_s * 3)
    assert cluster.states() == {"a": "ALIVE", "b": "SUSPECT"}
    cluster.connect("b")
    cluster.name("a", "b")
    cluster.let(20.0)
    assert cluster.lost == []
    # What breaks after that has as long as ever; so has one that does not come after it was started.
    cluster.cut("b")
    assert cluster.let(20.0) == POLICY.broken_s
    cluster.connect("b")
    cluster.name("a", "b", restarting=("b",))  # told before its connection is seen to break
    cluster.cut("b")
    cluster.let(POLICY.broken_s * 3)
    cluster.name("a", "b")
    assert cluster.let(20.0) == POLICY.broken_s


def test_an_agent_that_is_started_anew_for_ever_is_none() -> None:
    cluster = alive("a", "b")
    cluster.cut("b")
    cluster.name("a", "b", restarting=("b",))
    assert cluster.let(1000.0) == POLICY.restart_s
    assert cluster.lost == ["b"]


def test_a_node_that_is_gone_is_lost_whatever_was_said_of_its_agent() -> None:
    cluster = alive("a", "b")
    cluster.cut("b")
    cluster.name("a", "b", restarting=("b",))
    cluster.name("a")
    assert cluster.lost == ["b"]


def test_a_connection_without_reports_is_lost_after_three_seconds() -> None:
    cluster = alive("a", "b")
    cluster.silence("a")
    cluster.let(1.25)
    assert cluster.states() == {"a": "SUSPECT", "b": "ALIVE"}
    assert 1.25 + cluster.let(20.0) == POLICY.silent_s
    assert cluster.lost == ["a"]


def test_a_node_is_back_when_its_agent_is() -> None:
    cluster = alive("a", "b")
    cluster.cut("b")
    cluster.let(5.0)
    assert cluster.nodes.connected("b", "elsewhere", cluster.now)
    assert not cluster.nodes.reported("b", cluster.now)
    assert cluster.states() == {"a": "ALIVE", "b": "ALIVE"}
    assert cluster.nodes.node("b").host == "elsewhere"


def test_the_engine_may_be_first_and_last() -> None:
    cluster = alive("a", "b")
    cluster.name("a")
    assert cluster.lost == ["b"]
    assert cluster.nodes.is_lost("b")
    assert not cluster.nodes.connected("b", "", cluster.now)  # whatever its agent says
    assert cluster.nodes.state("b") is NodeStatus.LOST
    cluster.name("a", "b")
    assert cluster.states()["b"] == "ALIVE"
    cluster.cut("b")
    cluster.let(5.0)
    cluster.name("a")
    assert cluster.lost == ["b", "b"]  # once each time
    assert cluster.states() == {"a": "ALIVE"}
    assert cluster.nodes.is_lost("b")
    assert not cluster.nodes.is_lost("never heard of")


def test_one_that_was_gone_is_back_with_its_agent_and_not_before() -> None:
    cluster = alive("a", "b")
    cluster.cut("b")
    cluster.name("a")
    cluster.name("a", "b")
    assert cluster.states()["b"] == "LOST"
    cluster.connect("b")
    assert cluster.states()["b"] == "ALIVE"


def test_a_node_that_leaves_is_told_and_may_stay_after_all() -> None:
    cluster = alive("a", "b")
    cluster.name("a", "b", leaving=("b",))
    assert cluster.states() == {"a": "ALIVE", "b": "LEAVING"}
    assert cluster.nodes.leaving() == {"b"}
    cluster.name("a", "b")
    assert cluster.states() == {"a": "ALIVE", "b": "ALIVE"}


def test_who_has_just_begun_gives_everybody_time() -> None:
    cluster = Cluster("a", "b", "c")
    assert set(cluster.states().values()) == {"COMING"}
    cluster.let(5.0)
    cluster.connect("a", "b")
    assert 5.0 + cluster.let(20.0) == POLICY.first_s
    assert cluster.lost == ["c"]


def test_a_node_that_the_engine_does_not_name_yet_has_time_too_if_something_runs_there() -> None:
    cluster = Cluster("a")
    for id in ("b", "c", "d"):
        cluster.nodes.expect(id, cluster.now)
    cluster.connect("a")
    cluster.let(5.0)
    cluster.name("a", "c")
    cluster.connect("c", "d")
    assert cluster.states() == {"a": "ALIVE", "b": "COMING", "c": "ALIVE", "d": "COMING"}
    assert 5.0 + cluster.let(20.0) == POLICY.first_s
    assert cluster.lost == ["b"]
    assert cluster.nodes.is_lost("b")
    cluster.name("a", "b", "c", "d")
    assert cluster.states() == {"a": "ALIVE", "b": "LOST", "c": "ALIVE", "d": "ALIVE"}
    cluster.connect("b")
    assert cluster.states()["b"] == "ALIVE"


def test_nobody_is_judged_while_nobody_is_heard() -> None:
    cluster = alive("a", "b", "c")
    cluster.cut("a", "b")
    cluster.silence("c")
    assert cluster.let(1000.0) == 1000.0
    assert set(cluster.states().values()) == {"SUSPECT"}
    cluster.connect("a")  # the first to be heard again: the others have time from now on
    assert cluster.let(20.0) == POLICY.silent_s
    assert sorted(cluster.lost) == ["b", "c"]


def test_a_stalled_controller_judges_nobody_by_what_it_did_not_hear() -> None:
    cluster = alive("a", "b", "c")
    cluster.cut("b")
    cluster.now += 60.0
    cluster.reporting.clear()
    assert cluster.let(1.0) == 1.0  # what came in meanwhile is read by now
    cluster.reporting = {"a", "c"}
    assert 1.0 + cluster.let(20.0) == STEP_S + POLICY.broken_s
    assert cluster.lost == ["b"]


def test_the_only_node_of_an_engine_on_one_machine_has_no_agent() -> None:
    cluster = Cluster("")
    assert cluster.let(1000.0) == 1000.0
    assert cluster.states() == {"": "ALIVE"}


def test_of_nodes_that_left_long_ago_nobody_is_told() -> None:
    cluster = alive("a")
    for number in range(100):
        cluster.name("a", f"n{number:02}")
    cluster.name("a")
    assert cluster.nodes.lost() == [f"n{number:02}" for number in range(100 - TOLD_GONE, 100)]


class AnythingHappens(RuleBasedStateMachine):
    """Agents come, go and fall silent, the engine names nodes and does not, the controller stalls, in any order."""

    ALL = ("a", "b", "c", "d")

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster("a", "b", "c")
        self.named = {"a", "b", "c"}
        self.since = dict.fromkeys(self.ALL, 100.0)  # nothing was heard of it
        self.attentive = 100.0  # since then the controller has looked in time, and heard of somebody
        self.restarting: dict[str, float] = {}  # since when
        self.connected = dict.fromkeys(self.ALL, False)

    def heard(self, id: str) -> None:
        self.since[id] = self.cluster.now

    @rule(id=st.sampled_from(ALL))
    def an_agent_connects(self, id: str) -> None:
        self.cluster.nodes.connected(id, "", self.cluster.now)
        self.connected[id] = True
        self.heard(id)

    @rule(id=st.sampled_from(ALL))
    def a_connection_breaks(self, id: str) -> None:
        self.connected[id] = False
        self.cluster.nodes.broken(id, self.cluster.now)

    @rule(ids=st.sets(st.sampled_from(ALL)), restarting=st.sets(st.sampled_from(ALL)))
    def the_engine_names(self, ids: set[str], restarting: set[str]) -> None:
        before = {id for id in ids & self.named if self.cluster.nodes.is_lost(id)}
        self.cluster.lost.clear()
        told = [Node(id, restarting=id in restarting) for id in sorted(ids)]
        lost = self.cluster.nodes.name(told, self.cluster.now)
        assert set(lost) <= self.named - ids
        for id in (ids - self.named) | (self.restarting.keys() & ids - restarting):
            self.since[id] = self.cluster.now
        self.restarting = {id: self.restarting.get(id, self.cluster.now) for id in restarting & ids}
        self.named = ids
        assert before == {id for id in ids if self.cluster.nodes.is_lost(id)} & before

    @rule(looks=st.integers(1, 20), reporting=st.sets(st.sampled_from(ALL)))
    def time_passes(self, looks: int, reporting: set[str]) -> None:
        cluster = self.cluster
        for _ in range(looks):
            cluster.now += STEP_S
            heard = {id for id in reporting if self.connected[id]}
            for id in heard:
                cluster.nodes.reported(id, cluster.now)
                self.heard(id)
            before = {id for id in self.named if cluster.nodes.is_lost(id)}
            lost = set(cluster.nodes.look(cluster.now))
            assert not lost & before  # told once
            assert lost <= self.named - heard
            somebody = any(self.connected[id] and cluster.now - self.since[id] < POLICY.suspect_s for id in self.named)
            if not somebody:
                self.attentive = cluster.now
                assert not lost
            told = cluster.nodes.lost()
            assert told == sorted(id for id in self.ALL if cluster.nodes.is_lost(id))
            for id in lost:
                assert cluster.now - self.since[id] >= min(POLICY.broken_s, POLICY.silent_s)
                if id in self.restarting and not self.connected[id]:
                    assert cluster.now - max(self.restarting[id], self.since[id]) >= POLICY.first_s
            if cluster.now - self.attentive > POLICY.first_s:
                for id in self.named - self.restarting.keys():
                    assert cluster.nodes.is_lost(id) or cluster.now - self.since[id] < POLICY.first_s

    @rule(seconds=st.sampled_from([1.5, 60.0]))
    def the_controller_stalls(self, seconds: float) -> None:
        self.cluster.now += seconds
        assert self.cluster.nodes.look(self.cluster.now) == []
        self.attentive = self.cluster.now

    @precondition(lambda self: self.named)
    @rule(data=st.data())
    def all_is_well_for_a_moment(self, data: st.DataObject) -> None:
        for id in sorted(self.named):
            if not self.connected[id]:
                self.an_agent_connects(id)
        self.time_passes(1, set(self.named))
        assert {self.cluster.nodes.state(id, self.cluster.now) for id in self.named} == {NodeStatus.ALIVE}

    @invariant()
    def what_is_alive_was_heard(self) -> None:
        nodes = self.cluster.nodes
        for id in self.ALL:
            if nodes.state(id, self.cluster.now) is NodeStatus.ALIVE:
                assert id in self.named
                assert self.connected[id]
                assert not nodes.is_lost(id)


AnythingHappens.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnythingHappens = AnythingHappens.TestCase
