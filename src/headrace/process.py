"""How a process of an instance begins and ends: with as little as it can beside its work.

In: the module whose `main() -> int` is the process. Out: its exit status. For `python -m headrace.replica` and the
like, which begin and end again and again.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import os
import sys
import threading
from typing import NoReturn

log = logging.getLogger("headrace")


def run(module: str) -> NoReturn:
    """Be the process whose `main` is in `module`, to the end of it."""
    gc.disable()  # what is imported stays: a tenth of the time of the imports would go by looking for garbage in it
    main = importlib.import_module(module).main
    gc.enable()
    try:
        status = main()
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            sys.stderr.write(f"{stop.code}\n")
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    leave(status)


def leave(status: int) -> NoReturn:
    """Exit as an interpreter does, up to where it would take its modules apart.

    Threads that are no daemons come to their end, what is registered with `atexit` is called, output is flushed. The
    rest is a fifth of a start's time, and the moment in which libraries crash whose threads still run.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:  # of a user's function: as the interpreter does, say it and go on
        log.exception("something that was to be called at the exit of this process failed")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # nobody reads it any more, or it is closed
            continue
    os._exit(status)
