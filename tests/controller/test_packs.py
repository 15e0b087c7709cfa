"""headrace.controller.packs: packs are stored whole under the name that their bytes have, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_values import FakeValues

from headrace.controller.packs import Packs, RowPacks
from headrace.controller.rows import Rows
from headrace.engine.directory import InstanceDirectory
from headrace.spec.errors import DeployFailedError, InstanceError, ProtocolError, RevisionNotFound
from headrace.wire.pack import name_of

ONE, TWO = b"one", b"two"


@pytest.fixture
def directory(tmp_path: Path) -> InstanceDirectory:
    directory = InstanceDirectory(tmp_path / "i")
    directory.create()
    return directory


def test_what_is_kept_can_be_loaded_by_the_next_controller(directory: InstanceDirectory) -> None:
    packs = Packs(directory)
    packs.keep({name_of(ONE): ONE}, name_of(ONE))
    packs.keep({}, name_of(ONE))  # it is there
    packs.close()
    again = Packs(directory)
    assert again.load([name_of(ONE), ""]) == {name_of(ONE): ONE}
    assert again.names() == {name_of(ONE)}
    assert stat.S_IMODE(directory.pack(name_of(ONE)).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.packs.stat().st_mode) == 0o700
    assert repr(again) == f"<Packs 1 in {directory.packs}>"


def test_only_what_the_application_names_is_stored(directory: InstanceDirectory) -> None:
    packs = Packs(directory)
    packs.keep({name_of(ONE): ONE}, "")
    assert not directory.packs.exists()
    packs.keep({name_of(ONE): ONE, name_of(TWO): TWO}, name_of(TWO))
    assert packs.names() == {name_of(TWO)}


@pytest.mark.parametrize(
    ("sent", "name", "error", "said"),
    [
        ({name_of(ONE): TWO}, name_of(ONE), ProtocolError, "was changed on its way"),
        ({"x": ONE}, "", ProtocolError, "the source pack 'x' came as 3 bytes"),
        ({}, name_of(ONE), DeployFailedError, "was neither sent with it nor is stored"),
        ({name_of(TWO): TWO}, name_of(ONE), DeployFailedError, "was neither sent with it nor is stored"),
        ({}, "../../etc/passwd", ProtocolError, "is no name of a source pack"),
        ({}, "state.db", ProtocolError, "is no name of a source pack"),
    ],
)
def test_what_is_not_kept(
    directory: InstanceDirectory, sent: dict[str, bytes], name: str, error: type[Exception], said: str
) -> None:
    packs = Packs(directory)
    with pytest.raises(error, match=said):
        packs.keep(sent, name)
    assert packs.names() == set()


def test_a_directory_that_is_none_fails_the_deploy(directory: InstanceDirectory) -> None:
    directory.packs.write_text("in the way")
    with pytest.raises(DeployFailedError, match=r"cannot be stored in .*is no directory"):
        Packs(directory).keep({name_of(ONE): ONE}, name_of(ONE))


def test_a_disk_that_takes_nothing_leaves_nothing(directory: InstanceDirectory) -> None:
    packs = Packs(directory)
    packs.keep({name_of(ONE): ONE}, name_of(ONE))
    # As a full disk would: the bytes cannot be put where they belong.
    (directory.packs / f".{name_of(TWO)}.{os.getpid()}").mkdir()
    with pytest.raises(DeployFailedError, match="cannot be stored"):
        packs.keep({name_of(TWO): TWO}, name_of(TWO))
    assert packs.names() == {name_of(ONE)}


def test_pruned_are_all_that_nobody_needs(directory: InstanceDirectory) -> None:
    packs = Packs(directory)
    packs.prune([])
    for data in (ONE, TWO):
        packs.keep({name_of(data): data}, name_of(data))
    (directory.packs / "a note of the user").write_text("stays")
    packs.prune([name_of(TWO), "", name_of(b"never there")])
    assert packs.names() == {name_of(TWO)}
    assert (directory.packs / "a note of the user").exists()


def test_one_that_is_gone_or_broken_is_said_to_be(directory: InstanceDirectory) -> None:
    packs = Packs(directory)
    with pytest.raises(RevisionNotFound, match="cannot be read"):
        packs.load([name_of(ONE)])
    packs.keep({name_of(ONE): ONE}, name_of(ONE))
    directory.pack(name_of(ONE)).write_bytes(TWO)
    with pytest.raises(RevisionNotFound, match="is broken"):
        packs.load([name_of(ONE)])
    packs.keep({name_of(ONE): ONE}, name_of(ONE))
    assert packs.load([name_of(ONE)]) == {name_of(ONE): ONE}


def test_the_directory_is_locked_against_what_tidies_up_by_age(directory: InstanceDirectory) -> None:
    packs = Packs(directory)
    packs.keep({name_of(ONE): ONE}, name_of(ONE))
    other = os.open(directory.packs, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        packs.close()
        packs.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever tidies up just now does not keep a deploy from being stored.
        Packs(directory).keep({name_of(TWO): TWO}, name_of(TWO))
    finally:
        os.close(other)


# --- as rows beside the state -----------------------------------------------------------------------------------------


@pytest.fixture
def values() -> FakeValues:
    return FakeValues()


@contextlib.contextmanager
def packs_over(values: FakeValues) -> Iterator[tuple[Rows, RowPacks]]:
    rows = Rows(values)
    rows.open(lambda tables: None, lambda reason: None)
    try:
        yield rows, RowPacks(rows)
    finally:
        values.away = False
        rows.close()


def test_what_is_kept_as_rows_can_be_loaded_by_the_next_controller(values: FakeValues) -> None:
    large = os.urandom(200_000)
    with packs_over(values) as (_, packs):
        packs.keep({name_of(ONE): ONE}, "")
        assert packs.names() == set()
        for data in (ONE, large):
            packs.keep({name_of(ONE): ONE, name_of(large): large}, name_of(data))
        packs.keep({}, name_of(ONE))  # it is there
        packs.close()
    with packs_over(values) as (_, packs):
        assert packs.load([name_of(ONE), "", name_of(large)]) == {name_of(ONE): ONE, name_of(large): large}
        packs.prune([name_of(ONE), "", name_of(TWO)])
        assert packs.names() == {name_of(ONE)}
        with pytest.raises(RevisionNotFound, match="is not stored"):
            packs.load([name_of(large)])
    with packs_over(values) as (_, packs):
        assert packs.names() == {name_of(ONE)}
    assert sum(map(len, values.rows.values())) < 1000


@pytest.mark.parametrize(
    ("sent", "name", "error", "said"),
    [
        ({name_of(ONE): TWO}, name_of(ONE), ProtocolError, "was changed on its way"),
        ({"x": ONE}, "", ProtocolError, "the source pack 'x' came as 3 bytes"),
        ({}, name_of(ONE), DeployFailedError, "was neither sent with it nor is stored"),
        ({}, "../../etc/passwd", ProtocolError, "is no name of a source pack"),
    ],
)
def test_what_is_not_kept_as_rows(
    values: FakeValues, sent: dict[str, bytes], name: str, error: type[Exception], said: str
) -> None:
    with packs_over(values) as (_, packs):
        with pytest.raises(error, match=said):
            packs.keep(sent, name)
        assert packs.names() == set()


def test_while_the_store_is_away_a_deploy_with_a_new_pack_fails(values: FakeValues) -> None:
    with packs_over(values) as (rows, packs):
        values.away = True
        rows.write(("t", "a", 1, b"x"))
        deadline = time.monotonic() + 20
        while True:
            try:
                rows.check()
            except InstanceError:
                break
            assert time.monotonic() < deadline
        with pytest.raises(DeployFailedError, match=r"cannot be stored: .*the fake store is away"):
            packs.keep({name_of(ONE): ONE}, name_of(ONE))
        assert packs.names() == set()
