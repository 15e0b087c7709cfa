"""One data-plane connection: frames in and out of one socket, on one event loop.

In: bytes and file descriptors of a connected socket; what the owner sends. Out: frames to the handlers of the subclass;
bytes to the socket. It owns the socket itself rather than an asyncio transport, because descriptors pass with `recvmsg`
and `sendmsg`, and because a driver may have to run it on a loop whose transports are slow.

What holds here:
- The frames sent in one tick of the loop leave in one write (a long burst in several), small ones before bulk data.
- Bulk data (`Outflow`) leaves in frames of at most 64 KiB, one from each stream in turn, each stream within its credit:
  a large body never holds up a small call, and a slow reader holds back its own writer alone.
- After `close` or a loss, nothing is sent or delivered any more, and `on_lost` has been called at most once.
"""

from __future__ import annotations

import array
import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.spec.errors import ProtocolError
from headrace.wire.frames import (
    CREDIT,
    DATA,
    HEADER,
    HEADER_BYTES,
    LAST_KIND,
    MAX_FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    MORE,
    U32,
    WINDOW_BYTES,
)

if TYPE_CHECKING:
    from headrace.wire.buffers import Landing

log = logging.getLogger("headrace.wire")

# 64 KiB lies under malloc's mmap threshold: a read into more costs a page fault per 4 KiB each time.
READ_BYTES = 64 * 1024
FDS_AT_ONCE = 8
ANCILLARY_BYTES = socket.CMSG_SPACE(FDS_AT_ONCE * array.array("i").itemsize)
BULK_FRAMES_A_TICK = 4
# Small parts of a stream are gathered for so many ticks at most, while each brings a new one, and so many bytes.
GATHERING_TICKS = 5
GATHERED_BYTES = 16 * 1024
# Frames of one tick leave in one write, but of a long burst the first leave at once: two processes that wait for each
# other's last frame would work in turns.
BURST_PARTS = 3 * 8  # a frame is three parts

Handler = Callable[[int, int, int, bytes, bytes], None]  # (stream, flags, load, meta, payload)


class Outflow:
    """The bulk data that one stream still has to send, within the credit that its reader has given."""

    kind = DATA  # of the frames that it leaves in

    __slots__ = (
        "_connection",
        "_gathered",
        "_gathered_bytes",
        "_pending",
        "_queued",
        "credit",
        "ended",
        "frame_bytes",
        "granted",
        "least_credit",
        "on_drained",
        "pending_bytes",
        "starved",
        "stream",
    )

    def __init__(self, connection: Connection, stream: int, credit: int, on_drained: Callable[[], None] | None) -> None:
        self._connection = connection
        self.frame_bytes = MAX_PAYLOAD_BYTES
        self._pending: deque[memoryview] = deque()
        self.ended = False
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._queued = False
        self.starved = False  # the producer waits for on_drained
        self.least_credit = 1  # with less it waits for more: at most half of what its reader grants at first
        self.granted = credit > 0  # the reader has ever given credit: before that, nothing of this has left
        self.stream = stream
        self.credit = credit
        self.on_drained = on_drained
        self.pending_bytes = 0

    def gather(self, data: bytes) -> bool:
        """As `write` with more to follow, for a small part of many: those of a few ticks leave as one.

        One that comes alone leaves a tick later than it would by `write`.
        """
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= GATHERED_BYTES:
            return self.write(b"", True)
        if len(self._gathered) == 1:
            self._connection.loop.call_soon(self._gather_on, 0, 1)
            self._connection.flush_soon()
        return not self.starved

    def _gather_on(self, seen: int, ticks: int) -> None:
        count = len(self._gathered)
        if count > seen and ticks < GATHERING_TICKS:
            self._connection.loop.call_soon(self._gather_on, count, ticks + 1)
            self._connection.flush_soon()
        elif count:
            self.write(b"", True)

    def write(self, data: bytes | memoryview, more: bool) -> bool:
        """Take `data` to send; `more` False ends the stream. False: enough waits, go on when `on_drained` is called."""
        if self._gathered:
            data = b"".join((*self._gathered, data))
            self._gathered.clear()
            self._gathered_bytes = 0
        if data:
            self._pending.append(memoryview(data).cast("B"))
            self.pending_bytes += len(self._pending[-1])
        self.ended = not more
        self.wake()
        if self.pending_bytes >= WINDOW_BYTES:
            self.starved = True
            return False
        return True

    def forget(self) -> None:
        """What has been gathered is not wanted any more."""
        self._gathered.clear()

    def grant(self, count: int) -> None:
        self.credit += count
        self.granted = True
        self.wake()

    def wake(self) -> None:
        """Stand in line for the socket, if there is something that may be sent."""
        if self._pending:
            ready = self.credit >= min(self.least_credit, self.pending_bytes)
        else:
            ready = self.ended
        if ready and not self._queued:
            self._queued = True
            self._connection.line_up(self)

    def next_frame(self) -> tuple[memoryview | bytes, bool]:
        """The next piece and whether more of the stream follows it. The connection calls this when it is our turn."""
        self._queued = False
        if not self._pending:
            return b"", False
        pending = self._pending
        room = min(self.frame_bytes, self.credit)
        head = pending.popleft()
        piece: memoryview | bytes = head[:room]
        if len(head) > room:
            pending.appendleft(head[room:])
        elif pending and len(head) + len(pending[0]) <= room:
            # Many small writes (the parts of a response, items) leave as one frame.
            pieces, room = [head], room - len(head)
            while pending and len(pending[0]) <= room:
                pieces.append(pending.popleft())
                room -= len(pieces[-1])
            piece = b"".join(pieces)
        self.credit -= len(piece)
        self.pending_bytes -= len(piece)
        return piece, bool(pending) or not self.ended

    def sent(self) -> None:
        """A frame of ours left: line up again, and tell the producer when there is room."""
        self.wake()
        if self.starved and self.pending_bytes < WINDOW_BYTES // 2:
            self.starved = False
            if self.on_drained is not None:
                self.on_drained()


class Connection:
    """Frames over one connected, non-blocking socket. Subclasses set `handlers` by kind and override `on_lost`."""

    # Of a body that the other end has a Landing for: the longest frame, and what may be under way without credit, which
    # is what a small frame may have to wait behind.
    landed_bytes = MAX_PAYLOAD_BYTES
    landed_window = WINDOW_BYTES

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.loop = loop
        self.sock = sock
        self.closed = False
        self.handlers: list[Handler | None] = [None] * (LAST_KIND + 1)
        self.handlers[CREDIT] = self._on_credit
        self.received_fds: deque[int] = deque()
        self.outflows: dict[int, Outflow] = {}
        self._out: list[bytes] = []
        self._fd_frames: list[tuple[int, int]] = []  # (index in _out, descriptor), rare
        self._scheduled = False
        self._backlog: memoryview | None = None
        self._bulk: deque[Outflow] = deque()
        self._rest = b""
        self._owed: dict[int, int] = {}
        self.landings: dict[int, Landing] = {}  # where bodies go whose length is known, by stream

    @property
    def unsent(self) -> bool:
        """Whether something that was given to be sent has not left yet."""
        return not self.closed and bool(self._out or self.outflows or self._backlog is not None)

    def start(self) -> None:
        """Begin to read."""
        self.loop.add_reader(self.sock.fileno(), self._readable)

    # --- sending ---------------------------------------------------------------------------------------------------

    def send(
        self, stream: int, kind: int, flags: int = 0, load: int = 0, meta: bytes = b"", payload: bytes = b""
    ) -> None:
        """Send one frame, with all others of this tick. Meta and payload together are at most MAX_PAYLOAD_BYTES."""
        if self.closed:
            return
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._flush)
        self._out += (HEADER.pack(len(meta) + len(payload), stream, len(meta), load, kind, flags), meta, payload)

    def send_fd(self, stream: int, kind: int, fd: int, payload: bytes) -> None:
        """Send one frame with a file descriptor (Unix sockets). The descriptor stays the caller's."""
        if self.closed:
            return
        self.send(stream, kind, payload=payload)
        # The descriptor must travel with the first byte of its own frame: the three parts become one.
        frame = b"".join(self._out[-3:])
        self._out[-3:] = [frame]
        self._fd_frames.append((len(self._out) - 1, fd))

    def open_outflow(self, stream: int, credit: int, on_drained: Callable[[], None] | None = None) -> Outflow:
        """A sender of bulk data on `stream`. It ends with the write that has no more, or with `drop_outflow`."""
        outflow = self.outflows[stream] = Outflow(self, stream, credit, on_drained)
        return outflow

    def drop_outflow(self, stream: int) -> None:
        """Forget what the stream still had to send."""
        outflow = self.outflows.pop(stream, None)
        if outflow is not None:
            outflow.on_drained = None
            outflow.forget()
            if outflow in self._bulk:
                self._bulk.remove(outflow)

    def line_up(self, outflow: Outflow) -> None:
        self._bulk.append(outflow)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Send what there is by the end of the next tick, after what the loop was asked to do before."""
        if not self._scheduled and not self.closed:
            self._scheduled = True
            self.loop.call_soon(self._flush)

    def consumed(self, stream: int, count: int, window: int = WINDOW_BYTES) -> None:
        """`count` bytes of DATA of `stream` are done with: give the writer credit for as many, in large steps."""
        owed = self._owed.get(stream, 0) + count
        if owed >= window // 2:
            self._owed.pop(stream, None)
            self.send(stream, CREDIT, payload=U32.pack(owed))
        else:
            self._owed[stream] = owed

    def forget_inflow(self, stream: int) -> None:
        """No more DATA comes on `stream`: what credit it is owed does not matter any more."""
        self._owed.pop(stream, None)
        self.landings.pop(stream, None)

    def land(self, stream: int, landing: Landing, granted: int = 0) -> None:
        """The DATA of `stream` goes there; its writer had credit for `granted` bytes from the start."""
        self.landings[stream] = landing
        credit = self.landed_window - granted
        if credit:
            self.send(stream, CREDIT, payload=U32.pack(credit))

    def _flush(self) -> None:
        self._scheduled = False
        if self._backlog is not None or self.closed:
            return
        out = self._out
        if out:
            if self._fd_frames:
                self._write_with_fds()
                if self._backlog is not None or self.closed:
                    return
            else:
                data = b"".join(out)
                out.clear()
                self._write(data)
        if self._bulk:
            self._flush_bulk()

    def flush_now(self) -> None:
        """Send what is queued without waiting for the end of the tick: the other end begins while we go on."""
        if self._backlog is None and not self._fd_frames and not self.closed:
            data = b"".join(self._out)
            self._out.clear()
            self._write(data)

    def _flush_bulk(self) -> None:
        for _ in range(BULK_FRAMES_A_TICK):
            if not self._bulk or self._backlog is not None or self.closed:
                return
            outflow = self._bulk.popleft()
            piece, more = outflow.next_frame()
            if not more:
                # With the callback goes what holds the call, and the call holds its body: no cycle for the collector.
                self.outflows.pop(outflow.stream, None)
                outflow.on_drained = None
            header = HEADER.pack(len(piece), outflow.stream, 0, 0, outflow.kind, MORE if more else 0)
            self._write(b"".join((header, piece)))
            if more:
                outflow.sent()
        if self._bulk and self._backlog is None and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._flush)

    def _write(self, data: bytes) -> None:
        try:
            count = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError as error:
            self._lose(error)
            return
        if count < len(data):
            self._backlog = memoryview(data)[count:]
            self.loop.add_writer(self.sock.fileno(), self._writable)

    def _write_with_fds(self) -> None:
        """Write what is queued, each descriptor with the first byte of its frame; what does not fit stays queued."""
        out, at = self._out, 0
        while self._fd_frames and self._backlog is None and not self.closed:
            index, fd = self._fd_frames[0]
            if index > at:
                self._write(b"".join(out[at:index]))
                at = index
                continue
            frame = out[index]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            try:
                count = self.sock.sendmsg([frame], ancillary)
            except (BlockingIOError, InterruptedError):
                self._backlog = memoryview(b"")
                self.loop.add_writer(self.sock.fileno(), self._writable)
                break
            except OSError as error:
                self._lose(error)
                return
            self._fd_frames.pop(0)
            at = index + 1
            if count < len(frame):
                self._backlog = memoryview(frame)[count:]
                self.loop.add_writer(self.sock.fileno(), self._writable)
        del out[:at]
        self._fd_frames = [(index - at, fd) for index, fd in self._fd_frames]
        if out and not self._fd_frames and self._backlog is None and not self.closed:
            data = b"".join(out)
            out.clear()
            self._write(data)

    def _writable(self) -> None:
        backlog = self._backlog
        if backlog is None or self.closed:
            return
        if len(backlog):
            try:
                count = self.sock.send(backlog)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lose(error)
                return
            if count < len(backlog):
                self._backlog = backlog[count:]
                return
        self._backlog = None
        self.loop.remove_writer(self.sock.fileno())
        self._flush()

    # --- receiving -------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self.sock.recvmsg(READ_BYTES, ANCILLARY_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if not data:
            self._lose(None)
            return
        if ancillary:
            self._keep_fds(ancillary)
        try:
            self._parse(self._rest + data if self._rest else data)
        except ProtocolError as error:
            log.error("closing a connection: %s", error)
            self._lose(error)
        # The handlers run every frame's consequence; an error of ours in one must not leave the socket half read.
        except Exception as error:
            log.exception("closing a connection: an error while handling a frame")
            self._lose(error)

    def _parse(self, data: bytes) -> None:
        at, end = 0, len(data)
        unpack, handlers = HEADER.unpack_from, self.handlers
        while end - at >= HEADER_BYTES:
            length, stream, meta, load, kind, flags = unpack(data, at)
            if length > MAX_FRAME_BYTES or meta > length or kind >= len(handlers):
                raise ProtocolError(f"not a frame: kind {kind}, length {length}, metadata {meta}")
            start = at + HEADER_BYTES
            stop = start + length
            if stop > end:
                break
            handler = handlers[kind]
            if handler is None:
                raise ProtocolError(f"a frame of kind {kind} is not for this end of the connection")
            middle = start + meta
            handler(stream, flags, load, data[start:middle], data[middle:stop])
            if self.closed:
                return
            at = stop
        self._rest = data[at:]

    def _keep_fds(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self.received_fds.extend(fds)

    def _on_credit(self, stream: int, flags: int, load: int, meta: bytes, payload: bytes) -> None:
        if len(payload) != U32.size:
            raise ProtocolError(f"a CREDIT frame of {len(payload)} bytes instead of {U32.size}")
        outflow = self.outflows.get(stream)
        if outflow is not None:
            outflow.grant(U32.unpack(payload)[0])

    # --- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Send what is queued if the socket takes it at once, then close. `on_lost` is not called."""
        if self.closed:
            return
        self._flush()
        self._shut()

    def on_lost(self, error: BaseException | None) -> None:
        """The other end is gone, or broke the protocol. Called once; nothing comes after it."""

    def _lose(self, error: BaseException | None) -> None:
        if self.closed:
            return
        self._shut()
        self.on_lost(error)

    def _shut(self) -> None:
        if self.closed:
            return
        self.closed = True
        fd = self.sock.fileno()
        self.loop.remove_reader(fd)
        self.loop.remove_writer(fd)
        self.sock.close()
        self._out.clear()
        self._bulk.clear()
        self.outflows.clear()
        self.landings.clear()
        self._close_fds()

    def _close_fds(self) -> None:
        while self.received_fds:
            socket.close(self.received_fds.popleft())
