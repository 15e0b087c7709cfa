"""headrace.engine.directory: whose it is, what it is called, and that a reader never sees half a snapshot."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.engine.directory import (
    InstanceDirectory,
    instance_directory,
    list_instances,
    read_node,
    read_secret,
    read_snapshot,
    runtime_directory,
    write_node,
    write_secret,
    write_snapshot,
)
from headrace.spec.errors import InstanceError, OptionError
from headrace.spec.snapshot import Snapshot


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "h"))
    return tmp_path / "h"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADRACE_HOME", "/srv/h")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert instance_directory("a").path == Path("/srv/h/a")
    monkeypatch.delenv("HEADRACE_HOME")
    assert instance_directory().path == tmp_path / "headrace/default"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "not-there"))
    assert instance_directory("a").path == Path(f"/tmp/headrace-{os.getuid()}/a")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert instance_directory("a").path == Path(f"/tmp/headrace-{os.getuid()}/a")


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "a b", "a\n", "é", "x" * 33, "a.b", "\0"])
def test_a_name_that_could_be_a_path_or_too_long_is_refused(name: str) -> None:
    with pytest.raises(
        OptionError, match=r"instance=.* is not a name: 1 to 32 letters, digits, '_' and '-' are allowed"
    ):
        instance_directory(name)


def test_all_of_it_is_private(home: Path) -> None:
    directory = instance_directory("a")
    directory.create()
    directory.create()
    assert [mode(path) for path in (home, directory.path, directory.replicas, directory.logs)] == [0o700] * 4
    directory.path.chmod(0o755)
    directory.create()
    assert mode(directory.path) == 0o700


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    long = InstanceDirectory(tmp_path / ("x" * 60) / ("y" * 32))
    with pytest.raises(InstanceError, match=r"too long: .* 99 are allowed; set HEADRACE_HOME to a shorter directory"):
        long.create()
    assert not long.path.exists()


def test_the_longest_sockets_fit_where_it_says_so() -> None:
    directory = InstanceDirectory(Path("/tmp/" + "x" * 70))
    assert len(os.fsencode(directory.replica_socket(9_999_999_999))) <= 99


def test_a_symbolic_link_in_its_place_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    home.mkdir()
    (home / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InstanceError, match=r"/a is a symbolic link: remove it"):
        instance_directory("a").create()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_in_its_place_is_refused(home: Path) -> None:
    home.mkdir()
    (home / "a").touch()
    with pytest.raises(InstanceError, match=r"/a is no directory: remove it"):
        instance_directory("a").create()
    home.rename(home.with_name("other"))
    home.touch()
    with pytest.raises(InstanceError, match=r"/h is no directory: remove it"):
        instance_directory("a").create()


def test_a_home_that_others_may_write_is_refused_and_not_changed(home: Path) -> None:
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(
        InstanceError, match=r"may be written by other users \(mode 0777\): make it private by `chmod 700"
    ):
        instance_directory("a").create()
    home.chmod(0o1777)  # as /tmp is
    instance_directory("a").create()
    assert mode(home) == 0o1777


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make what belongs to another")
def test_what_belongs_to_another_user_is_refused(home: Path) -> None:
    directory = instance_directory("a")
    directory.create()
    os.chown(directory.path, 12345, 12345)
    with pytest.raises(InstanceError, match=r"/a belongs to user 12345, not to you \(user 0\).* set HEADRACE_HOME"):
        directory.create()
    os.chown(directory.path, 0, 0)
    os.chown(home, 12345, 12345)
    with pytest.raises(InstanceError, match=r"/h belongs to user 12345"):
        directory.create()


def test_what_cannot_be_made_is_said_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InstanceError, match=r"cannot be made \((Not a directory|File exists): .*set HEADRACE_HOME"):
        InstanceDirectory(tmp_path / "file" / "h" / "a").create()


def test_its_layout_follows_from_its_path(home: Path) -> None:
    directory = instance_directory("a")
    assert runtime_directory(str(directory.path)) == directory
    assert directory.name == "a"
    assert directory.replica_socket(7) == directory.path / "r/7.sock"


@given(st.text(max_size=300))
def test_a_log_is_always_a_file_of_the_logs_folder(process_id: str) -> None:
    directory = InstanceDirectory(Path("/x"))
    path = directory.log(process_id)
    assert path.parent == directory.logs
    assert path.suffix == ".log"
    assert len(os.fsencode(path.name)) < 200


def test_one_keeper_at_a_time(home: Path) -> None:
    directory = instance_directory("a")
    directory.create()
    assert directory.keeper_pid() is None
    assert list_instances() == []
    lock = directory.lock_keeper()
    assert directory.keeper_pid() == os.getpid()
    assert list_instances() == [directory]
    with pytest.raises(InstanceError, match=rf"instance a already runs, pid {os.getpid()}; .*shutdown --instance a"):
        directory.lock_keeper()
    lock.release()
    lock.release()
    assert directory.keeper_pid() is None
    directory.lock_keeper().release()


def test_cleaning_removes_the_past_and_keeps_the_state_and_one_past_of_logs(home: Path) -> None:
    directory = instance_directory("a")
    directory.create()
    for life in range(3):
        for path in (directory.keeper_socket, directory.control_socket, directory.replica_socket(1), directory.state):
            path.touch()
        (directory.path / ".snapshot.123").touch()
        write_snapshot(directory, Snapshot(version=life))
        write_secret(directory, b"s" * 32)
        write_node(directory, "n1")
        directory.log("a").write_text(str(life))
        directory.log(f"only-in-{life}").touch()
        directory.clean()
        assert list(directory.logs.iterdir()) == []
        assert (directory.path / "logs.old" / "a.log").read_text() == str(life)
    assert sorted(path.name for path in directory.path.rglob("*")) == [
        "a.log",
        "logs",
        "logs.old",
        "only-in-2.log",
        "r",
        "state.db",
    ]


def test_a_snapshot_is_read_as_it_was_written(home: Path) -> None:
    directory = instance_directory("a")
    directory.create()
    assert read_snapshot(directory) is None
    for version in (1, 2):
        write_snapshot(directory, Snapshot(version=version, instance="a"))
        assert read_snapshot(directory) == Snapshot(version=version, instance="a")
    assert mode(directory.path) == 0o700
    assert [path.name for path in directory.path.iterdir() if path.is_file()] == ["snapshot.bin"]


@given(cut=st.integers(min_value=0, max_value=1000), garbage=st.binary(max_size=50))
def test_a_broken_snapshot_is_none(tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes) -> None:
    directory = InstanceDirectory(tmp_path_factory.mktemp("d"))
    write_snapshot(directory, Snapshot(version=7))
    whole = directory.snapshot.read_bytes()
    directory.snapshot.write_bytes(whole[: min(cut, len(whole) - 1)])
    assert read_snapshot(directory) is None
    directory.snapshot.write_bytes(whole + garbage)
    assert (read_snapshot(directory) is None) == bool(garbage)


@pytest.mark.parametrize("broken", [b"\x81\xa8instance\xa1\xff", b"\x81\xa1x" + b"\x91" * 100_000])
def test_a_snapshot_of_broken_text_or_endless_depth_is_none(broken: bytes, home: Path) -> None:
    directory = instance_directory("a")
    directory.create()
    directory.snapshot.write_bytes(broken)
    assert read_snapshot(directory) is None


def test_a_snapshot_that_cannot_be_written_leaves_the_old_one(home: Path) -> None:
    directory = instance_directory("a")
    directory.create()
    write_snapshot(directory, Snapshot(version=1))
    (directory.path / f".snapshot.bin.{os.getpid()}").mkdir()  # in the way of the temporary file
    with pytest.raises(OSError, match="Is a directory"):
        write_snapshot(directory, Snapshot(version=2))
    assert read_snapshot(directory) == Snapshot(version=1)


def test_the_secret_is_read_as_it_was_written_and_is_ours_alone(home: Path) -> None:
    directory = instance_directory("a")
    directory.create()
    with pytest.raises(InstanceError, match="does the instance run on this node"):
        read_secret(directory)
    for secret in (b"\0" * 32, os.urandom(32)):
        write_secret(directory, secret)
        assert read_secret(directory) == secret
        assert mode(directory.secret) == 0o600


def test_a_secret_that_others_may_read_or_that_lies_elsewhere_is_none(home: Path) -> None:
    directory = instance_directory("a")
    directory.create()
    write_secret(directory, b"s" * 32)
    directory.secret.chmod(0o644)
    with pytest.raises(InstanceError, match="mode 0644"):
        read_secret(directory)
    directory.secret.chmod(0o600)
    elsewhere = directory.path / "elsewhere"
    directory.secret.rename(elsewhere)
    directory.secret.symlink_to(elsewhere)
    with pytest.raises(InstanceError, match="cannot be read"):
        read_secret(directory)


def test_a_directory_knows_its_node_where_there_are_several(home: Path) -> None:
    directory = instance_directory("a")
    directory.create()
    assert read_node(directory) == ""
    write_node(directory, "ab" * 28)
    assert read_node(directory) == "ab" * 28
    directory.node.write_bytes(b"\xff")
    assert read_node(directory) == ""
