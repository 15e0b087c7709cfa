"""The large buffers of payloads on one connection: placed in an arena, or behind the data where there is no room.

In: payloads with buffers, to send; bodies that refer to blocks, received; ARENA and RELEASE frames. Out: body parts to
send, payloads with views of the blocks, ARENA and RELEASE frames.

A body with the ARENAS flag is `u16 n | u64 length of the data | n x (u32 arena, u64 offset, u64 length) | data | inline
buffers`; an arena of 0xFFFFFFFF says that the buffer of that length stands behind the data, in order, at the next
multiple of ALIGN from the start of the body. So the first frame says how long the whole is: the rest is received right
where it stays (`Landing`).
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
from headrace.wire.warm import WARM

if TYPE_CHECKING:
    from headrace.wire.connection import Connection

log = logging.getLogger("headrace.wire")

HEAD = struct.Struct("<HQ")  # references, bytes of data
ANNOUNCEMENT = struct.Struct("<IQ")  # arena number, size in bytes
INLINE = 0xFFFFFFFF
ALIGN = 64  # as arrays like it


class Landing:
    """Memory for a body whose length is known, which is received right into it, from its start to its end."""

    def __init__(self, first: bytes | memoryview, total: int) -> None:
        try:
            self._view = WARM.take(total)
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            raise ProtocolError(f"a body of {total} bytes was announced, which cannot be held: {error}") from error
        self.total = total
        self._at = 0
        self.feed(first)

    def __repr__(self) -> str:
        return f"<Landing of {self._at} of {self.total} bytes>"

    def room(self, count: int) -> memoryview:
        """Where the next `count` bytes go, which the caller will put there. Raises ProtocolError beyond the end."""
        start, self._at = self._at, self._at + count
        if self._at > self.total:
            raise ProtocolError(f"a body of {self.total} bytes goes on after its end")
        return self._view[start : self._at]

    def feed(self, data: bytes | memoryview) -> None:
        """Copy the next bytes in."""
        if data:
            self.room(len(data))[:] = data

    def whole(self) -> memoryview:
        """All of it, read-only. Raises ProtocolError when it has not all come."""
        if self._at != self.total:
            raise ProtocolError(f"a body of {self.total} bytes ended after {self._at}")
        return self._view.toreadonly()


class Buffers:
    """Both directions of one connection. Arenas are made when the first large buffer comes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sender: ArenaSender | None = None
        self._receiver: ArenaReceiver | None = None
        self._released: deque[bytes] = deque()  # appended to in any thread
        self._release_scheduled = False

    def wrap(self, data: bytes, buffers: Sequence[memoryview | bytes]) -> list[bytes | memoryview]:
        """The parts of a body that carries `data` and `buffers`.

        Those behind the first may be the buffers themselves: `unchanging` of them lasts.
        """
        references: list[bytes] = [HEAD.pack(len(buffers), len(data))]
        behind: list[bytes | memoryview] = []
        end = HEAD.size + len(buffers) * REFERENCE.size + len(data)
        for buffer in buffers:
            reference = self._place(buffer)
            if reference is None:
                gap = -end % ALIGN
                if gap:
                    behind.append(bytes(gap))
                behind.append(buffer)
                end += gap + len(buffer)
                reference = REFERENCE.pack(INLINE, 0, len(buffer))
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

    def landing(self, first: bytes | memoryview) -> Landing | None:
        """Where the body goes whose first frame this is; None when that does not say how long the body is."""
        if len(first) < HEAD.size:
            return None
        count, length = HEAD.unpack_from(first)
        at = HEAD.size + count * REFERENCE.size
        if at > len(first):
            return None
        end = at + length
        for arena, _, size in REFERENCE.iter_unpack(memoryview(first)[HEAD.size : at]):
            if arena == INLINE:
                end += -end % ALIGN + size
        return Landing(first, end)

    def unwrap(self, body: bytes | memoryview) -> tuple[memoryview, list[memoryview]]:
        """The data and the buffers of a body that came with the ARENAS flag, all read-only."""
        view = memoryview(body)
        if len(view) < HEAD.size:
            raise ProtocolError(f"a body with buffers of {len(view)} bytes")
        count, length = HEAD.unpack_from(view, 0)
        at = HEAD.size + count * REFERENCE.size
        end = at + length
        if end > len(view):
            raise ProtocolError(f"a body of {len(view)} bytes cannot refer to {count} buffers and hold {length} bytes")
        behind = end
        buffers: list[memoryview] = []
        for start in range(HEAD.size, at, REFERENCE.size):
            reference = bytes(view[start : start + REFERENCE.size])
            arena, _, size = REFERENCE.unpack(reference)
            if arena == INLINE:
                behind += -behind % ALIGN
                if behind + size > len(view):
                    raise ProtocolError(f"a body of {len(view)} bytes cannot hold a buffer of {size} at {behind}")
                buffers.append(view[behind : behind + size])
                behind += size
            elif self._receiver is None:
                raise ProtocolError(f"a buffer in arena {arena}, which was not announced")
            else:
                buffers.append(self._receiver.view(reference))
        if behind != len(view):
            raise ProtocolError(f"a body of {len(view)} bytes has {len(view) - behind} that nothing refers to")
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


def unchanging(buffer: memoryview | bytes) -> bytes | memoryview:
    """The buffer, if nobody can change it, else a copy."""
    if isinstance(buffer, bytes) or type(buffer.obj) is bytes:
        return buffer
    return bytes(buffer)


def blocks_of(body: bytes | memoryview) -> list[bytes]:
    """The references to blocks in a body that `wrap` made; its first frame will do."""
    count = HEAD.unpack_from(body)[0] if len(body) >= HEAD.size else 0
    starts = range(HEAD.size, HEAD.size + count * REFERENCE.size, REFERENCE.size)
    references = [bytes(body[at : at + REFERENCE.size]) for at in starts]
    return [each for each in references if len(each) == REFERENCE.size and REFERENCE.unpack(each)[0] != INLINE]
