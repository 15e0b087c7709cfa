"""Two ends of one connection on one loop: what one sends, the other gets, in order and within the credit."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.wire.connection import Connection
from headrace.wire.frames import (
    ARENA,
    CALL,
    DATA,
    HEADER,
    MAX_FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    MORE,
    REPLY,
    WINDOW_BYTES,
)

Frame = tuple[int, int, int, int, bytes, bytes]  # kind, stream, flags, load, meta, payload


class End(Connection):
    """Keeps every frame that it gets."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, grants: bool = True) -> None:
        super().__init__(loop, sock)
        self.frames: list[Frame] = []
        self.losses: list[BaseException | None] = []
        self.grants = grants
        for kind in (CALL, REPLY, ARENA):
            self.handlers[kind] = self._keeper(kind)
        self.handlers[DATA] = self._on_data
        self.start()

    def _keeper(self, kind: int) -> Callable[[int, int, int, bytes, bytes], None]:
        def keep(stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
            self.frames.append((kind, stream, flags, load, meta, payload))

        return keep

    def _on_data(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        self.frames.append((DATA, stream, flags, load, meta, payload))
        if self.grants:
            self.consumed(stream, len(payload))

    def on_lost(self, error: BaseException | None) -> None:
        self.losses.append(error)

    def data_of(self, stream: int) -> bytes:
        return b"".join(frame[5] for frame in self.frames if frame[0] == DATA and frame[1] == stream)

    def ended(self, stream: int) -> bool:
        return any(frame[0] == DATA and frame[1] == stream and not frame[2] & MORE for frame in self.frames)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def ends(grants: bool = True) -> tuple[End, End]:
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    return End(loop, left), End(loop, right, grants)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_a_frame_arrives_with_all_its_fields() -> None:
    async def test() -> None:
        one, other = ends()
        one.send(7, CALL, flags=3, load=65535, meta=b"meta", payload=b"payload")
        await until(lambda: other.frames)
        assert other.frames == [(CALL, 7, 3, 65535, b"meta", b"payload")]
        one.close()
        await until(lambda: other.losses)
        assert other.losses == [None]
        assert other.closed

    run(test)


def test_frames_of_one_tick_leave_in_one_write() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        left.setblocking(False)
        one = End(loop, left)
        for stream in range(1, 4):
            one.send(stream, CALL, payload=b"x" * stream)
        await asyncio.sleep(0)
        assert len(right.recv(4096)) == 3 * HEADER.size + 6
        one.close()
        right.close()

    run(test)


def test_a_small_call_overtakes_a_large_body() -> None:
    async def test() -> None:
        one, other = ends()
        body = os.urandom(8 * 1024 * 1024)
        outflow = one.open_outflow(1, WINDOW_BYTES)
        assert outflow.write(body, more=False) is False
        await until(lambda: len(other.frames) >= 2)
        one.send(2, CALL, payload=b"small")
        await until(lambda: other.ended(1))
        assert other.data_of(1) == body
        kinds = [frame[0] for frame in other.frames]
        assert kinds.index(CALL) < len(kinds) / 4
        one.close()

    run(test)


def test_streams_take_turns() -> None:
    async def test() -> None:
        one, other = ends()
        bodies = {stream: os.urandom(1024 * 1024) for stream in (1, 2, 3)}
        for stream, body in bodies.items():
            one.open_outflow(stream, WINDOW_BYTES).write(body, more=False)
        await until(lambda: all(other.ended(stream) for stream in bodies))
        assert {stream: other.data_of(stream) for stream in bodies} == bodies
        first = [frame[1] for frame in other.frames[:6]]
        assert sorted(first) == [1, 1, 2, 2, 3, 3]
        one.close()

    run(test)


def test_a_writer_stops_where_its_credit_ends_and_goes_on_with_more() -> None:
    async def test() -> None:
        one, other = ends(grants=False)
        drained: list[bool] = []
        outflow = one.open_outflow(1, WINDOW_BYTES, lambda: drained.append(True))
        body = os.urandom(2 * WINDOW_BYTES + 5)
        assert outflow.write(body, more=True) is False
        await until(lambda: len(other.data_of(1)) == WINDOW_BYTES)
        one.send(9, CALL)
        await until(lambda: other.frames[-1][0] == CALL)
        assert len(other.data_of(1)) == WINDOW_BYTES
        assert not drained
        other.consumed(1, WINDOW_BYTES)
        await until(lambda: len(other.data_of(1)) == 2 * WINDOW_BYTES)
        assert drained == [True]
        other.consumed(1, WINDOW_BYTES)
        assert outflow.write(b"the end", more=False)
        await until(lambda: other.ended(1))
        assert other.data_of(1) == body + b"the end"
        one.close()

    run(test)


def test_a_dropped_stream_sends_no_more_and_others_go_on() -> None:
    async def test() -> None:
        one, other = ends(grants=False)
        one.open_outflow(1, WINDOW_BYTES).write(b"a" * 10 * WINDOW_BYTES, more=False)
        one.open_outflow(2, WINDOW_BYTES).write(b"b" * 1000, more=False)
        await until(lambda: other.ended(2))
        one.drop_outflow(1)
        other.consumed(1, 10 * WINDOW_BYTES)
        one.send(3, CALL)
        await until(lambda: other.frames[-1][0] == CALL)
        assert len(other.data_of(1)) <= WINDOW_BYTES
        one.close()

    run(test)


def test_an_empty_end_needs_no_credit() -> None:
    async def test() -> None:
        one, other = ends()
        one.open_outflow(1, 0).write(b"", more=False)
        await until(lambda: other.ended(1))
        one.close()

    run(test)


def test_a_reader_that_stops_blocks_nobody_and_loses_nothing() -> None:
    async def test() -> None:
        one, other = ends()
        loop = asyncio.get_running_loop()
        loop.remove_reader(other.sock.fileno())
        for stream in range(1, 2001):
            one.send(stream, CALL, payload=b"x" * 1000)
            if stream % 100 == 0:
                await asyncio.sleep(0)
        other.start()
        await until(lambda: len(other.frames) == 2000)
        assert [frame[1] for frame in other.frames] == list(range(1, 2001))
        one.close()

    run(test)


def test_descriptors_come_with_their_frames() -> None:
    async def test() -> None:
        one, other = ends()
        files = [os.memfd_create(f"f{i}") for i in range(3)]
        for i, fd in enumerate(files):
            os.write(fd, b"%d" % i)
            one.send(i, CALL, payload=b"between")
            one.send_fd(i, ARENA, fd, b"file")
        await until(lambda: len(other.frames) == 6)
        assert [frame[0] for frame in other.frames] == [CALL, ARENA] * 3
        received = [other.received_fds.popleft() for _ in range(3)]
        assert [os.pread(fd, 1, 0) for fd in received] == [b"0", b"1", b"2"]
        for fd in files + received:
            os.close(fd)
        one.close()

    run(test)


def test_descriptors_nobody_took_are_closed_with_the_connection() -> None:
    async def test() -> None:
        one, other = ends()
        fd = os.memfd_create("f")
        one.send_fd(0, ARENA, fd, b"")
        await until(lambda: other.received_fds)
        received = other.received_fds[0]
        other.close()
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(received)
        os.close(fd)

    run(test)


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(MAX_FRAME_BYTES + 1, 1, 0, 0, CALL, 0),
        HEADER.pack(1, 1, 2, 0, CALL, 0) + b"x",
        HEADER.pack(0, 1, 0, 0, 200, 0),
        HEADER.pack(0, 1, 0, 0, 0, 0),
        HEADER.pack(3, 1, 0, 0, 7, 0) + b"abc",
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["too long", "metadata longer than frame", "unknown kind", "kind not for this end", "short credit", "http"],
)
def test_what_is_no_frame_closes_the_connection(data: bytes) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        left.setblocking(False)
        one = End(loop, left)
        right.send(data)
        await until(lambda: one.losses)
        assert one.closed
        assert one.frames == []
        right.close()

    run(test)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_any_bytes_end_in_frames_or_a_closed_connection(chunks: list[bytes]) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        left.setblocking(False)
        one = End(loop, left)
        for chunk in chunks:
            if chunk:
                try:
                    right.send(chunk)
                except (BrokenPipeError, ConnectionResetError):
                    break
            await asyncio.sleep(0)
        right.close()
        await until(lambda: one.losses)
        assert len(one.losses) == 1

    run(test)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 5000), min_size=1, max_size=30))
def test_frames_survive_any_fragmentation(seed: int, sizes: list[int]) -> None:
    rng = random.Random(seed)
    frames: list[Frame] = [
        (CALL, i + 1, rng.getrandbits(8), rng.getrandbits(16), rng.randbytes(rng.randrange(100)), rng.randbytes(size))
        for i, size in enumerate(sizes)
    ]
    data = b"".join(
        HEADER.pack(len(meta) + len(payload), stream, len(meta), load, kind, flags) + meta + payload
        for kind, stream, flags, load, meta, payload in frames
    )

    async def test() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        left.setblocking(False)
        right.setblocking(False)
        one = End(loop, left)
        at = 0
        while at < len(data):
            step = rng.randrange(1, 3000)
            await loop.sock_sendall(right, data[at : at + step])
            at += step
        await until(lambda: len(one.frames) == len(frames))
        assert one.frames == frames
        right.close()
        one.close()

    run(test)


def test_the_header_is_fourteen_bytes_and_leaves_room() -> None:
    assert HEADER.size == 14
    assert MAX_PAYLOAD_BYTES == MAX_FRAME_BYTES - 14
    assert struct.calcsize("<I") == 4
