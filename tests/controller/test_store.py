"""The controller's state, in a file and over a store of keys and values alike: what is kept comes back as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_values import FakeValues
from workshop import application, deployment

from headrace.controller.kept import StateStore
from headrace.controller.kv_store import KeyValueStore
from headrace.controller.rows import Rows
from headrace.controller.store import Store
from headrace.core.attribution import Weights
from headrace.core.fleet import Application, Replica
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import InstanceError
from headrace.spec.grpc import GrpcService, gRPCOptions
from headrace.spec.status import HistoryEvent, RevisionRecord

GRPC = GrpcService(options=gRPCOptions(port=9, grpc_servicer_functions=("m.add_S",), request_timeout_s=1.5))

Place = Callable[[], StateStore]  # the next controller's store in the same place
Journey = Callable[[Callable[[StateStore], None]], StateStore]


def ignore(reason: str) -> None:
    """Of nobody's concern."""


@pytest.fixture(params=["file", "keys and values"])
def kept_in(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return lambda: Store(tmp_path / "state.db")
    values = FakeValues()
    return lambda: KeyValueStore(Rows(values))


@pytest.fixture
def journey(kept_in: Place) -> Journey:
    """Have a first controller keep things; its successor's store."""

    def travel(keep: Callable[[StateStore], None]) -> StateStore:
        store = kept_in()
        store.open(ignore)
        keep(store)
        store.close()
        again = kept_in()
        again.open(ignore)
        assert again.set_aside is None
        return again

    return travel


def filled(store: StateStore) -> Application:
    store.open(ignore)
    app = Application(name="app", target=2, current=1, failure="no", next_replica=12, deployed_at=5.5)
    app.revisions = {1: application(deployment("D")), 2: application(deployment("D", "die", user_config=[None, 1.5]))}
    for number in app.revisions:
        store.keep_revision(app, number)
    for number in (2, 11):
        replica = Replica(id=f"D#{number}", app="app", key="k", name="D", revision=1, address="unix:/x", level=3)
        app.replicas[replica.id] = replica
        store.keep_replica(app, replica)
    return app


def test_what_is_kept_comes_back(kept_in: Place) -> None:
    store = kept_in()
    app = filled(store)
    store.keep_ingress(HTTPOptions(port=1234, ingress_workers=2), GRPC)
    store.keep_fact("version", "17")
    store.close()
    again = kept_in()
    again.open(ignore)
    assert again.applications() == {"app": app}
    assert list(again.applications()["app"].replicas) == ["D#2", "D#11"]  # in order of starting, not of the alphabet
    assert again.http_options() == HTTPOptions(port=1234, ingress_workers=2)
    assert again.grpc_service() == GRPC
    assert (again.fact("version"), again.fact("nothing")) == ("17", "")
    assert again.set_aside is None
    again.close()


def test_what_is_forgotten_does_not(kept_in: Place) -> None:
    store = kept_in()
    app = filled(store)
    store.forget_replica("app", "D#2")
    store.forget_revision("app", 2)
    app.target, app.failure = 1, ""
    store.keep_application(app)
    (kept,) = store.applications().values()
    assert list(kept.revisions) == [1]
    assert list(kept.replicas) == ["D#11"]
    store.forget_application("app")
    assert store.applications() == {}
    store.close()


def test_a_new_life_forgets_all_but_the_count(kept_in: Place) -> None:
    store = kept_in()
    filled(store)
    store.keep_ingress(HTTPOptions(), None)
    store.keep_fact("version", "17")
    store.keep_notes({"of a client": b"x"})
    store.forget_all()
    assert store.applications() == {}
    assert store.notes("") == {}
    assert store.http_options() is None
    assert store.fact("version") == "17"
    store.close()


def test_a_process_that_dies_loses_nothing(kept_in: Place) -> None:
    store = kept_in()
    app = filled(store)
    asyncio.run(store.settled())
    again = kept_in()  # while the first has it open, and never closes it
    again.open(ignore)
    assert again.applications() == {"app": app}
    again.close()
    store.close()


def test_notes_of_clients_come_back_by_the_beginnings_of_their_names(kept_in: Place) -> None:
    store = kept_in()
    filled(store)
    store.keep_notes({"a/1": b"one", "a/2": b"\x00two", "b%_": b"", "gone": b"x"})
    store.keep_notes({"gone": None, "a/1": b"uno", "never": None})
    store.close()
    again = kept_in()
    again.open(ignore)
    assert again.notes("") == {"a/1": b"uno", "a/2": b"\x00two", "b%_": b""}
    assert again.notes("a/") == {"a/1": b"uno", "a/2": b"\x00two"}
    assert again.notes("b%") == {"b%_": b""}
    assert again.notes("%") == {}
    assert again.set_aside is None
    again.close()


def test_what_a_change_in_place_would_go_back_to(kept_in: Place) -> None:
    store = kept_in()
    app = filled(store)
    app.deploying, app.before = True, application(deployment("D", user_config="old"))
    store.keep_revision(app, 2)
    (kept,) = store.applications().values()
    assert kept == app
    app.before = None
    store.keep_revision(app, 2)
    (kept,) = store.applications().values()
    assert kept.before is None
    store.close()


def test_weights_come_back_from_when_they_count(journey: Journey) -> None:
    def keep(store: StateStore) -> None:
        for at in (1.0, 2.0, 3.0):
            store.keep_weights("a", Weights(at, {1: at}), begins=2.0)
        store.keep_weights("b", Weights(5.0, {2: 1.0}), begins=0.0)
        store.keep_weights("gone", Weights(5.0, {2: 1.0}), begins=0.0)
        store.forget_weights("gone")
        store.forget_weights("never")

    store = journey(keep)
    assert store.timelines() == {"a": [Weights(2.0, {1: 2.0}), Weights(3.0, {1: 3.0})], "b": [Weights(5.0, {2: 1.0})]}
    store.keep_weights("a", Weights(4.0, {1: 4.0}), begins=3.0)
    assert [entry.at for entry in store.timelines()["a"]] == [3.0, 4.0]
    store.forget_all()
    assert store.timelines() == {}
    store.close()


def test_histories_outlive_applications(journey: Journey) -> None:
    spec = application(deployment("D"))

    def event(number: int) -> HistoryEvent:
        return HistoryEvent(at=float(number), revision=number, what="deployed")

    def keep(store: StateStore) -> None:
        filled(store)
        for number in range(1, 13):
            store.keep_event("app", event(number), most=11)
            store.keep_record("app", RevisionRecord(number=number, at=1.0))
            store.keep_spec("app", number, spec)
        store.keep_event("other", event(1), most=11)
        store.forget_spec("app", 1)
        store.forget_record("app", 2)
        store.forget_application("app")
        store.forget_all()

    store = journey(keep)
    assert store.applications() == {}
    assert store.events() == [*(("app", event(number)) for number in range(2, 13)), ("other", event(1))]
    assert [(app, record.number) for app, record in store.records()] == [("app", n) for n in (1, *range(3, 13))]
    assert store.kept_specs() == [("app", number, "") for number in range(2, 13)]
    assert (store.kept_spec("app", 12), store.kept_spec("app", 1)) == (spec, None)
    store.keep_event("app", event(13), most=2)
    assert [each.revision for app, each in store.events() if app == "app"] == [12, 13]
    store.forget_history("app")
    assert (store.events(), store.records(), store.kept_specs()) == ([("other", event(1))], [], [])
    store.close()


def test_before_it_is_open_nothing_is_there(kept_in: Place) -> None:
    with pytest.raises(InstanceError, match="not open"):
        kept_in().applications()
    with pytest.raises(InstanceError, match="not open"):
        kept_in().keep_fact("a", "b")


def test_what_is_well_can_be_written_and_is_soon_settled(kept_in: Place) -> None:
    store = kept_in()
    store.open(ignore)
    store.check()
    store.keep_fact("a", "b")
    asyncio.run(store.settled())
    asyncio.run(store.settled())
    store.close()
