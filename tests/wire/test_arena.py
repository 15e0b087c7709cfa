"""headrace.wire.arena: what is placed is what is seen, without a copy; blocks come back when, and only when, no view of
them is left; nothing that the other end sends does harm."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.blocks import UNIT_BYTES
from headrace.spec.errors import ProtocolError
from headrace.wire.arena import REFERENCE, ArenaReceiver, ArenaSender
from headrace.wire.payload import decode, encode

MB = 1024 * 1024


class Pair:
    """Both ends in one process, joined as the connection joins them: descriptors are passed, releases come back."""

    def __init__(self, limit_bytes: int = 256 * MB, arena_bytes: int = 4 * MB) -> None:
        self.released: list[bytes] = []
        self.sender = ArenaSender(limit_bytes, arena_bytes)
        self.receiver = ArenaReceiver(self.released.append)

    def send(self, buffer: Any) -> memoryview:
        placed = self.sender.place(buffer)
        assert placed is not None
        return self.receive(*placed)

    def receive(self, reference: bytes, fd: int | None) -> memoryview:
        if fd is not None:
            number, _, _ = REFERENCE.unpack(reference)
            self.receiver.adopt(number, os.dup(fd), os.fstat(fd).st_size)
        return self.receiver.view(reference)

    def hand_back(self) -> int:
        count = len(self.released)
        while self.released:
            self.sender.release(self.released.pop())
        return count

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def random_bytes(n: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(n)


def test_what_is_placed_is_what_is_seen(pair: Pair) -> None:
    data = random_bytes(300_000)
    view = pair.send(data)

    assert view == data
    assert view.readonly
    assert view.nbytes == len(data)


def test_an_arena_is_announced_once(pair: Pair) -> None:
    first, second = pair.sender.place(bytes(10)), pair.sender.place(bytes(10))

    assert first is not None
    assert second is not None
    assert first[1] is not None
    assert second[1] is None


def test_a_view_is_no_copy(pair: Pair) -> None:
    view = pair.send(random_bytes(MB))
    array = np.frombuffer(view, np.uint8)
    again = np.frombuffer(view[100:], np.uint8)

    assert np.shares_memory(array, again)
    assert not array.flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        np.arange(1000.0).reshape(10, 100),
        np.asfortranarray(np.arange(1000.0).reshape(10, 100)),
        np.arange(2000)[::2],
        np.array(3.5),
        np.zeros((3, 4), "complex128"),
    ],
)
def test_buffers_of_any_shape_are_taken_as_their_bytes(pair: Pair, array: np.ndarray[Any, Any]) -> None:
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"

    assert pair.send(array) == array.tobytes(order)


def test_nothing_is_placed_of_an_empty_buffer(pair: Pair) -> None:
    assert pair.sender.place(b"") is None
    assert pair.sender.refused == 0


def test_a_block_comes_back_when_its_last_view_is_gone(pair: Pair) -> None:
    view = pair.send(random_bytes(MB))
    array = np.frombuffer(view, np.uint8)
    part = array[10:20].reshape(2, 5)
    expected = part.copy()

    del view
    assert pair.released == []
    del array
    assert pair.released == []
    np.testing.assert_array_equal(part, expected)
    del part
    assert len(pair.released) == 1


def test_a_decoded_array_holds_its_block_and_a_dropped_one_frees_it(pair: Pair) -> None:
    value = {"x": np.random.default_rng(1).random(200_000), "y": [np.arange(100_000)]}
    payload = encode(value)
    arrived = decode(payload.data, [pair.send(buffer) for buffer in payload.buffers])

    np.testing.assert_array_equal(arrived["x"], value["x"])
    kept = arrived["y"][0]
    del arrived
    gc.collect()
    assert len(pair.released) == 1
    np.testing.assert_array_equal(kept, np.arange(100_000))
    del kept
    assert len(pair.released) == 2
    assert pair.hand_back() == 2


def test_blocks_are_used_again(pair: Pair) -> None:
    references = set()
    for seed in range(20):
        data = random_bytes(3 * MB, seed)
        placed = pair.sender.place(data)
        assert placed is not None
        references.add(placed[0])
        view = pair.receive(*placed)
        assert view == data
        del view
        assert pair.hand_back() == 1

    assert len(references) == 1
    assert "arenas=1" in repr(pair.sender)


def test_a_block_in_use_is_never_written_to(pair: Pair) -> None:
    kept = []
    for seed in range(12):
        data = random_bytes(MB, seed)
        kept.append((data, pair.send(data)))
        if seed % 3 == 2:
            del kept[seed // 3]
            pair.hand_back()

    for data, view in kept:
        assert view == data


def test_a_buffer_larger_than_an_arena_gets_one_of_its_own() -> None:
    pair = Pair(limit_bytes=64 * MB, arena_bytes=MB)
    data = random_bytes(5 * MB)

    assert pair.send(data) == data
    pair.close()


def test_without_room_nothing_is_placed_and_it_is_said_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    pair = Pair(limit_bytes=4 * MB, arena_bytes=MB)
    views = [pair.send(bytes(MB)) for _ in range(4)]
    with caplog.at_level(logging.WARNING, logger="headrace.wire"):
        assert [pair.sender.place(bytes(MB)) for _ in range(3)] == [None] * 3
        assert pair.sender.place(bytes(5 * MB)) is None

    assert pair.sender.refused == 4
    assert len(caplog.records) == 1
    assert "goes over the socket" in caplog.text

    views.pop()
    pair.hand_back()
    assert pair.sender.place(bytes(MB)) is not None
    pair.close()


def test_views_outlive_both_ends() -> None:
    pair = Pair()
    data = random_bytes(MB)
    view = pair.send(data)
    pair.close()

    assert view == data
    del view
    assert pair.released == []


def test_the_last_view_may_be_dropped_in_another_thread(pair: Pair) -> None:
    views = [pair.send(random_bytes(MB, seed)) for seed in range(8)]
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()

    assert pair.hand_back() == 8


def test_trimmed_memory_goes_back_and_the_arena_works_on(pair: Pair) -> None:
    kept_data = random_bytes(MB, 1)
    placed = pair.sender.place(kept_data)
    assert placed is not None
    reference, fd = placed
    assert fd is not None
    kept = pair.receive(reference, fd)
    gone = pair.send(random_bytes(MB, 2))
    del gone
    pair.hand_back()
    before = os.fstat(fd).st_blocks * 512

    assert pair.sender.trim() >= MB
    assert os.fstat(fd).st_blocks * 512 <= before - MB
    assert kept == kept_data
    data = random_bytes(2 * MB, 3)
    assert pair.send(data) == data


def test_nothing_of_it_has_a_name(pair: Pair) -> None:
    def mine() -> list[Path]:
        return [path for path in Path("/dev/shm").iterdir() if "headrace" in path.name]

    view = pair.send(bytes(MB))

    assert mine() == []
    del view


def test_descriptors_are_closed_with_the_ends() -> None:
    before = open_descriptors()
    pair = Pair(arena_bytes=MB)
    views = [pair.send(bytes(MB)) for _ in range(5)]
    assert open_descriptors() > before
    pair.close()
    del views

    assert open_descriptors() == before


# What the other end may not do


@pytest.mark.parametrize(
    "reference",
    [
        b"",
        b"short",
        bytes(REFERENCE.size + 1),
        REFERENCE.pack(7, 0, 10),
        REFERENCE.pack(0, 0, 0),
        REFERENCE.pack(0, 4 * MB, 1),
        REFERENCE.pack(0, 4 * MB - 1, 2),
        REFERENCE.pack(0, 2**64 - 1, 2),
        REFERENCE.pack(0, 0, 2**64 - 1),
        REFERENCE.pack(0, 1, 2**63),
    ],
)
def test_a_reference_outside_of_what_was_announced_is_refused(pair: Pair, reference: bytes) -> None:
    view = pair.send(bytes(10))

    with pytest.raises(ProtocolError):
        pair.receiver.view(reference)
    assert view == bytes(10)


@given(st.binary(min_size=REFERENCE.size, max_size=REFERENCE.size))
def test_a_random_reference_is_refused_or_seen_without_harm(reference: bytes) -> None:
    pair = Pair(arena_bytes=MB)
    pair.send(bytes(10))
    try:
        bytes(pair.receiver.view(reference))
    except ProtocolError:
        pass  # the only kind of error that may come out
    with pytest.raises(ProtocolError):
        pair.sender.release(reference)
    pair.close()


def test_a_reference_in_use_is_refused(pair: Pair) -> None:
    placed = pair.sender.place(bytes(10))
    assert placed is not None
    view = pair.receive(*placed)

    with pytest.raises(ProtocolError, match="before it was released"):
        pair.receiver.view(placed[0])
    del view
    assert pair.receiver.view(placed[0]) == bytes(10)


def test_a_release_of_what_is_not_taken_is_refused(pair: Pair) -> None:
    placed = pair.sender.place(bytes(10))
    assert placed is not None
    reference, _ = placed

    for wrong in (b"", REFERENCE.pack(5, 0, 10), REFERENCE.pack(0, 0, 11), REFERENCE.pack(0, UNIT_BYTES, 10)):
        with pytest.raises(ProtocolError, match=r"reference|was not sent"):
            pair.sender.release(wrong)
    pair.sender.release(reference)
    with pytest.raises(ProtocolError, match="was not sent"):
        pair.sender.release(reference)


def unsealed(size: int) -> int:
    fd = os.memfd_create("unsealed", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def test_only_a_sealed_arena_of_the_size_it_claims_is_adopted(pair: Pair) -> None:
    placed = pair.sender.place(bytes(10))
    assert placed is not None
    good = placed[1]
    assert good is not None
    before = open_descriptors()
    wrong = [
        (unsealed(MB), MB),
        (os.dup(good), 5 * MB),
        (os.dup(good), 0),
        (os.open("/dev/null", os.O_RDWR), MB),
        (socket.socket().detach(), MB),
    ]
    for fd, size in wrong:
        with pytest.raises(ProtocolError):
            pair.receiver.adopt(3, fd, size)
    pair.receiver.adopt(3, os.dup(good), MB)
    with pytest.raises(ProtocolError, match="twice"):
        pair.receiver.adopt(3, os.dup(good), MB)

    assert open_descriptors() == before + 1, "only the mapping that was made keeps a descriptor"


def test_the_sender_cannot_shrink_an_arena_under_the_receiver(pair: Pair) -> None:
    placed = pair.sender.place(bytes(10))
    assert placed is not None
    assert placed[1] is not None

    with pytest.raises(PermissionError):
        os.ftruncate(placed[1], 0)


RECEIVER = """
    import os, socket, sys
    import numpy as np
    from headrace.wire.arena import REFERENCE, ArenaReceiver
    channel = socket.socket(fileno=int(sys.argv[1]))
    data, fds, _, _ = socket.recv_fds(channel, 20, 1)
    receiver = ArenaReceiver(lambda reference: None)
    receiver.adopt(REFERENCE.unpack(data)[0], fds[0], os.fstat(fds[0]).st_size)
    array = np.frombuffer(receiver.view(data), np.float64)
    channel.sendall(np.float64(array.sum()).tobytes())
    channel.recv(1)
    print(array.sum() == float(sys.argv[2]))
"""


def test_another_process_sees_the_array_even_after_the_sender_was_killed() -> None:
    """A sender in a process of its own is killed; the receiver, another one, still holds the array."""
    sender = """
        import os, signal, socket, sys
        import numpy as np
        from headrace.wire.arena import ArenaSender
        channel = socket.socket(fileno=int(sys.argv[1]))
        reference, fd = ArenaSender().place(np.arange(1_000_000.0))
        socket.send_fds(channel, [reference], [fd])
        signal.pause()
    """
    ours, theirs = socket.socketpair()
    relay_ours, relay_theirs = socket.socketpair()
    total = str(float(np.arange(1_000_000.0).sum()))
    with ours, theirs, relay_ours, relay_theirs:
        sending = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(sender), str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        receiving = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RECEIVER), str(relay_theirs.fileno()), total],
            pass_fds=[relay_theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            reference, fds, _, _ = socket.recv_fds(ours, 20, 1)
            socket.send_fds(relay_ours, [reference], fds)
            os.close(fds[0])
            assert np.frombuffer(relay_ours.recv(8))[0] == float(total)
            sending.send_signal(signal.SIGKILL)
            sending.wait()
            relay_ours.sendall(b"x")
            assert receiving.communicate(timeout=30)[0].strip() == "True"
        finally:
            for process in (sending, receiving):
                process.kill()
                process.wait()
