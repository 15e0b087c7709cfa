"""The controller's file: what is kept comes back as it was; what cannot be read is set aside."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from workshop import application, deployment

from headrace.controller.store import SCHEMA_VERSION, Store
from headrace.core.fleet import Application, Replica
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import InstanceError
from headrace.spec.grpc import GrpcService, gRPCOptions

GRPC = GrpcService(options=gRPCOptions(port=9, grpc_servicer_functions=("m.add_S",), request_timeout_s=1.5))


def filled(path: Path) -> tuple[Store, Application]:
    store = Store(path)
    store.open()
    app = Application(name="app", target=2, current=1, failure="no", next_replica=12, deployed_at=5.5)
    app.revisions = {1: application(deployment("D")), 2: application(deployment("D", "die", user_config=[None, 1.5]))}
    for number in app.revisions:
        store.keep_revision(app, number)
    for number in (2, 11):
        replica = Replica(id=f"D#{number}", app="app", key="k", name="D", revision=1, address="unix:/x", level=3)
        app.replicas[replica.id] = replica
        store.keep_replica(app, replica)
    return store, app


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    store, app = filled(tmp_path / "state.db")
    store.keep_ingress(HTTPOptions(port=1234, ingress_workers=2), GRPC)
    store.keep_fact("version", "17")
    store.close()
    again = Store(tmp_path / "state.db")
    again.open()
    assert again.applications() == {"app": app}
    assert list(again.applications()["app"].replicas) == ["D#2", "D#11"]  # in order of starting, not of the alphabet
    assert again.http_options() == HTTPOptions(port=1234, ingress_workers=2)
    assert again.grpc_service() == GRPC
    assert (again.fact("version"), again.fact("nothing")) == ("17", "")
    assert again.set_aside is None
    again.close()


def test_what_is_forgotten_does_not(tmp_path: Path) -> None:
    store, app = filled(tmp_path / "state.db")
    store.forget_replica("app", "D#2")
    store.forget_revision("app", 2)
    app.target, app.failure = 1, ""
    store.keep_application(app)
    (kept,) = store.applications().values()
    assert list(kept.revisions) == [1]
    assert list(kept.replicas) == ["D#11"]
    store.forget_application("app")
    assert store.applications() == {}
    database = sqlite3.connect(tmp_path / "state.db")
    assert database.execute("SELECT count(*) FROM revisions").fetchone() == (0,)
    assert database.execute("SELECT count(*) FROM replicas").fetchone() == (0,)
    database.close()
    store.close()


def test_a_new_life_forgets_all_but_the_count(tmp_path: Path) -> None:
    store, _ = filled(tmp_path / "state.db")
    store.keep_ingress(HTTPOptions(), None)
    store.keep_fact("version", "17")
    store.keep_notes({"of a client": b"x"})
    store.forget_all()
    assert store.applications() == {}
    assert store.notes("") == {}
    assert store.http_options() is None
    assert store.fact("version") == "17"
    store.close()


def test_a_process_that_dies_loses_nothing(tmp_path: Path) -> None:
    store, app = filled(tmp_path / "state.db")
    again = Store(tmp_path / "state.db")  # while the first has it open, and never closes it
    again.open()
    assert again.applications() == {"app": app}
    again.close()
    store.close()


@pytest.mark.parametrize(
    "harm",
    [
        f"PRAGMA user_version = {SCHEMA_VERSION + 1}",
        "DROP TABLE replicas",
        "UPDATE revisions SET spec = x'c1'",
        "DELETE FROM revisions WHERE number = 2",
        "INSERT INTO facts VALUES ('http', x'00')",
    ],
)
def test_what_cannot_be_read_is_set_aside(harm: str, tmp_path: Path) -> None:
    store, _ = filled(tmp_path / "state.db")
    store.close()
    database = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    database.execute(harm)
    database.close()
    again = Store(tmp_path / "state.db")
    again.open()
    assert again.applications() == {}
    assert again.set_aside is not None
    assert again.set_aside.exists()
    again.close()


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow: to SQLite, as good as a disk without room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_room_nothing_fails_and_with_room_again_nothing_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, app = filled(tmp_path / "state.db")
    with full_disk():
        store.keep_fact("version", "18")
        app.next_replica = 13
        replica = app.replicas["D#12"] = Replica(id="D#12", app="app", key="k", name="D", revision=1, address="unix:/y")
        store.keep_replica(app, replica)
        del app.replicas["D#2"]
        store.forget_replica("app", "D#2")
        with pytest.raises(InstanceError, match=r"state\.db.*disk full"):
            store.check()
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # said once
    assert "cannot be written" in caplog.text
    store.check()
    store.keep_fact("more", "1")
    again = Store(tmp_path / "state.db")
    again.open()
    assert again.applications() == {"app": app}
    assert (again.fact("version"), again.fact("more")) == ("18", "1")
    again.close()
    store.close()


def test_without_room_the_file_is_not_taken_for_unreadable(tmp_path: Path) -> None:
    store, app = filled(tmp_path / "state.db")
    store.close()
    again = Store(tmp_path / "state.db")
    with full_disk(), pytest.raises(InstanceError, match="cannot be kept"):
        again.open()
    again.open()
    assert again.set_aside is None
    assert again.applications() == {"app": app}
    again.close()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path / "nowhere" / "state.db")
    with pytest.raises(InstanceError, match="nowhere"):
        store.open()
    with pytest.raises(InstanceError, match="not open"):
        store.applications()


def test_notes_of_clients_come_back_by_the_beginnings_of_their_names(tmp_path: Path) -> None:
    store, _ = filled(tmp_path / "state.db")
    store.keep_notes({"a/1": b"one", "a/2": b"\x00two", "b%_": b"", "gone": b"x"})
    store.keep_notes({"gone": None, "a/1": b"uno", "never": None})
    store.close()
    again = Store(tmp_path / "state.db")
    again.open()
    assert again.notes("") == {"a/1": b"uno", "a/2": b"\x00two", "b%_": b""}
    assert again.notes("a/") == {"a/1": b"uno", "a/2": b"\x00two"}
    assert again.notes("b%") == {"b%_": b""}
    assert again.notes("%") == {}
    assert again.set_aside is None
    again.close()
