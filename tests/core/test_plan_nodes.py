"""Plans where nodes leave or are lost: replicas move before they go, and nobody is punished for the end of a node."""

from __future__ import annotations

from fleet_world import World, application, deployment

from headrace.core import plan
from headrace.core.lifecycle import Phase
from headrace.core.plan import Retire, Start, Stop

KEY = "app/D@1"


def test_what_runs_on_a_node_that_leaves_moves_before_it_goes_callers_first() -> None:
    world = World("a", "b")
    world.deploy(application(deployment("A", num_replicas=2, uses=("B",)), deployment("B", num_replicas=2)))
    world.run()
    assert {id: replica.node for id, replica in world.app.replicas.items()} == {
        "B#1": "a",
        "B#2": "b",
        "A#3": "a",
        "A#4": "b",
    }
    world.log.clear()
    world.app.leaving = frozenset("a")
    world.settle()
    assert [action.spec.name for action in world.log if isinstance(action, Start)] == ["B", "A"]
    assert [world.serving(f"app/{name}@1") for name in "AB"] == [2, 2]
    world.ready("A#6")
    world.settle()
    assert [action for action in world.log if isinstance(action, Retire)] == [Retire("A#3")]
    world.ready("B#5")
    world.settle()
    assert [action for action in world.log if isinstance(action, Retire)] == [Retire("A#3"), Retire("B#1")]
    world.run()
    assert {replica.node for replica in world.app.replicas.values()} == {"b"}
    assert [world.serving(f"app/{name}@1") for name in "AB"] == [2, 2]


def test_what_does_not_serve_yet_on_a_node_that_leaves_goes_at_once() -> None:
    world = World("a", "b")
    world.deploy(application(deployment("D", num_replicas=2)))
    world.round()
    world.app.leaving = frozenset("a")
    assert Stop("D#1", plan.KILL_GRACE_S) in world.round()
    world.run()
    assert {id: replica.node for id, replica in world.app.replicas.items()} == {"D#2": "b", "D#3": "b"}


def test_what_has_nowhere_to_go_serves_where_it_is_and_holds_up_no_deploy() -> None:
    world = World("a", "b")
    world.deploy(application(deployment("D", num_replicas=2)))
    world.run()
    world.app.leaving = frozenset("a")
    world.deploy(application(deployment("D", num_replicas=2, max_queued_requests=7)))
    world.settle()
    world.exit("D#3")  # there is no room for it
    world.now += 10.0
    world.settle()
    assert world.serving(KEY) == 2
    world.run()
    assert not world.app.deploying


def test_a_replica_that_is_lost_with_its_node_has_its_successor_at_once() -> None:
    world = World("a", "b")
    world.deploy(application(deployment("D", num_replicas=2)))
    world.run()
    for number, node in enumerate("abababab", 5):
        world.nodes.append(f"{node}{number}")
        world.lose(world.app.replicas[max(world.app.replicas)].node)
        world.settle()
        assert sum(phase is Phase.LAUNCHING for phase in world.phases().values()) >= 1
        world.run()
        assert world.serving(KEY) == 2
    assert world.app.failures[KEY].starts == 0
