"""This process's way to the replicas: one router on one event loop, reached from any thread.

In: calls of handles, from any thread and any event loop; snapshots. Out: the same calls, on the router's loop, in the
order in which each thread made them. The slot `current()` is filled by the composition root of a replica
(`install`); in a driver it is filled on demand, with a thread that runs a loop of its own. A fork empties it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from headrace.context import current_replica
from headrace.engine import linux
from headrace.engine.credentials import credentials_of
from headrace.engine.directory import InstanceDirectory, read_node, read_snapshot, runtime_directory
from headrace.engine.site import RaySite, Site, inner_site, site_of
from headrace.router import Call, Router
from headrace.router.reports import Reports
from headrace.spec.errors import HeadraceError, InstanceError, LoopBlockedError, RequestTimeoutError
from headrace.spec.snapshot import Snapshot
from headrace.wire.client import ControlClient
from headrace.wire.control import GetSnapshot, Hello, SnapshotMessage
from headrace.wire.link import ControlLink

SNAPSHOT_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0
WATCH_S = 0.5  # how soon a driver whose link is down looks whether its instance has ended


def own_directory() -> InstanceDirectory:
    """The directory of the instance that this process belongs to, or talks to.

    Raises InstanceError for one on a Ray cluster that does not run; one on this machine has a directory all the same.
    """
    return own_site().directory()


def own_site() -> Site:
    """Where the instance is that this process belongs to; else the one that it talks to: as `mean` said last, or as the
    environment says.
    """
    told = os.environ.get("HEADRACE_RUNTIME_DIR")
    if told:
        return inner_site(runtime_directory(told))
    if _slot.site is None:
        return site_of()
    return _slot.site


def mean(site: Site | None) -> None:
    """Have this process talk to the instance at `site` from now on; None: to that of the environment."""
    _slot.site = site


def in_instance() -> bool:
    """Whether this process is one of the instance's own: it could not outlive it, nor start another."""
    return bool(os.environ.get("HEADRACE_RUNTIME_DIR"))


class Runtime:
    """A router, the loop that it lives on, and the way onto that loop's thread.

    `thread_id` is that of the thread that runs the loop. `close` ends what runs the loop; without it, the loop is
    somebody else's. `tie` is what `serve.*` asks for operations on an instance inside of this process, else None.
    `reports` is what tells the controller of requests.
    """

    __slots__ = ("_close", "_inbox", "_woken", "alive", "loop", "reports", "router", "thread_id", "tie", "waiting")

    def __init__(
        self,
        router: Router,
        loop: asyncio.AbstractEventLoop,
        thread_id: int,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.router = router
        self.loop = loop
        self.thread_id = thread_id
        self.alive = True
        self.tie: Any = None  # of a layer above
        self.reports = Reports(loop, router.tallies)
        self.waiting: set[Call] = set()  # calls that other threads wait for
        self._close = close
        self._inbox: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._woken = False

    def __repr__(self) -> str:
        return f"<Runtime at snapshot {self.router.snapshot.version}{'' if self.alive else ' closed'}>"

    def submit(self, call: Call) -> None:
        """Submit the call to the router: at once on the loop's own thread, else as soon as the loop comes to it."""
        if threading.get_ident() == self.thread_id:
            self.router.submit(call)
        else:
            self.post(self.router.submit, call)

    def post(self, act: Callable[[Any], None], argument: Any) -> None:
        """Have `act(argument)` run on the loop, after all that this thread posted before.

        The loop is woken once for a burst. Raises InstanceError when it was closed.
        """
        self._inbox.append((act, argument))
        if not self._woken:
            self._woken = True
            try:
                self.loop.call_soon_threadsafe(self._drain)
            except RuntimeError as error:
                raise InstanceError("the connection to the instance was closed") from error

    def _drain(self) -> None:
        # First the flag, then the inbox: whoever appends later than the last popleft sees the flag down and wakes.
        self._woken = False
        inbox = self._inbox
        while inbox:
            act, argument = inbox.popleft()
            act(argument)

    def adopt(self, snapshot: Snapshot) -> None:
        """Route by `snapshot` from the next call of this thread on, unless a newer one is known already."""
        if threading.get_ident() == self.thread_id:
            self._adopt(snapshot)
        else:
            self.post(self._adopt, snapshot)

    def _adopt(self, snapshot: Snapshot) -> None:
        if snapshot.version > self.router.snapshot.version:
            self.router.update(snapshot)

    def owns_this_thread(self) -> bool:
        """Whether the calling thread is the one that runs the loop."""
        return threading.get_ident() == self.thread_id

    @property
    def owned(self) -> bool:
        """Whether the loop is the runtime's own, made for it in a driver."""
        return self._close is not None

    def close(self) -> None:
        """Close the router and its loop, where they are the runtime's own; whoever waits for a call gets an error."""
        self.alive = False
        if self._close is not None:
            self._close()

    def fail_waiting(self, error: HeadraceError) -> None:
        """Tell all who wait on other threads that no answer will come. Called on the loop."""
        for call in list(self.waiting):
            call.on_error(error)


class _DriverThread:
    """A daemon thread with an event loop that holds the router and the link to the controller of a driver."""

    def __init__(self, site: Site, directory: InstanceDirectory, snapshot: Snapshot) -> None:
        self._directory = directory
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, args=(snapshot,), name="headrace-driver", daemon=True)
        self.runtime: Runtime | None = None
        self._failure: BaseException | None = None
        self._keeper_pid = directory.keeper_pid()
        self._away_s = site.keeper_away_s
        self._gone_since: float | None = None
        self._secret = _secret_of(directory)

    def start(self) -> Runtime:
        """Start the thread; answers once its router takes calls."""
        self._thread.start()
        self._ready.wait()
        if self.runtime is None:
            raise InstanceError(f"the driver's event loop did not start: {self._failure}") from self._failure
        return self.runtime

    def _main(self, snapshot: Snapshot) -> None:
        import uvloop  # here, so that `import headrace` stays light

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve(snapshot))
        except Exception as error:  # the top of the thread: whoever waits for its start must learn of it
            self._failure = error
            self._ready.set()
            raise

    async def _serve(self, snapshot: Snapshot) -> None:
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        identity = f"driver-{os.getpid()}-{os.urandom(4).hex()}"
        directory = self._directory
        router = Router(loop, identity, node=read_node(directory), read_credentials=lambda: credentials_of(directory))
        router.update(snapshot)
        self.runtime = Runtime(router, loop, threading.get_ident(), self.close)
        link = ControlLink(
            str(self._directory.control_socket),
            Hello(role="driver", id=identity, pid=os.getpid(), node=read_node(self._directory)),
            snapshot=snapshot,
            on_snapshot=self.runtime.adopt,
            on_connect=self._connected,
        )
        reports = self.runtime.reports
        reports.begin(link)
        linked = loop.create_task(link.run(), name="headrace-link")
        self._ready.set()
        # At once, where the system can tell: another instance of this name may be up before the next look.
        pidfd = linux.open_pidfd(self._keeper_pid) if self._keeper_pid is not None and not self._away_s else None
        if pidfd is not None:
            loop.add_reader(pidfd, self._stop.set)
        self._look_for_keeper()  # it may have ended before it was watched
        try:
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), WATCH_S)
                if not link.connected:
                    self._look_for_keeper()
        finally:
            self.runtime.alive = False
            await reports.settle()
            if pidfd is not None:
                loop.remove_reader(pidfd)
                os.close(pidfd)
            linked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await linked
            await router.close()
            self.runtime.fail_waiting(InstanceError("the connection to the instance was closed during the call"))

    def _connected(self) -> None:
        self._look_for_keeper()
        if self.runtime is not None:
            self.runtime.reports.connected()

    def _look_for_keeper(self) -> None:
        """Without its keeper the instance has ended; one of the same name that runs now is another.

        On a Ray cluster the keeper is the node's agent, which another one follows: for `_away_s` it may be gone, and
        what is another instance has another secret.
        """
        if self._stop is None:
            return
        pid = self._directory.keeper_pid()
        if not self._away_s:
            if pid != self._keeper_pid:
                self._stop.set()
            return
        secret = _secret_of(self._directory)
        if secret == self._secret and pid is not None:
            self._gone_since = None
        elif secret is not None and secret != self._secret:
            self._stop.set()
        else:
            now = time.monotonic()
            self._gone_since = self._gone_since or now
            if now - self._gone_since >= self._away_s or (pid is None and secret is None):
                self._stop.set()

    def close(self) -> None:
        """Close the router, stop the loop, and wait for the thread to end (not on the thread itself)."""
        runtime, stop = self.runtime, self._stop
        if runtime is None or stop is None or not self._thread.is_alive():
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            runtime.loop.call_soon_threadsafe(stop.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT_S)


class _Slot:
    """The process's runtime, if it has one, and where the instance is that it is to talk to, if that was said."""

    def __init__(self, site: Site | None = None) -> None:
        self.runtime: Runtime | None = None
        self.site = site
        self.lock = threading.Lock()
        self.left_behind: list[Runtime] = []


_slot = _Slot()


def of_replica() -> Runtime | None:
    """The runtime of an instance inside of this process, in the code of a replica of it; elsewhere None."""
    replica = current_replica()
    runtime: Runtime | None = replica.runtime if replica is not None else None
    return runtime if runtime is not None and runtime.alive else None


def current(former: Runtime | None = None) -> Runtime:
    """The runtime of the instance inside of this process that runs the calling code, else the process's own.

    A driver that has none yet connects to its instance. Raises InstanceError when that does not run, and where
    `former`, which was closed, was that of an instance inside of this process: no other has to do with that one.
    """
    if former is not None and former.tie is not None:
        raise InstanceError("the instance that this handle belongs to, inside of this or a parent process, has ended")
    runtime = of_replica()
    if runtime is not None:
        return runtime
    runtime = _slot.runtime
    if runtime is not None and runtime.alive:
        return runtime
    with _slot.lock:
        if _slot.runtime is None or not _slot.runtime.alive:
            site = own_site()
            directory = site.directory()
            _slot.runtime = _DriverThread(site, directory, _first_snapshot(site, directory)).start()
        return _slot.runtime


def installed() -> Runtime | None:
    """The process's runtime, or None when it has none yet."""
    return _slot.runtime


def install(runtime: Runtime | None) -> None:
    """Make `runtime` the process's own: for the composition root of a process that has a router already."""
    _slot.runtime = runtime


def close_own() -> None:
    """Close the runtime of a driver, if there is one; the next call of a handle makes a new one."""
    with _slot.lock:
        runtime = _slot.runtime
        if runtime is None or not runtime.owned:
            return
        _slot.runtime = None
    runtime.close()


def check_not_on_loop(what: str) -> None:
    """Raise LoopBlockedError on the thread of a replica's event loop: waiting there would stop what is waited for."""
    runtime = of_replica() or _slot.runtime
    if runtime is not None and not runtime.owned and runtime.thread_id == threading.get_ident():
        raise LoopBlockedError(
            f"{what} waits for the controller, and would block the event loop of this replica meanwhile: call it in a "
            "thread, `await asyncio.to_thread(...)`"
        )


def _first_snapshot(site: Site, directory: InstanceDirectory) -> Snapshot:
    """The controller's snapshot; while the controller is away, the one on disk (calls go on without a controller)."""
    client = ControlClient(str(directory.control_socket))
    try:
        answer = client.request(GetSnapshot(), SNAPSHOT_TIMEOUT_S)
    except (InstanceError, RequestTimeoutError) as error:
        if directory.keeper_pid() is None:
            raise site.not_running() from None
        snapshot = read_snapshot(directory)
        if snapshot is None:
            raise error
        return snapshot
    finally:
        client.close()
    if not isinstance(answer, SnapshotMessage):
        raise InstanceError(f"the controller answered GetSnapshot with {type(answer).__name__}")
    return answer.snapshot


def _secret_of(directory: InstanceDirectory) -> bytes | None:
    """What tells lives of an instance on a cluster apart; None where there is one machine, or the instance ended."""
    try:
        return directory.secret.read_bytes()
    except OSError:
        return None


def _after_fork_in_child() -> None:
    # The loop's thread does not exist here, but its epoll set is shared with the parent: to finalize the loop would
    # take the parent's sockets out of that set. So it is kept, unused, for as long as the process lives.
    left_behind = _slot.left_behind
    if _slot.runtime is not None:
        _slot.runtime.alive = False
        left_behind.append(_slot.runtime)
    _slot.__init__(_slot.site)  # type: ignore[misc]  # a lock that some other thread held at the fork is never released here
    _slot.left_behind = left_behind
    if isinstance(_slot.site, RaySite):
        _slot.site.forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(close_own)
