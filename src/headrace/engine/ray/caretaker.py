"""Processes that are kept by a thread of a process which has other work and other children: what an actor of Ray is.

In: the keeper's messages (start, stop, list, ports), from any thread. Out: their answers; the ends of processes, each
told again and again until it is acknowledged. The processes end when this one does, by their lifeline.
"""

from __future__ import annotations

import collections
import logging
import os
import selectors
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TypeVar

from headrace.engine import linux, messages
from headrace.engine.base import ProcessExited, ProcessInfo, ProcessRequest
from headrace.engine.child import Child
from headrace.engine.directory import InstanceDirectory
from headrace.engine.family import Family
from headrace.engine.machine import Machine
from headrace.engine.ports import HeldPorts
from headrace.spec.errors import HeadraceError, InstanceError

logger = logging.getLogger(__name__)

_SWEEP_S = 1.0
_WITHOUT_PIDFD_S = 0.05
_CLOSE_S = 5.0
_MOST_UNTOLD = 10_000

Answer = messages.FromKeeper | None
_T = TypeVar("_T")


class Caretaker:
    """Keeps the processes of one instance on this node. Public methods may be called from any thread, until `close`."""

    def __init__(
        self,
        directory: InstanceDirectory,
        machine: Machine,
        inherited: Mapping[str, str],
        variables: Mapping[str, str],
        kin: str = "",
    ) -> None:
        self.cpus = machine.cpus
        self._selector = selectors.DefaultSelector()
        self._family = Family(
            directory, machine, inherited, self._selector, None, self._ended, variables=variables, shared=True
        )
        self._ports = HeldPorts(kin)
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._wake = os.pipe()
        self._pidfds = True
        self._untold: dict[int, ProcessExited] = {}
        self._next_number = 1
        self._listener: Future[list[messages.Exited]] | None = None
        self._listens_until = 0.0
        self._sweep_at = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="headrace-caretaker", daemon=True)

    def __repr__(self) -> str:
        return f"Caretaker({self._family!r}{', closed' if self._closed else ''})"

    def open(self) -> None:
        """Begin. Orphans of the processes become children of this process."""
        linux.become_subreaper()
        for descriptor in self._wake:
            os.set_blocking(descriptor, False)
        self._selector.register(self._wake[0], selectors.EVENT_READ, self._woken)
        self._family.open()
        self._thread.start()

    def ask(self, message: messages.ToKeeper) -> Future[Answer]:
        """What the keeper would answer; OSError and errors of ours come as Refused."""
        future: Future[Answer] = Future()
        self._call(lambda: _tell(future, self._answer(message)))
        return future

    def exits(self, told: int, patience_s: float) -> Future[list[messages.Exited]]:
        """The ends after the number `told`, whose like are forgotten; [] when there is none for `patience_s`.

        Who asks last is answered: an earlier asker, who may be gone, gets [] at once.
        """
        future: Future[list[messages.Exited]] = Future()
        self._call(lambda: self._listen(future, told, patience_s))
        return future

    def close(self) -> None:
        """Kill what runs, and give back what is held."""
        self._call(self._close)
        self._thread.join(_CLOSE_S)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _call(self, act: Callable[[], None]) -> None:
        self._calls.append(act)
        try:
            os.write(self._wake[1], b"\0")
        except BlockingIOError:
            pass  # it is woken already

    def _run(self) -> None:
        while not self._closed:
            try:
                self._turn()
            except Exception:  # the top of the thread: what one process does must not be the end of the others
                logger.exception("a turn of the caretaker failed")
        self._family.close()
        self._ports.close()
        self._selector.close()

    def _turn(self) -> None:
        registered = self._selector.get_map()
        for key, events in self._selector.select(self._timeout()):
            # What came first may have closed what comes next, and its number may be another's by now.
            if registered.get(key.fd) is key:
                key.data(events)
        while self._calls:
            self._calls.popleft()()
        now = time.monotonic()
        self._family.expire(now)
        if not self._pidfds:
            self._family.reap()
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_S
            self._family.sweep()
        self._answer_listener(now)

    def _timeout(self) -> float:
        now = time.monotonic()
        due = [self._sweep_at, self._family.due(), self._listens_until if self._listener is not None else None]
        until = min(when for when in due if when is not None) - now
        return max(0.0, until if self._pidfds else min(until, _WITHOUT_PIDFD_S))

    def _woken(self, _events: int) -> None:
        try:
            while os.read(self._wake[0], 4096):
                pass
        except BlockingIOError:
            pass

    def _close(self) -> None:
        self._family.kill_all()
        give_up = time.monotonic() + _CLOSE_S / 2
        while not self._family.known_empty() and time.monotonic() < give_up:
            self._family.reap()
            time.sleep(0.01)
        self._closed = True

    # --- processes ----------------------------------------------------------------------------------------------------

    def _answer(self, message: messages.ToKeeper) -> Answer:
        try:
            match message:
                case messages.Start(n=n, request=request):
                    return messages.Started(n, self._start(request))
                case messages.Stop(id=id, grace_s=grace_s):
                    self._family.stop(id, grace_s, time.monotonic())
                case messages.ListProcesses(n=n):
                    return messages.Listed(n, self._family.processes())
                case messages.ReservePort(n=n, name=name, host=host, port=port):
                    return messages.PortReserved(n, self._ports.reserve(name, host, port))
                case _:
                    return messages.Refused(0, InstanceError.__name__, f"{type(message).__name__} is not for an actor")
        except HeadraceError as error:
            return messages.Refused(0, type(error).__name__, str(error))
        except OSError as error:  # out of descriptors, of memory, of processes
            return messages.Refused(0, InstanceError.__name__, f"the node cannot do it now: {error}")
        return None

    def _start(self, request: ProcessRequest) -> ProcessInfo:
        info = self._family.start(request, served=True)
        pidfd = linux.open_pidfd(info.pid)
        if pidfd is None:
            self._pidfds = False  # none to be had here, or no descriptor is left: it is looked for in each turn
        else:
            self._selector.register(pidfd, selectors.EVENT_READ, lambda _events: self._process_ended(pidfd))
        return info

    def _process_ended(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        self._family.reap()

    def _ended(self, child: Child, event: ProcessExited) -> None:
        self._untold[self._next_number] = event
        self._next_number += 1
        if len(self._untold) > _MOST_UNTOLD:
            del self._untold[next(iter(self._untold))]

    def _listen(self, future: Future[list[messages.Exited]], told: int, patience_s: float) -> None:
        for number in [number for number in self._untold if number <= told]:
            del self._untold[number]
        if self._listener is not None:
            _tell(self._listener, [])
        self._listener = future
        self._listens_until = time.monotonic() + patience_s

    def _answer_listener(self, now: float) -> None:
        if self._listener is None or not (self._untold or now >= self._listens_until):
            return
        listener, self._listener = self._listener, None
        _tell(listener, [messages.Exited(number, event) for number, event in self._untold.items()])


def _tell(future: Future[_T], answer: _T) -> None:
    """Answer whoever still waits for it: the calls of a controller that died are cancelled."""
    if future.set_running_or_notify_cancel():
        future.set_result(answer)
