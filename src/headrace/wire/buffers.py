"""The large buffers of payloads on one connection: placed in an arena, or behind the data where there is no room.

In: payloads with buffers, to send; bodies that refer to blocks, received; ARENA and RELEASE frames. Out: body parts to
send, payloads with views of the blocks, ARENA and RELEASE frames.

A body with the ARENAS flag is `u16 n | n x (u32 arena, u64 offset, u64 length) | data | inline buffers`; an arena of
0xFFFFFFFF says that the buffer of that length stands behind the data, in order.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.spec.errors import ProtocolError
from headrace.wire.arena import REFERENCE, ArenaReceiver, ArenaSender
from headrace.wire.frames import ARENA, MAX_PAYLOAD_BYTES, RELEASE

if TYPE_CHECKING:
    from headrace.wire.connection import Connection

log = logging.getLogger("headrace.wire")

COUNT = struct.Struct("<H")
ANNOUNCEMENT = struct.Struct("<IQ")  # arena number, size in bytes
INLINE = 0xFFFFFFFF


class Buffers:
    """Both directions of one connection. Arenas are made when the first large buffer comes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sender: ArenaSender | None = None
        self._receiver: ArenaReceiver | None = None
        self._released: deque[bytes] = deque()  # appended to in any thread
        self._release_scheduled = False

    def wrap(self, data: bytes, buffers: Sequence[memoryview | bytes]) -> list[bytes | memoryview]:
        """The parts of a body that carries `data` and `buffers`. The buffers may change once this has returned."""
        references: list[bytes] = [COUNT.pack(len(buffers))]
        behind: list[bytes | memoryview] = []
        for buffer in buffers:
            reference = self._place(buffer)
            if reference is None:
                copy = bytes(buffer)
                behind.append(copy)
                reference = REFERENCE.pack(INLINE, 0, len(copy))
            references.append(reference)
        return [b"".join((*references, data)), *behind]

    def _place(self, buffer: memoryview | bytes) -> bytes | None:
        if self._connection.sock.family != socket.AF_UNIX:
            return None
        if self._sender is None:
            self._sender = ArenaSender()
        placed = self._sender.place(buffer)
        if placed is None:
            return None
        reference, fd = placed
        if fd is not None:
            number = REFERENCE.unpack(reference)[0]
            self._connection.send_fd(0, ARENA, fd, ANNOUNCEMENT.pack(number, os.fstat(fd).st_size))
        return reference

    def unwrap(self, body: bytes) -> tuple[memoryview, list[memoryview]]:
        """The data and the buffers of a body that came with the ARENAS flag, all read-only."""
        view = memoryview(body)
        if len(view) < COUNT.size:
            raise ProtocolError(f"a body with buffers of {len(view)} bytes")
        (count,) = COUNT.unpack_from(view, 0)
        at = COUNT.size + count * REFERENCE.size
        if at > len(view):
            raise ProtocolError(f"a body of {len(view)} bytes cannot refer to {count} buffers")
        references = [bytes(view[start : start + REFERENCE.size]) for start in range(COUNT.size, at, REFERENCE.size)]
        inline = sum(length for arena, _, length in map(REFERENCE.unpack, references) if arena == INLINE)
        end = len(view) - inline
        if end < at:
            raise ProtocolError(f"a body of {len(view)} bytes cannot hold {inline} bytes of buffers")
        behind = end
        buffers: list[memoryview] = []
        for reference in references:
            arena, _, length = REFERENCE.unpack(reference)
            if arena == INLINE:
                buffers.append(view[behind : behind + length])
                behind += length
            elif self._receiver is None:
                raise ProtocolError(f"a buffer in arena {arena}, which was not announced")
            else:
                buffers.append(self._receiver.view(reference))
        return view[at:end], buffers

    def discard(self, body: bytes | memoryview) -> None:
        """Nobody will read this body that came with the ARENAS flag (its first frame will do): its blocks are free."""
        for reference in blocks_of(body):
            if self._receiver is None:
                raise ProtocolError("a buffer in an arena, and none was announced")
            self._receiver.view(reference)  # seen by nobody, and so unused at once

    def take_back(self, references: Sequence[bytes]) -> None:
        """These blocks of ours will not be received: they are free."""
        if self._sender is not None:
            for reference in references:
                self._sender.release(reference)

    def on_arena(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        """An ARENA frame: its descriptor has come with it."""
        if len(payload) != ANNOUNCEMENT.size or not self._connection.received_fds:
            raise ProtocolError("an ARENA frame without a descriptor")
        number, size = ANNOUNCEMENT.unpack(payload)
        if self._receiver is None:
            self._receiver = ArenaReceiver(self._on_block_unused)
        self._receiver.adopt(number, self._connection.received_fds.popleft(), size)

    def on_release(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        """A RELEASE frame: blocks of ours that the other end has done with."""
        if self._sender is None or len(payload) % REFERENCE.size:
            raise ProtocolError(f"a RELEASE of {len(payload)} bytes, or of blocks that were never sent")
        for at in range(0, len(payload), REFERENCE.size):
            self._sender.release(payload[at : at + REFERENCE.size])

    def _on_block_unused(self, reference: bytes) -> None:
        """The last view of a block is gone. Called in whatever thread dropped it: the loop does the rest."""
        self._released.append(reference)
        if not self._release_scheduled and not self._connection.closed:
            self._release_scheduled = True
            try:
                self._connection.loop.call_soon_threadsafe(self._send_releases)
            except RuntimeError:
                # The loop is closed: the process, or the use of this connection, is ending, and the blocks with it.
                log.debug("a block was released after its loop had closed")

    def _send_releases(self) -> None:
        self._release_scheduled = False
        released = [self._released.popleft() for _ in range(len(self._released))]
        step = MAX_PAYLOAD_BYTES // REFERENCE.size
        for at in range(0, len(released), step):
            self._connection.send(0, RELEASE, payload=b"".join(released[at : at + step]))

    def close(self) -> None:
        """The connection is gone: what we sent is of no use; what we received lives as long as its views."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None


def blocks_of(body: bytes | memoryview) -> list[bytes]:
    """The references to blocks in a body that `wrap` made; its first frame will do."""
    count = COUNT.unpack_from(body)[0] if len(body) >= COUNT.size else 0
    starts = range(COUNT.size, COUNT.size + count * REFERENCE.size, REFERENCE.size)
    references = [bytes(body[at : at + REFERENCE.size]) for at in starts]
    return [each for each in references if len(each) == REFERENCE.size and REFERENCE.unpack(each)[0] != INLINE]
