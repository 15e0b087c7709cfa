"""What turning objects into bytes and back costs, and what a large array costs on its way through shared memory.

One process, no event loop: encode, place in the arena, take the view, decode, release, beside the same array through a
Unix socket. Microseconds, median of many.
Run: python bench/payload_cost.py
"""

from __future__ import annotations

import os
import pickle
import socket
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from headrace.wire.arena import REFERENCE, ArenaReceiver, ArenaSender
from headrace.wire.payload import decode, encode

SMALL = (({"x": [1.0, 2.0, 3.0], "name": "digits"},), {"top": 3})


def median_us(action: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e6


def batch_us(action: Callable[[], object], times: int) -> float:
    """For what is too short to be timed one by one."""
    return median_us(lambda: [action() for _ in range(1000)], times) / 1000


class Lane:
    """Both ends of an arena, in one process."""

    def __init__(self) -> None:
        self.released: list[bytes] = []
        self.sender = ArenaSender()
        self.receiver = ArenaReceiver(self.released.append)

    def place(self, buffer: memoryview) -> bytes:
        placed = self.sender.place(buffer)
        if placed is None:
            raise MemoryError("the arena has no room")
        reference, fd = placed
        if fd is not None:
            self.receiver.adopt(REFERENCE.unpack(reference)[0], os.dup(fd), os.fstat(fd).st_size)
        return reference

    def there(self, value: object) -> Any:
        """The value as the receiver has it."""
        payload = encode(value)
        return decode(payload.data, [self.receiver.view(self.place(buffer)) for buffer in payload.buffers])

    def there_and_dropped(self, value: object) -> None:
        self.there(value)
        while self.released:
            self.sender.release(self.released.pop())


def through_a_socket(value: object, times: int) -> float:
    """Pickled in one piece, written by one thread and read by another."""
    ours, theirs = socket.socketpair()

    def receive_all(size: int) -> None:
        buffer = bytearray(size)
        for _ in range(times):
            view = memoryview(buffer)
            while view:
                view = view[theirs.recv_into(view) :]
            pickle.loads(buffer)
            theirs.sendall(b"x")

    thread = threading.Thread(target=receive_all, args=[len(pickle.dumps(value, 5))])
    thread.start()
    taken = median_us(lambda: (ours.sendall(pickle.dumps(value, 5)), ours.recv(1)), times)
    thread.join()
    return taken


def report_small() -> None:
    small = encode(SMALL)
    ours = batch_us(lambda: encode(SMALL), 50), batch_us(lambda: decode(small.data), 50)
    plain = batch_us(lambda: pickle.dumps(SMALL, 5), 50), batch_us(lambda: pickle.loads(small.data), 50)
    print(f"small call  encode {ours[0]:8.2f} us   decode {ours[1]:8.2f} us   ({len(small.data)} bytes)")
    print(f"            pickle {plain[0]:8.2f} us   loads  {plain[1]:8.2f} us")


def report_inline(count: int) -> None:
    array = np.random.default_rng(1).random(count)
    payload = encode(array)
    ours = median_us(lambda: encode(array), 500), median_us(lambda: decode(payload.data), 500)
    print(f"{array.nbytes / 1e3:7.0f} kB  encode {ours[0]:8.2f} us   decode {ours[1]:8.2f} us   (inline)")


def report_external(megabytes: int) -> None:
    array = np.random.default_rng(1).random(megabytes * 125_000)
    copy = np.empty_like(array)
    lane = Lane()
    times = 1000 // megabytes
    first = median_us(lambda: lane.there_and_dropped(array), 1)
    warm = median_us(lambda: lane.there_and_dropped(array), times)
    memcpy = median_us(lambda: np.copyto(copy, array), times)
    pipe = through_a_socket(array, max(5, times // 5))
    print(f"{megabytes:7} MB  arena {warm:9.0f} us   first  {first:8.0f} us   ", end="")
    print(f"memcpy {memcpy:6.0f} us   pickle and socket {pipe:8.0f} us")


def main() -> None:
    report_small()
    for count in (1_000, 20_000):
        report_inline(count)
    for megabytes in (1, 10, 100):
        report_external(megabytes)


if __name__ == "__main__":
    main()
