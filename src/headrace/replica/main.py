"""The worker process: the composition root of what runs user code (`python -m headrace.replica`).

In: HEADRACE_INSTANCE, HEADRACE_PROCESS_ID, HEADRACE_LIFELINE_FD and HEADRACE_RUNTIME_DIR from the keeper, and where
there are several nodes what replica/place.py reads; orders of the controller. Out: exit code 0 after a drain, 1 when
the drain's time was over and something still ran.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import select
import signal
import sys
import threading
from pathlib import Path

import uvloop

from headrace import runtime
from headrace.context import set_process_replica
from headrace.engine.directory import read_snapshot
from headrace.observe.logs import log_to_stderr
from headrace.replica.host import DESTROY_S, UNWIND_S, HostedReplica
from headrace.replica.pack_finder import import_from_pack
from headrace.replica.place import place_of
from headrace.replica.source_pack import read_pack
from headrace.replica.worker import Worker
from headrace.router import Router
from headrace.spec.errors import OptionError
from headrace.spec.snapshot import Snapshot
from headrace.spec.status import ReplicaState
from headrace.wire.awake import awake_for
from headrace.wire.control import HostReplica

log = logging.getLogger("headrace.replica")

ORPHAN_DRAIN_S = 3.5  # with the grace below: gone 5 s after the keeper
EXIT_GRACE_S = UNWIND_S + DESTROY_S


def main() -> int:
    """Run the worker of this process to its end."""
    faulthandler.enable()
    show_output_at_once()
    log_to_stderr()
    # Ctrl-C in a terminal may reach every process of it; the keeper decides what it means for this one. A handler, and
    # not SIG_IGN, which processes that user code starts would inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve())


async def serve() -> int:
    """Host what the controller orders until it is drained, the process is terminated, or the keeper is gone."""
    loop = asyncio.get_running_loop()
    process_id = os.environ["HEADRACE_PROCESS_ID"]
    directory = runtime.own_directory()
    place = place_of(directory)
    router = Router(
        loop,
        process_id,
        "replica",
        node="" if place is None else place.node,
        read_credentials=None if place is None else lambda: place.credentials,
    )
    here = runtime.Runtime(router, loop, threading.get_ident())
    runtime.install(here)
    snapshot = read_snapshot(directory)
    if snapshot is not None:
        here.adopt(snapshot)
    worker = Worker(
        process_id,
        str(directory.control_socket),
        snapshot=snapshot or Snapshot(),
        adopt=here.adopt,
        prepare=prepare,
        on_state=on_state,
        on_drain=exit_regardless_after,
        awake=awake_for(loop),
        reports=here.reports,
        place=place,
    )
    loop.add_signal_handler(signal.SIGTERM, worker.stop)
    watch_lifeline(loop, worker)
    try:
        return await worker.run()
    finally:
        exit_regardless_after(0.0)  # threads of the user that linger do not keep the process
        await router.close()


def prepare(order: HostReplica) -> None:
    """Make this process like the one where the application was built: sources, import path, directory, variables."""
    environment = order.environment
    kept = {name: value for name, value in environment.variables.items() if not name.startswith("HEADRACE_")}
    os.environ.update(kept | order.spec.options.environment)
    if environment.sys_path:
        # `python -m` put the directory where this process was started first: it is nobody's import path.
        started_in = _working_directory()
        rest = [p for p in sys.path if p not in environment.sys_path and p != started_in]
        sys.path[:] = [*environment.sys_path, *rest]
    if environment.pack:
        import_from_pack(environment.pack, read_pack(runtime.own_directory(), environment.pack))
    if environment.cwd:
        _enter(environment.cwd)


def _enter(directory: str) -> None:
    try:
        os.chdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        # The code came along. What it reads from there it will miss by itself, and say so.
        if not _working_directory():
            os.chdir("/")  # this process was started there too, and much fails in a place that is gone
        log.warning("%s, where the application was built, is gone: its replica runs in %s", directory, Path.cwd())
    except OSError as error:
        raise OptionError(
            f"the replica cannot enter {directory!r}, where the application was started: {error.strerror}"
        ) from error


def _working_directory() -> str:
    """Where this process is, "" when that is gone."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return ""


def on_state(replica: HostedReplica) -> None:
    """What the process does when its replica's state changes."""
    if replica.state is ReplicaState.STARTING:
        set_process_replica(replica.context)
    elif replica.state is ReplicaState.RUNNING:
        # The model stays for good: the collector need not look through it again and again.
        gc.collect()
        gc.freeze()


def exit_regardless_after(deadline_s: float) -> None:
    """Exit when a drain that begins now should be over, whatever threads or user code on the loop do."""
    timer = threading.Timer(max(deadline_s, 0.0) + EXIT_GRACE_S, exit_now)
    timer.daemon = True
    timer.start()


def exit_now() -> None:
    """The end of the drain's time."""
    sys.stderr.write("this replica did not end in the time of its drain, and exits as it is\n")
    sys.stderr.flush()
    os._exit(1)


def watch_lifeline(loop: asyncio.AbstractEventLoop, worker: Worker) -> None:
    """Drain when the keeper is gone: the write end of the lifeline is its alone.

    In a thread, so that a loop which user code has stalled does not keep the process alive either.
    """
    text = os.environ.get("HEADRACE_LIFELINE_FD")
    if not text:
        return
    descriptor = int(text)
    os.set_inheritable(descriptor, False)
    # Its flags are those of all processes that share the pipe, so it is not made to block: this waits for it instead.
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)

    def watch() -> None:
        poller.poll()  # nobody ever writes: readable is its end
        log.warning("the keeper is gone: this replica ends")
        exit_regardless_after(ORPHAN_DRAIN_S)
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(worker.stop, ORPHAN_DRAIN_S)

    threading.Thread(target=watch, name="headrace-lifeline", daemon=True).start()


def show_output_at_once() -> None:
    """What user code prints goes to the keeper line by line, whatever the encoding of the place."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
