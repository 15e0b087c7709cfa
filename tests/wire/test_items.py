"""Records in streams of bytes, and the window that holds their maker back."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.spec.errors import ProtocolError
from headrace.wire.connection import Connection
from headrace.wire.frames import ITEM, MAX_PAYLOAD_BYTES, MORE, U32, WINDOW_BYTES
from headrace.wire.items import BUFFERS, FAILURE, ITEM_COST, PLAIN, STATUS, ItemOutflow, RecordReader, cost, record

KINDS = st.sampled_from((PLAIN, BUFFERS, FAILURE, STATUS))


@given(
    st.lists(st.tuples(KINDS, st.binary(max_size=40)), max_size=20),
    st.lists(st.integers(min_value=1, max_value=30), min_size=1),
)
def test_records_come_out_as_they_went_in_however_they_are_cut(
    records: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(record(data, kind) for kind, data in records)
    reader = RecordReader()
    found = []
    at, turn = 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        found += reader.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert found == records
    assert reader.between


def test_a_record_that_is_not_whole_is_known() -> None:
    reader = RecordReader()
    assert reader.feed(record(b"abc")[:5]) == []
    assert not reader.between
    assert reader.feed(b"bc") == [(PLAIN, b"abc")]
    assert reader.between


def test_an_item_of_a_gigabyte_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 30

    with pytest.raises(ProtocolError, match="an item has at most 1073741823"):
        record(Huge())


class Reader(Connection):
    """Keeps what comes; gives credit when the test says."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        super().__init__(loop, sock)
        self.reader = RecordReader()
        self.items: list[bytes] = []
        self.frames: list[int] = []  # flags of each
        self.ended = asyncio.Event()
        self.handlers[ITEM] = self._on_item
        self.start()

    def _on_item(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        self.frames.append(flags)
        self.items += [data for _, data in self.reader.feed(payload)]
        if not flags & MORE:
            self.ended.set()


async def until(condition: object) -> None:
    async with asyncio.timeout(30):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0)


async def two_ends() -> tuple[Connection, Reader]:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    for sock in (ours, theirs):
        sock.setblocking(False)
    loop = asyncio.get_running_loop()
    sender = Connection(loop, ours)
    sender.start()
    return sender, Reader(loop, theirs)


def outflow_on(sender: Connection, drained: list[bool]) -> ItemOutflow:
    outflow = sender.outflows[1] = ItemOutflow(sender, 1, lambda: drained.append(True), lambda: 0)
    return outflow


def test_items_of_one_tick_leave_in_one_frame() -> None:
    async def check() -> None:
        sender, reader = await two_ends()
        outflow = outflow_on(sender, [])
        for i in range(50):
            assert outflow.put(b"%d" % i)
        await until(lambda: len(reader.items) == 50)
        assert reader.frames == [MORE]
        assert outflow.put(b"last")
        rest = outflow.close()
        assert rest is not None
        sender.send(1, ITEM, 0, 0, b"", rest)
        await reader.ended.wait()
        assert reader.items == [b"%d" % i for i in range(50)] + [b"last"]
        sender.close()
        reader.close()

    asyncio.run(check())


def test_the_maker_is_held_back_at_the_window_and_goes_on_with_credit() -> None:
    async def check() -> None:
        sender, reader = await two_ends()
        drained: list[bool] = []
        outflow = outflow_on(sender, drained)
        made = 0
        while outflow.put(b"x"):
            made += 1
        assert made + 1 == WINDOW_BYTES // ITEM_COST
        await until(lambda: len(reader.items) == made + 1)
        assert not drained
        reader.send(1, 7, payload=U32.pack(ITEM_COST))  # CREDIT for one
        await until(lambda: drained)
        assert not outflow.put(b"x")  # and one it is
        sender.close()
        reader.close()

    asyncio.run(check())


def test_an_item_larger_than_the_window_goes_and_holds_the_next_back_until_it_is_taken() -> None:
    async def check() -> None:
        sender, reader = await two_ends()
        drained: list[bool] = []
        outflow = outflow_on(sender, drained)
        large = bytes(5 * WINDOW_BYTES)
        assert not outflow.put(large)
        await until(lambda: reader.items)
        assert reader.items == [large]
        assert len(reader.frames) >= len(large) // MAX_PAYLOAD_BYTES
        reader.send(1, 7, payload=U32.pack(cost(len(large)) - WINDOW_BYTES))
        reader.send(1, 7, payload=U32.pack(1))
        await until(lambda: drained)
        assert outflow.room == 1
        # What follows a large item stays behind it, though it would fit a frame of its own.
        assert not outflow.put(large)
        assert not outflow.put(b"small")
        assert outflow.close() is None
        await reader.ended.wait()
        assert reader.items == [large, large, b"small"]
        sender.close()
        reader.close()

    asyncio.run(check())


def test_after_the_reader_has_left_nothing_is_sent() -> None:
    async def check() -> None:
        sender, reader = await two_ends()
        outflow = outflow_on(sender, [])
        outflow.put(b"x")
        sender.drop_outflow(1)
        sender.send(2, ITEM, 0, 0, b"", record(b"other"))
        await until(lambda: reader.items)
        assert reader.items == [b"other"]
        sender.close()
        reader.close()

    asyncio.run(check())
