"""The way in at a listening socket: who has come is met one by one, and bounded for as long as they prove who they are.

In: connections. Out: to `_meet` of the kind of entrance, each newcomer's socket; of those who fail, log lines
(`wire.doorkeeper`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from abc import ABC, abstractmethod

from headrace.spec.errors import HeadraceError
from headrace.wire.doorkeeper import PATIENCE_S, Doorkeeper

log = logging.getLogger("headrace.wire")

ACCEPTS_A_TICK = 16  # a flood of newcomers must not hold up the calls of those who are in
OUT_OF_FILES_S = 1.0  # before it is tried again to accept


class Entrance(ABC):
    """Takes connections at `sock`. `what` names it in log lines. All on `loop`, or the loop that runs at the start."""

    def __init__(self, sock: socket.socket, what: str, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.door = Doorkeeper(what)
        self._sock = sock
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._resting: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.door}>"

    @abstractmethod
    async def _meet(self, sock: socket.socket) -> None:
        """Have the newcomer prove who it is, and let it in. Where this raises (OSError, HeadraceError, also when it is
        cancelled), it has closed the socket.
        """

    def start(self) -> None:
        """Begin to accept."""
        self._loop = self._loop or asyncio.get_running_loop()
        self._resting = None
        self._loop.add_reader(self._sock.fileno(), self._accept, self._loop)

    def stop(self) -> None:
        """Stop to accept, and turn away those who have not proved yet who they are. Harmless again."""
        if self._resting is not None:
            self._resting.cancel()
        if self._sock.fileno() >= 0:
            if self._loop is not None:
                self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        self.door.close()

    async def stopped(self) -> None:
        """Wait until nobody is met any more."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(ACCEPTS_A_TICK):
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # It stays ready: without a rest this would be all that the loop does.
                log.error("%r cannot accept a connection: %s", self, error)
                loop.remove_reader(self._sock.fileno())
                self._resting = loop.call_later(OUT_OF_FILES_S, self.start)
                return
            sock.setblocking(False)
            task = loop.create_task(self._greet(sock, str(peer[0])), name="greet")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _greet(self, sock: socket.socket, source: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        newcomer = self.door.enter(source, task.cancel)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._meet(sock)
        except TimeoutError:
            self.door.failed(source, f"it did not prove within {PATIENCE_S:g} s who it is")
        except (OSError, HeadraceError) as error:
            self.door.failed(source, str(error))
        except asyncio.CancelledError:
            pass  # turned away: nobody else cancels this
        else:
            self.door.proved(source)
        finally:
            self.door.left(newcomer)
