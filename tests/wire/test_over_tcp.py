"""Frames and landed bodies over one stream of bytes, however it is cut, and what is no body at all."""

from __future__ import annotations

import asyncio
import os
import random
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.spec.errors import ProtocolError
from headrace.wire.buffers import Buffers, Landing
from headrace.wire.frames import CALL, DATA, HEADER, MORE, WINDOW_BYTES
from headrace.wire.over_tcp import BULK_BYTES, MOST_BULK_BYTES, OverTcp

BODY = random.Random(1).randbytes(600_000)


class End(OverTcp):
    """Keeps what it gets."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        super().__init__(loop, sock)
        self.small: list[bytes] = []
        self.data: list[bytes] = []
        self.lost: list[BaseException | None] = []
        self.body: bytes | None = None
        self.handlers[CALL] = lambda stream, flags, load, meta, payload: self.small.append(meta + payload)
        self.handlers[DATA] = self._on_data

    def _on_data(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        if stream in self.landings:
            self.landings[stream].feed(payload)
            if not flags & MORE:
                self.body = bytes(self.landings[stream].whole())
                self.forget_inflow(stream)
        else:
            self.data.append(payload)

    def on_lost(self, error: BaseException | None) -> None:
        self.lost.append(error)


def frame(stream: int, kind: int, flags: int, payload: bytes, meta: bytes = b"") -> bytes:
    return HEADER.pack(len(meta) + len(payload), stream, len(meta), 0, kind, flags) + meta + payload


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(300, 200_000), min_size=1, max_size=8))
def test_a_body_lands_whole_and_small_frames_come_in_between(seed: int, cuts: list[int]):
    """The body in frames of any length, with small frames and DATA of another stream between, cut anywhere."""
    rng = random.Random(seed)
    stream, at, small, other = b"", 1000, [], []
    while at < len(BODY):
        length = rng.choice((1, 100, 5000, 65_520, BULK_BYTES - HEADER.size, MOST_BULK_BYTES - HEADER.size))
        piece = BODY[at : at + length]
        at += length
        stream += frame(1, DATA, MORE if at < len(BODY) else 0, piece)
        if rng.random() < 0.5:
            small.append(b"meta" + rng.randbytes(rng.choice((0, 10, 5000))))
            stream += frame(3, CALL, 0, small[-1][4:], b"meta")
        if rng.random() < 0.2:
            other.append(rng.randbytes(rng.choice((10, 70_000))))
            stream += frame(2, DATA, MORE, other[-1])

    async def run() -> End:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        with left:
            left.setblocking(False)
            right.setblocking(False)
            end = End(loop, right)
            end.land(1, Landing(BODY[:1000], len(BODY)))
            end.start()
            start, i = 0, 0
            while start < len(stream):
                chunk = stream[start : start + cuts[i % len(cuts)]]
                await loop.sock_sendall(left, chunk)
                if rng.random() < 0.5:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                start, i = start + len(chunk), i + 1
            async with asyncio.timeout(20):
                while end.body is None or len(end.small) < len(small) or len(end.data) < len(other):
                    await asyncio.sleep(0)
            end.close()
        return end

    end = asyncio.run(run())
    landed = end.body == BODY
    assert landed
    assert end.small == small
    same = end.data == other
    assert same
    assert not end.lost


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5_000_000), st.integers(0, 20))
def test_a_body_leaves_whole_in_frames_of_any_length_with_small_ones_between(seed: int, size: int, count: int):
    rng = random.Random(seed)
    body = rng.randbytes(size)

    async def run() -> End:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        left.setblocking(False)
        right.setblocking(False)
        ours, theirs = End(loop, left), End(loop, right)
        ours.start()
        theirs.start()
        theirs.land(1, Landing(b"", size))
        outflow = ours.open_outflow(1, 0)
        outflow.frame_bytes = ours.landed_bytes
        at = 0
        while at < size:
            part = body[at : at + rng.choice((17, 100_000, 3_000_000))]
            at += len(part)
            outflow.write(part, at < size)
        async with asyncio.timeout(20):
            for i in range(count):
                ours.send(0, CALL, payload=b"%d" % i)
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
            while theirs.body is None or len(theirs.small) < count:
                await asyncio.sleep(0)
        assert not ours.lost
        assert not theirs.lost
        ours.close()
        theirs.close()
        return theirs

    theirs = asyncio.run(run())
    landed = theirs.body == body
    assert landed
    assert theirs.small == [b"%d" % i for i in range(count)]


def test_a_body_without_a_landing_leaves_within_the_window_of_any_stream():
    """As when its first frame does not tell its length: the reader grants as much as to a stream of small frames."""

    async def run() -> list[bytes]:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        left.setblocking(False)
        right.setblocking(False)
        ours, theirs = End(loop, left), End(loop, right)
        ended = asyncio.Event()

        def on_data(stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
            theirs.data.append(payload)
            theirs.consumed(stream, len(payload))
            if not flags & MORE:
                ended.set()

        theirs.handlers[DATA] = on_data
        ours.start()
        theirs.start()
        outflow = ours.open_outflow(1, WINDOW_BYTES)
        outflow.frame_bytes = ours.landed_bytes
        outflow.write(BODY * 4, False)
        async with asyncio.timeout(20):
            await ended.wait()
        ours.close()
        theirs.close()
        return theirs.data

    arrived = b"".join(asyncio.run(run())) == BODY * 4
    assert arrived


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (frame(1, DATA, MORE, bytes(1001)), "after its end"),
        (frame(1, DATA, 0, bytes(999)), "ended after"),
        (HEADER.pack(MOST_BULK_BYTES + 1, 1, 0, 0, DATA, 0), "not a frame"),
        (frame(1, DATA, MORE, bytes(500)) + HEADER.pack(501, 1, 0, 0, DATA, 0) + bytes(10), "after its end"),
    ],
)
def test_a_body_that_is_not_as_announced_ends_the_connection(frames: bytes, reason: str):
    async def run() -> list[BaseException | None]:
        left, right = socket.socketpair()
        with left:
            right.setblocking(False)
            end = End(asyncio.get_running_loop(), right)
            end.land(1, Landing(b"first", 1005))
            end.start()
            left.sendall(frames)
            async with asyncio.timeout(20):
                while not end.lost:
                    await asyncio.sleep(0)
        return end.lost

    (error,) = asyncio.run(run())
    assert isinstance(error, ProtocolError)
    assert reason in str(error)


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 5000), max_size=6), st.integers(0, 2000))
def test_what_is_wrapped_is_unwrapped_wherever_the_first_frame_ends(data: bytes, sizes: list[int], cut: int):
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right, socket.socket() as tcp:
        buffers = Buffers(End(None, tcp))  # type: ignore[arg-type]
        given_buffers = [memoryview(bytearray(os.urandom(size))) for size in sizes]
        body = b"".join(buffers.wrap(data, given_buffers))
        landing = buffers.landing(body[:cut])
        if landing is None:
            assert cut < 10 + 20 * len(sizes)
        else:
            assert landing.total == len(body)
            landing.feed(body[cut:])
            body = landing.whole()
        found, views = buffers.unwrap(body)
        assert bytes(found) == data
        assert [bytes(view) for view in views] == [bytes(each) for each in given_buffers]
        assert all(view.readonly for view in views)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_no_body(body: bytes):
    with socket.socket() as tcp:
        buffers = Buffers(End(None, tcp))  # type: ignore[arg-type]
        for read in (buffers.unwrap, buffers.landing, buffers.discard):
            try:
                read(body)
            except ProtocolError:
                pass
