"""Local testing mode: a whole instance in a thread of this process, for `serve.run(app, _local_testing_mode=True)`.

In: what `serve.*` asks, from any thread but its own. Out: answers, and handles that work in plain code and in any event
loop. User code runs here, as it is: no copy of it is made, nor of the constructors' arguments.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading

from headrace.serve.driver import local_tie, mean_local
from headrace.serve.in_process import InProcess
from headrace.serve.inner_tie import InProcessTie, check_elsewhere
from headrace.spec.errors import InstanceError

log = logging.getLogger("headrace.serve")

# A test needs not have the GPUs that its application asks for.
CPUS = 100_000.0
GPUS = 1_000
DRAIN_S = 0.5  # of what is in work at the end
END_TIMEOUT_S = 5.0

_starting = threading.Lock()


def local_instance() -> LocalInstance:
    """The one of this process, which `serve.*` means from now on; it is started where none runs."""
    with _starting:
        local = local_tie()
        if not isinstance(local, LocalInstance):
            local = LocalInstance()
            local.start()
        mean_local(local)
        return local


class LocalInstance(InProcessTie):
    """An instance in a daemon thread with an event loop, from `start` to `shutdown` or the end of the process."""

    def __init__(self) -> None:
        super().__init__(InProcess("local", cpus=CPUS, gpus=GPUS), shared=False)
        self._thread = threading.Thread(target=self._main, name="headrace-local", daemon=True)
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"<LocalInstance {self.instance!r}{'' if self.runs() else ' not running'}>"

    def start(self) -> None:
        """Start the thread; returns once the instance takes applications. Raises InstanceError when it does not."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise InstanceError(f"local testing mode did not start: {self._failure}") from self._failure

    def _main(self) -> None:
        import uvloop  # as in the processes of other instances

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except Exception as error:  # the top of the thread: whoever waits for its start must learn of it
            if self._ready.is_set():
                raise
            self._failure = error
            self._ready.set()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        await self.instance.begin()
        self.instance.runtime.tie = self
        self._ready.set()
        await self._stop.wait()
        await self.instance.end(DRAIN_S)

    def runs(self) -> bool:
        """Whether it has started and not ended, and this is not a fork of its process."""
        return self._ready.is_set() and self._thread.is_alive() and super().runs()

    def shutdown(self) -> None:
        """End it, with what is in work for half a second at most, and wait until it is gone.

        Raises LoopBlockedError on its own event loop. Code of a replica that blocks the loop is left behind.
        """
        if not self.runs():
            return
        check_elsewhere(self.runtime(), "serve.shutdown()")
        stop = self._stop
        assert stop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self.runtime().loop.call_soon_threadsafe(stop.set)
        self._thread.join(DRAIN_S + END_TIMEOUT_S)
        if self._thread.is_alive():
            self.leave()
            self.instance.remove_folder()
            log.error("code of a replica blocks the event loop of local testing mode: its thread is left behind")
        self.release()


def _at_exit() -> None:
    local = local_tie()
    if local is not None:
        local.shutdown()


atexit.register(_at_exit)
