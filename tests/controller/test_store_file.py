"""The controller's file: what cannot be read is set aside, and a full disk stops nobody."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_store import filled

from headrace.controller.store import SCHEMA_VERSION, Store
from headrace.core.fleet import Replica
from headrace.spec.errors import InstanceError


def test_nothing_is_left_of_an_application_that_is_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    filled(store)
    store.forget_application("app")
    database = sqlite3.connect(tmp_path / "state.db")
    for table in ("revisions", "replicas", "befores"):
        assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    database.close()
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
    store = Store(tmp_path / "state.db")
    filled(store)
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
    store = Store(tmp_path / "state.db")
    app = filled(store)
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
    store = Store(tmp_path / "state.db")
    app = filled(store)
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
