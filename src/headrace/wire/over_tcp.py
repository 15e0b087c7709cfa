"""What a connection does differently over TCP, where large bodies go through the socket rather than shared memory.

In and out: as `wire.connection`, whose ends mix this in. Bulk frames leave several in one system call, straight from
the body that they are parts of; those of a body whose length is known arrive right where it is kept (`Landing`), but
for what came in one read with the frame before.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from collections.abc import Sequence

from headrace.spec.errors import ProtocolError
from headrace.wire.connection import READ_BYTES, Connection, log
from headrace.wire.frames import DATA, HEADER, HEADER_BYTES, MAX_PAYLOAD_BYTES, MORE, WINDOW_BYTES

# That leave in one system call: so long a small frame waits at most. While there are none, and the socket takes all at
# once, it is twice as much each time: a turn of the loop costs as much as to send the least.
BULK_BYTES = 256 * 1024
MOST_BULK_BYTES = 1024 * 1024
LANDED_WINDOW_BYTES = 2 * 1024 * 1024  # 10 Gbit/s at a round trip of 1.6 ms
READS_A_TICK = 4  # of bulk: in between, others have their turn
AHEAD_BYTES = 4096  # what may be read beyond the end of a frame of bulk: the next header, and small frames
_WAITING = memoryview(b"")


class OverTcp(Connection):
    """Mixed into an end of a connection, before it."""

    landed_bytes = BULK_BYTES - HEADER_BYTES
    landed_window = LANDED_WINDOW_BYTES

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, *others: object) -> None:
        super().__init__(loop, sock, *others)
        self._left: list[memoryview] = []  # of bulk frames that the socket has not taken
        self._bulk_bytes = BULK_BYTES  # that leave next
        self._fill: memoryview | None = None  # where the rest of the frame goes that is being received
        self._filling = (0, 0, 0, 0)  # its stream, flags, load and length
        self._ahead = bytearray(AHEAD_BYTES)
        self._pending = getattr(sock, "pending", None)  # under TLS

    def start(self) -> None:
        super().start()
        if self._pending is not None:
            self.loop.call_soon(self._readable)  # what has come with the end of the handshake

    @property
    def unsent(self) -> bool:
        """As in Connection, or the other end has not acknowledged it: a socket that is closed may lose it."""
        return super().unsent or (not self.closed and _unacknowledged(self.sock) > 0)

    # --- sending ---------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self._out:
            self._bulk_bytes = BULK_BYTES
        super()._flush()

    def _flush_bulk(self) -> None:
        if self._backlog is not None or self.closed:
            return
        line, served = self._bulk, []
        parts: list[bytes | memoryview] = []
        if len(line) > 1:
            self._bulk_bytes = BULK_BYTES
        room = self._bulk_bytes
        while line and room > 0:
            outflow = line.popleft()
            if outflow.frame_bytes > MAX_PAYLOAD_BYTES:
                # Its reader may have no landing, and grant no more than to any stream.
                outflow.frame_bytes, outflow.least_credit = self._bulk_bytes - HEADER_BYTES, WINDOW_BYTES // 2
            piece, more = outflow.next_frame()
            room -= len(piece) + HEADER_BYTES
            parts += (HEADER.pack(len(piece), outflow.stream, 0, 0, outflow.kind, MORE if more else 0), piece)
            if more:
                outflow.wake()
                served.append(outflow)
            else:
                self.outflows.pop(outflow.stream, None)
                outflow.on_drained = None
        self._write_parts(parts)
        for outflow in served:
            if self.outflows.get(outflow.stream) is outflow:  # else it has been dropped meanwhile
                outflow.sent()
        if line and self._backlog is None:
            self.flush_soon()

    def _write_parts(self, parts: list[bytes | memoryview]) -> None:
        try:
            count = self.sock.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError as error:
            self._lose(error)
            return
        self._left = _behind(parts, count)
        self._bulk_bytes = max(BULK_BYTES, min(count if self._left else 2 * self._bulk_bytes, MOST_BULK_BYTES))
        if self._left:
            self._backlog = _WAITING
            self.loop.add_writer(self.sock.fileno(), self._writable)

    def _writable(self) -> None:
        left = self._left
        if left and not self.closed:
            try:
                count = self.sock.sendmsg(left)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lose(error)
                return
            self._left = _behind(left, count)
            if self._left:
                return
        super()._writable()

    # --- receiving -------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            for _ in range(READS_A_TICK):
                if self.closed or not self._receive():
                    return
        except ProtocolError as error:
            log.error("closing a connection: %s", error)
            self._lose(error)
        # As in Connection._readable.
        except Exception as error:
            log.exception("closing a connection: an error while handling a frame")
            self._lose(error)
        else:
            if self._pending is not None and not self.closed:
                self.loop.call_soon(self._readable)

    def _receive(self) -> bool:
        """Receive once. False: it is best to wait until there is more."""
        fill = self._fill
        try:
            if fill is None:
                data = self.sock.recv(READ_BYTES)
                count = len(data)
            else:
                count = self.sock.recvmsg_into((fill, self._ahead))[0]
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._lose(error)
            return False
        if not count:
            self._lose(None)
            return False
        if fill is None:
            self._parse(self._rest + data if self._rest else data)
        elif count < len(fill):
            self._fill = fill[count:]
        else:
            self._landed(bytes(self._ahead[: count - len(fill)]))
        return self._fill is not None or self._pending is not None

    def _landed(self, ahead: bytes) -> None:
        """A frame is whole whose payload is in its landing; `ahead` came with its end."""
        self._fill = None
        self._handle_landed(*self._filling)
        if ahead and not self.closed:
            self._parse(ahead)

    def _handle_landed(self, stream: int, flags: int, load: int, length: int) -> None:
        if flags & MORE and stream in self.landings:
            self.consumed(stream, length, self.landed_window)
        handler = self.handlers[DATA]
        assert handler is not None
        handler(stream, flags, load, b"", b"")

    def _parse(self, data: bytes) -> None:
        at, end, handlers, landings = 0, len(data), self.handlers, self.landings
        while end - at >= HEADER_BYTES:
            length, stream, meta, load, kind, flags = HEADER.unpack_from(data, at)
            if length > MOST_BULK_BYTES or meta > length or kind >= len(handlers):
                raise ProtocolError(f"not a frame: kind {kind}, length {length}, metadata {meta}")
            handler = handlers[kind]
            if handler is None:
                raise ProtocolError(f"a frame of kind {kind} is not for this end of the connection")
            start = at + HEADER_BYTES
            stop = start + length
            if kind == DATA and stream in landings:
                landing = landings[stream]
                landing.feed(memoryview(data)[start : min(stop, end)])
                if stop > end:
                    self._fill, self._filling = landing.room(stop - end), (stream, flags, load, length)
                    self._rest = b""
                    return
                self._handle_landed(stream, flags, load, length)
            elif stop > end:
                break
            else:
                middle = start + meta
                handler(stream, flags, load, data[start:middle], data[middle:stop])
            if self.closed:
                return
            at = stop
        self._rest = data[at:]


def _behind(parts: Sequence[bytes | memoryview], count: int) -> list[memoryview]:
    """What is left of the parts after the first `count` bytes."""
    for i, part in enumerate(parts):
        if count < len(part):
            return [memoryview(part)[count:], *(memoryview(each) for each in parts[i + 1 :])]
        count -= len(part)
    return []


def _unacknowledged(sock: socket.socket) -> int:
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
