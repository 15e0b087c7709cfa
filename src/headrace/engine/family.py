"""All the processes of one keeper: started with what they may use, watched, ended, and none of theirs left behind.

In: requests, stops, the news that some child ended. Out: living processes; each end, once, with the last lines.
Invariant: when the end of a process is told, its group was killed, and whatever it had started elsewhere is killed as
soon as the kernel hands it to the keeper (its subreaper).
"""

from __future__ import annotations

import contextlib
import heapq
import os
import selectors
import signal
from collections.abc import Callable, Mapping

from headrace.core.resources import Ledger, Resources
from headrace.engine import linux
from headrace.engine.base import ProcessExited, ProcessInfo, ProcessRequest
from headrace.engine.child import Child, kill_group, spawn
from headrace.engine.directory import InstanceDirectory
from headrace.engine.environment import LIFELINE_FD, process_environment
from headrace.engine.machine import Machine
from headrace.engine.output import LineFeed, Logs, ProcessOutput
from headrace.spec.errors import InstanceError

_TOKEN = "HEADRACE_SPAWN"  # in the environment of each process, and so of all that it starts

OnEnd = Callable[[Child, ProcessExited], None]


class Family:
    """The living processes by id. Belongs to the keeper's loop; `on_end` is called from `reap`.

    `variables` are the engine's own, which win in every process. `shared`: this process has other children too, whose
    ends are not the family's to take.
    """

    def __init__(
        self,
        directory: InstanceDirectory,
        machine: Machine,
        inherited: Mapping[str, str],
        selector: selectors.BaseSelector,
        lines: LineFeed | None,
        on_end: OnEnd,
        variables: Mapping[str, str] | None = None,
        shared: bool = False,
    ) -> None:
        self._directory = directory
        self._machine = machine
        self._inherited = inherited
        self._selector = selector
        self._lines = lines
        self._on_end = on_end
        self._variables = dict(variables or {})
        self._shared = shared
        self._ended_strangers: set[int] = set()
        self._logs = Logs(directory)
        self._ledger = Ledger(machine.cpus, machine.gpus)
        self._by_id: dict[str, Child] = {}
        self._by_pid: dict[int, Child] = {}
        self._tokens: set[str] = set()
        self._spawned = 0
        self._deadlines: list[tuple[float, int, Child]] = []
        self._foreign: frozenset[int] = frozenset()
        self._lifeline = (-1, -1)
        self._life = os.urandom(8).hex()  # the same for all processes of this keeper, and of no other

    def __repr__(self) -> str:
        return f"Family({', '.join(self._by_id)}; {self._ledger!r})"

    @property
    def capacity(self) -> Resources:
        """What the machine has in all."""
        return self._ledger.capacity

    def open(self) -> None:
        """Make the lifeline, and note which children this process has already: they are not touched."""
        reader, writer = os.pipe()
        # All children share this one end and its mode: "readable" is the end, and no read of one blocks another.
        os.set_blocking(reader, False)
        self._lifeline = (reader, writer)
        self._foreign = frozenset(linux.children(os.getpid()))

    def close(self) -> None:
        """Let the lifeline end."""
        for descriptor in self._lifeline:
            if descriptor >= 0:
                os.close(descriptor)
        self._lifeline = (-1, -1)

    def output(self, name: str) -> ProcessOutput:
        """A log under this name, for what the keeper itself has to say."""
        return ProcessOutput(name, self._logs.open(name), self._lines)

    def start(self, request: ProcessRequest, *, served: bool) -> ProcessInfo:
        """Start a process. Raises ResourcesShortError, OptionError or InstanceError."""
        living = self._by_id.get(request.id)
        if living is not None:
            raise InstanceError(f"process {request.id} already runs, pid {living.info.pid}: stop it first")
        if not request.argv:
            raise InstanceError(f"process {request.id} cannot be started: its argv is empty")
        grant = self._ledger.reserve(request.id, request.resources)
        self._spawned += 1
        token = f"{os.getpid()}.{self._spawned}"
        identity = {
            "HEADRACE_INSTANCE": self._directory.name,
            "HEADRACE_RUNTIME_DIR": str(self._directory.path),
            "HEADRACE_LIFE": self._life,
            "HEADRACE_PROCESS_ID": request.id,
            "HEADRACE_LIFELINE_FD": str(LIFELINE_FD),
            _TOKEN: token,
            **self._variables,
        }
        environment = process_environment(self._inherited, request, grant, self._machine, identity)
        try:
            pid, stdout = spawn(request, environment, self._lifeline[0])
        except (InstanceError, OSError):
            self._ledger.release(request.id)
            raise
        info = ProcessInfo(
            id=request.id,
            role=request.role,
            pid=pid,
            started_at=linux.started_at(pid) or 0.0,
            resources=request.resources,
        )
        child = Child(info, token, stdout, self.output(request.id), served)
        self._by_id[request.id] = self._by_pid[pid] = child
        self._tokens.add(token)
        self._selector.register(stdout, selectors.EVENT_READ, lambda _events: self._read(child))
        return info

    def stop(self, id: str, grace_s: float, now: float) -> None:
        """SIGTERM now, SIGKILL to all of it after `grace_s`; again, only a shorter grace counts."""
        child = self._by_id.get(id)
        if child is None:
            return
        if grace_s <= 0:
            child.kill()
            return
        if child.kill_at is None:
            child.terminate()
        if child.kill_at is None or now + grace_s < child.kill_at:
            self._set_deadline(child, now + grace_s)

    def extend(self, id: str, grace_s: float, now: float) -> None:
        """Have the kill of a process that is stopping come `grace_s` from now, sooner or later than it was to."""
        child = self._by_id.get(id)
        if child is not None and child.kill_at is not None:
            self._set_deadline(child, now + grace_s)

    def stop_all(self, grace_s: float, now: float) -> None:
        for id in tuple(self._by_id):
            self.stop(id, grace_s, now)

    def kill_all(self) -> None:
        """SIGKILL to every group, and to every orphan whoever it belonged to."""
        for child in self._by_pid.values():
            child.kill()
        self._kill_orphans(everyone=True)

    def expire(self, now: float) -> None:
        """Kill those whose grace is over."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, child = heapq.heappop(self._deadlines)
            if child.info.pid in self._by_pid and child.kill_at is not None and child.kill_at <= now:
                child.kill()

    def due(self) -> float | None:
        """When `expire` is to be called next; None when nothing is stopping."""
        return self._deadlines[0][0] if self._deadlines else None

    def reap(self) -> None:
        """Take note of all that ended: kill what they left, and tell `on_end` of each."""
        ended: list[tuple[Child, int]] = []
        reaped = False
        while (pid := self._ended_pid()) is not None:
            child = self._by_pid.pop(pid, None)
            if child is not None:
                kill_group(pid)
            _, status = os.waitpid(pid, 0)
            reaped = True
            if child is not None:
                ended.append((child, os.waitstatus_to_exitcode(status)))
        for child, _ in ended:
            self._forget(child)
        if reaped:
            self._kill_orphans(everyone=False)
        for child, code in ended:
            event = ProcessExited(id=child.info.id, pid=child.info.pid, code=code, tail=child.output.tail())
            self._on_end(child, event)

    def sweep(self) -> None:
        """To be called now and then where the process is shared: have done with what ended processes left here.

        A child that has ended and is nobody's in the family is reaped when it is still there at the next sweep: its
        own parent in this process, if it has one, reaps it sooner.
        """
        self._kill_orphans(everyone=False)
        with contextlib.suppress(OSError):  # out of descriptors: they are found at the next sweep
            ended = {pid for pid in self._orphans() if _has_ended(pid)}
            for pid in ended & self._ended_strangers:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            self._ended_strangers = ended - self._ended_strangers

    def processes(self) -> tuple[ProcessInfo, ...]:
        """Those that belong to the engine."""
        return tuple(child.info for child in self._by_id.values() if child.served)

    def runs(self, id: str) -> bool:
        return id in self._by_id

    def empty(self) -> bool:
        """Whether no process is left: neither those that were started nor orphans of theirs."""
        try:
            return not self._by_pid and not self._orphans()
        except OSError:
            return False  # not known, for want of a descriptor

    def known_empty(self) -> bool:
        """Whether none of those that were started is left."""
        return not self._by_pid

    def _ended_pid(self) -> int | None:
        """A child that ended, not reaped yet, or None; where others have children here too, one of the family's."""
        if self._shared:
            return next((pid for pid in self._by_pid if _has_ended(pid)), None)
        return _ended_child()

    def _read(self, child: Child) -> None:
        if not child.read():
            self._selector.unregister(child.stdout)

    def _forget(self, child: Child) -> None:
        if child.stdout in self._selector.get_map():
            self._selector.unregister(child.stdout)
        child.read_rest()
        os.close(child.stdout)
        child.output.finish()
        del self._by_id[child.info.id]
        self._tokens.discard(child.token)
        self._ledger.release(child.info.id)
        self._logs.retire(child.info.id)

    def _set_deadline(self, child: Child, when: float) -> None:
        child.kill_at = when
        heapq.heappush(self._deadlines, (when, child.info.pid, child))

    def _orphans(self) -> list[int]:
        """Raises OSError without a descriptor to look with."""
        children = linux.children(os.getpid())
        return [pid for pid in children if pid not in self._by_pid and pid not in self._foreign]

    def _kill_orphans(self, everyone: bool) -> None:
        """Kill what ended processes had started in sessions of their own; what living ones left here may go on."""
        try:
            orphans = self._orphans()
        except OSError:
            return  # out of descriptors: they are found when the next process ends
        for pid in orphans:
            token = linux.environment_value(pid, _TOKEN)
            if (everyone and not self._shared) or (token is not None and (everyone or token not in self._tokens)):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
                    if os.getpgid(pid) == pid:
                        kill_group(pid)


def _has_ended(pid: int) -> bool:
    """Whether this child ended; it is not reaped."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _ended_child() -> int | None:
    """A child that ended, not reaped yet, or None."""
    try:
        result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return result.si_pid if result is not None else None
