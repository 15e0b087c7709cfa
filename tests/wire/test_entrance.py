"""A listener that cannot accept, for want of descriptors, rests instead of doing nothing else."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable

import pytest

from headrace.wire.entrance import Entrance
from headrace.wire.meeting import Reception
from headrace.wire.tcp import Credentials, Listener

SECRET = os.urandom(32)


class WithoutFiles(socket.socket):
    """It cannot accept."""

    tried = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.tried += 1
        raise OSError(errno.EMFILE, "too many open files")


def listener(sock: socket.socket) -> Entrance:
    return Listener(asyncio.get_running_loop(), sock, Credentials(SECRET), lambda sock: None)


def reception(sock: socket.socket) -> Entrance:
    return Reception(sock, Credentials(SECRET), "", asyncio.Protocol, what="test")


@pytest.mark.parametrize("kind", [listener, reception])
def test_without_descriptors_it_tries_once_and_rests(kind: Callable[[socket.socket], Entrance]) -> None:
    async def main() -> None:
        sock = WithoutFiles()
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        entrance = kind(sock)
        entrance.start()
        with socket.create_connection(sock.getsockname()):
            while not sock.tried:
                await asyncio.sleep(0)
            for _ in range(100):  # turns of the loop, in each of which somebody is there to be accepted
                await asyncio.sleep(0)
        assert sock.tried == 1
        entrance.stop()
        await entrance.stopped()

    asyncio.run(main())
