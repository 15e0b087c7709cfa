"""headrace.replica.source_pack: from the node's directory, else from the controller; whole, and what its name says."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from control_peer import ControlPeer
from hosting import short_directory

from headrace.engine.directory import InstanceDirectory, write_node
from headrace.replica.source_pack import MOST_KEPT, read_pack
from headrace.spec.errors import InstanceError
from headrace.wire.control import Answer, Done, Failed, GetPack, Message, Pack, Request, Response
from headrace.wire.pack import name_of

DATA = b"sources" * 100_000
NAME = name_of(DATA)


@pytest.fixture
def directory() -> Iterator[InstanceDirectory]:
    with short_directory() as path:
        yield InstanceDirectory(path)


def beside_a_controller(directory: InstanceDirectory, answer: Answer, use: Callable[[], None]) -> list[Request]:
    """What a controller was asked that gives this answer, while `use` runs in a thread."""

    def answer_to(request: Request) -> list[Message]:
        return [Response(request.id, answer)]

    async def body() -> list[Request]:
        peer = ControlPeer(directory.control_socket, answer=answer_to)
        await peer.start()
        try:
            await asyncio.wait_for(asyncio.to_thread(use), 20)
        finally:
            await peer.stop()
        return [message for message in peer.received if isinstance(message, Request)]

    return asyncio.run(body())


def test_what_the_node_has_is_read_without_a_controller(directory: InstanceDirectory) -> None:
    directory.packs.mkdir()
    directory.pack(NAME).write_bytes(DATA)
    assert read_pack(directory, NAME) == DATA


@pytest.mark.parametrize("there", [None, b"", DATA[:-1], b"another"])
def test_what_the_node_lacks_or_has_broken_comes_from_the_controller_once(
    there: bytes | None, directory: InstanceDirectory
) -> None:
    if there is not None:
        directory.packs.mkdir()
        directory.pack(NAME).write_bytes(there)

    def use() -> None:
        assert read_pack(directory, NAME) == DATA
        assert read_pack(directory, NAME) == DATA

    requests = beside_a_controller(directory, Pack(DATA), use)
    assert [request.operation for request in requests] == [GetPack(NAME)]
    assert stat.S_IMODE(directory.pack(NAME).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.packs.stat().st_mode) == 0o700
    assert [path.name for path in directory.packs.iterdir()] == [NAME]


@pytest.mark.parametrize("sent", [Pack(b""), Pack(DATA[:-1]), Pack(b"x" + DATA), Done()])
def test_what_is_not_what_its_name_says_is_not_taken(sent: Answer, directory: InstanceDirectory) -> None:
    def use() -> None:
        with pytest.raises(InstanceError, match="what the controller sent is not the pack"):
            read_pack(directory, NAME)

    beside_a_controller(directory, sent, use)
    assert not directory.packs.exists()


def test_what_nobody_has_is_told_at_once(directory: InstanceDirectory) -> None:
    def use() -> None:
        with pytest.raises(InstanceError, match=r"the controller has none .*gone.*: deploy the application again"):
            read_pack(directory, NAME)

    assert len(beside_a_controller(directory, Failed("RevisionNotFound", "gone"), use)) == 1


def test_without_a_controller_it_says_so_in_time(directory: InstanceDirectory) -> None:
    with pytest.raises(InstanceError, match=r"cannot be read from .* nor did the controller send them within 0.1 s"):
        read_pack(directory, NAME, 0.1)


def test_a_controller_that_comes_later_is_waited_for(directory: InstanceDirectory) -> None:
    async def body() -> None:
        reading = asyncio.create_task(asyncio.to_thread(read_pack, directory, NAME))
        peer = ControlPeer(directory.control_socket, answer=lambda request: [Response(request.id, Pack(DATA))])
        await asyncio.sleep(0)  # it may or may not have asked by now
        await peer.start()
        assert await asyncio.wait_for(reading, 20) == DATA
        await peer.stop()

    asyncio.run(body())


def test_a_disk_that_takes_nothing_does_not_fail_the_replica(
    directory: InstanceDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    directory.packs.write_text("in the way")

    def use() -> None:
        assert read_pack(directory, NAME) == DATA

    beside_a_controller(directory, Pack(DATA), use)
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize("node", ["", "n1"])
def test_a_node_keeps_no_more_than_some_and_the_controller_all(node: str, directory: InstanceDirectory) -> None:
    directory.packs.mkdir()
    for number in range(MOST_KEPT + 5):
        path = directory.pack(f"{number:064x}")
        path.touch()
        os.utime(path, (number, number))
    write_node(directory, node)
    beside_a_controller(directory, Pack(DATA), lambda: read_pack(directory, NAME))
    kept = {path.name for path in directory.packs.iterdir()}
    assert NAME in kept
    assert len(kept) == (MOST_KEPT if node else MOST_KEPT + 6)
    assert (f"{5:064x}" in kept) == (not node)
    assert f"{6:064x}" in kept


def test_several_replicas_at_once_leave_one_whole_pack(directory: InstanceDirectory) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from headrace.engine.directory import InstanceDirectory\n"
        "from headrace.replica.source_pack import read_pack\n"
        "print(len(read_pack(InstanceDirectory(Path(sys.argv[1])), sys.argv[2])))"
    )

    def use() -> None:
        argv = [sys.executable, "-c", program, str(directory.path), NAME]
        children = [subprocess.Popen(argv, stdout=subprocess.PIPE, env=os.environ) for _ in range(3)]
        assert [child.communicate(timeout=20)[0].strip() for child in children] == [str(len(DATA)).encode()] * 3

    beside_a_controller(directory, Pack(DATA), use)
    assert [path.name for path in directory.packs.iterdir()] == [NAME]
    assert directory.pack(NAME).read_bytes() == DATA
