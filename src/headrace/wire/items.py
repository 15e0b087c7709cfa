"""A result (or a body) that is a sequence of items: records in a stream of bytes, and how far ahead they may be made.

In, at the sender: items, encoded. Out: ITEM frames, those of one tick of the loop (or a few) together. In, at the
reader: the bytes of ITEM frames, or of DATA frames where the items are a body. Out: records, each whole.

A record is `u32 head | bytes`: the low 30 bits of the head are the length, the top two what it is (PLAIN, BUFFERS,
FAILURE, STATUS). A record may begin in one frame and end in another.

The reader gives credit for items that its user has taken, not for what has merely arrived: so what is made and not
wanted yet is bounded, whatever is between maker and user. An item costs at least ITEM_COST, for a window of bytes alone
would hold a hundred thousand small ones.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.spec.errors import ProtocolError
from headrace.wire.connection import GATHERING_TICKS, Outflow
from headrace.wire.frames import ITEM, MAX_PAYLOAD_BYTES, MORE, WINDOW_BYTES

if TYPE_CHECKING:
    from headrace.wire.connection import Connection

PLAIN, BUFFERS = 0, 1  # an item; an item whose record is a body with buffers (wire.buffers)
FAILURE, STATUS = 2, 3  # an ErrorInfo, after which nothing comes; a GrpcStatus
LONGEST_ITEM = (1 << 30) - 1
ITEM_COST = 1024

_HEAD = struct.Struct("<I")
_HEAD_BYTES = _HEAD.size
_pack = _HEAD.pack
_ENDLESS = 1 << 62

Record = tuple[int, bytes]  # what it is, and its bytes


def record(data: bytes, kind: int = PLAIN) -> bytes:
    """One record. Raises ProtocolError for an item of a gigabyte or more."""
    return _head(len(data), kind) + data


def cost(size: int) -> int:
    """What an item of so many bytes takes of the window."""
    return size if size > ITEM_COST else ITEM_COST


def _head(size: int, kind: int) -> bytes:
    if size > LONGEST_ITEM:
        raise ProtocolError(f"an item of {size} bytes: an item has at most {LONGEST_ITEM}")
    return _pack(size | kind << 30)


class ItemOutflow(Outflow):
    """The sending side. On the loop's thread: `put`, then `put` only after `on_drained` when it said False; `close`."""

    __slots__ = ("_load", "_placed", "_records", "_scheduled", "_sent", "room")

    kind = ITEM

    def __init__(
        self, connection: Connection, stream: int, on_drained: Callable[[], None], load: Callable[[], int]
    ) -> None:
        super().__init__(connection, stream, _ENDLESS, on_drained)
        self.room = WINDOW_BYTES  # the reader's window: below 0, one item has gone beyond it
        self._load = load
        self._records: list[bytes] = []  # of this tick
        self._scheduled = False
        self._sent = 0  # bytes of records
        # Of items that refer to blocks and may not have left: where each ends, and what gives its blocks back.
        self._placed: deque[tuple[int, Callable[[], None]]] = deque()

    def put(self, data: bytes, kind: int = PLAIN, behind: int = 0) -> bool:
        """Send an item, which refers to `behind` bytes that went another way. False: wait for `on_drained`."""
        size = len(data)
        self._records += (_head(size, kind), data)
        self.room -= cost(size + behind)
        if not self._scheduled:
            self._scheduled = True
            self._connection.loop.call_soon(self._flush_when_quiet, 0, 1)
            self._connection.flush_soon()
        if self.room > 0:
            return True
        self.starved = True
        return False

    def put_with_blocks(self, body: bytes, behind: int, give_back: Callable[[], None]) -> bool:
        """As `put`, for a body that refers to blocks. `give_back` is called if the reader will never have all of it."""
        placed = self._placed
        while placed and placed[0][0] <= self._sent:
            placed.popleft()
        room = self.put(body, BUFFERS, behind)
        placed.append((self._sent + self.pending_bytes + sum(map(len, self._records)), give_back))
        return room

    def forget(self) -> None:
        """The reader wants no more: what has not left never will."""
        for end, give_back in self._placed:
            if end > self._sent:
                give_back()
        self._placed.clear()
        self._records.clear()

    def grant(self, count: int) -> None:
        """The reader's user has taken so much."""
        self.room += count
        if self.starved and self.room > 0:
            self.starved = False
            if self.on_drained is not None:
                self.on_drained()

    def _flush_when_quiet(self, seen: int, ticks: int) -> None:
        """Send what there is, unless the last tick has brought more: then the next may too."""
        count = len(self._records)
        if count > seen and ticks < GATHERING_TICKS and self.room > 0:
            self._connection.loop.call_soon(self._flush_when_quiet, count, ticks + 1)
            self._connection.flush_soon()
        else:
            self.flush()

    def flush(self) -> None:
        """Send the records so far: in one frame, with the others of the tick, where they fit."""
        self._scheduled = False
        if not self._records or self.ended or self._connection.outflows.get(self.stream) is not self:
            return
        self._send(self._take(), True)

    def close(self) -> bytes | None:
        """No item follows. What is left to send in the last frame; None when that leaves by itself in its turn."""
        data = self._take()
        self.on_drained = None
        if self._pending or len(data) > MAX_PAYLOAD_BYTES:
            self._send(data, False)
            return None
        self.ended = True
        return data

    def _send(self, data: bytes, more: bool) -> None:
        """Send what fits a frame at once, the rest in its turn: the reader hears of items before it hears of their end
        (FREED overtakes what stands in line).
        """
        rest = memoryview(data)
        if not self._pending:
            first, rest = data[:MAX_PAYLOAD_BYTES], rest[MAX_PAYLOAD_BYTES:]
            self._sent += len(first)
            self._connection.send(self.stream, ITEM, MORE, self._load(), b"", first)
        if rest or not more:
            self.write(rest, more)

    def next_frame(self) -> tuple[memoryview | bytes, bool]:
        piece, more = super().next_frame()
        self._sent += len(piece)
        return piece, more

    def sent(self) -> None:
        """A bulk frame left: line up again. It is the reader that says when there is room."""
        self.wake()

    def _take(self) -> bytes:
        data = b"".join(self._records)
        self._records.clear()
        return data


class RecordReader:
    """The reading side: bytes in, as they come; whole records out."""

    __slots__ = ("_missing", "_parts")

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of a record that is not whole yet
        self._missing = 0  # bytes that it takes at least until something is whole

    @property
    def between(self) -> bool:
        """Whether the last record is whole: a stream may end here."""
        return not self._parts

    def feed(self, data: bytes) -> list[Record]:
        """The records that have become whole with `data`."""
        if self._parts:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return []
            data = b"".join(self._parts)
            self._parts.clear()
        records: list[Record] = []
        at, end = 0, len(data)
        while end - at >= _HEAD_BYTES:
            (head,) = _HEAD.unpack_from(data, at)
            start = at + _HEAD_BYTES
            stop = start + (head & LONGEST_ITEM)
            if stop > end:
                self._keep(data[at:], stop - end)
                return records
            records.append((head >> 30, data[start:stop]))
            at = stop
        if at < end:
            self._keep(data[at:], _HEAD_BYTES - (end - at))
        return records

    def _keep(self, rest: bytes, missing: int) -> None:
        self._parts.append(rest)
        self._missing = missing
