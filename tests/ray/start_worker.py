"""Starts a worker of Ray's in the place of Ray's `setup_worker.py`, for a fifth of its work: forked, not begun anew.

In: the command line that a raylet gives `setup_worker.py`, which imports Ray and then has another Python import it.
Out: the same worker. The first that any raylet of a run of the tests starts leaves a *template* behind: a process that
has imported all, and forks the workers, of whichever node. What takes more than variables of the environment (a Python
of its own, a container) is left to Ray's own script.
"""

from __future__ import annotations

import _socket  # a third of the start of a process that does no more than this is the import of `socket`
import os
import sys
import time

CONTEXT = "--serialized-runtime-env-context="
LANGUAGE = "--language="
TEMPLATE = "--template="
IMPORTED = (
    "headrace.engine.ray.agent",
    "headrace.controller.on_ray",
    "headrace.engine.ray.controller",
    "headrace.engine.ray.host",
    "marks",
    "pkgutil",
    # What each of Ray's workers imports, the last four as soon as it has something to send.
    "ray._private.workers.default_worker",
    "ray._common.usage.usage_lib",
    "ray._common.pydantic_compat",
    "pydantic.v1",
    "ray._private.arrow_serialization",
    "starlette.datastructures",
)
IDLE_S = 60.0  # after which a template ends
TAKEN, NOT_MINE = b"1", b"0"


def main() -> None:
    """Start the worker that the command line asks for."""
    door = f"\0headrace-tests-template-{os.environ['RAY_TESTS_RUN']}"
    while not (answer := _hand_over(door)):
        _leave_template(door)
    if answer == NOT_MINE:
        import runpy

        worker = next(argument for argument in sys.argv if argument.endswith("default_worker.py"))
        runpy.run_path(os.path.join(os.path.dirname(worker), "setup_worker.py"), run_name="__main__")


def _hand_over(door: str) -> bytes:
    """Have the template fork the worker, with this process's output: its answer, nothing when there is no template."""
    caller = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    output = b"".join(descriptor.to_bytes(4, sys.byteorder) for descriptor in (1, 2))
    try:
        caller.connect(door)
        caller.sendmsg([b"?"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, output)])
        return caller.recv(1)
    except OSError:
        return b""
    finally:
        caller.close()


def _leave_template(door: str) -> None:
    """Begin one, unless another process has just done it: who comes meanwhile waits at its door."""
    callers = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        callers.bind(door)
        callers.listen(64)
    except OSError:
        callers.close()
        time.sleep(0.02)  # it is bound, and does not listen yet
        return
    if not (between := os.fork()):  # it is to be nobody's child: workers of Ray's that end kill theirs
        if not os.fork():
            os.setsid()
            # No node's: what it forks has its beginnings in common, and says otherwise to whom it belongs.
            kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
            os.set_inheritable(callers.fileno(), True)
            os.execve(sys.executable, [sys.executable, __file__, TEMPLATE + str(callers.fileno())], kept)
        os._exit(0)
    callers.close()
    os.waitpid(between, 0)


def be_template(door: int) -> None:
    """Fork workers for as long as some are wanted. `door` is the descriptor at which they are asked for."""
    import gc
    import importlib
    import select
    import signal
    import socket

    callers = socket.socket(fileno=door)
    callers.set_inheritable(False)
    # Ray reads these once and for all as it is imported: such workers are for any job, and under any raylet. Who waits
    # for that of process 1 to end sees the end of the raylet by its connection.
    os.environ["RAY_JOB_ID"] = "ffffffff"
    os.environ["RAY_RAYLET_PID"] = "1"
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is collected in a fork is copied into it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while select.select([callers], [], [], IDLE_S)[0]:
        caller, _ = callers.accept()
        word, output, _, _ = socket.recv_fds(caller, 1, 2)
        if word:
            pid = int.from_bytes(caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
            order = _order(pid)
            if order is not None and not os.fork():
                _be_worker(*order, output)
            caller.send(NOT_MINE if order is None else TAKEN)
        for descriptor in output:
            os.close(descriptor)
        caller.close()


def _order(pid: int) -> tuple[list[str], dict[str, str], str] | None:
    """The arguments, the environment and the folder of the worker that a process is to start; None for Ray's script."""
    import json

    arguments = _words(f"/proc/{pid}/cmdline")[2:]
    context = json.loads(_option(arguments, CONTEXT) or "{}")
    variables = context.pop("env_vars", {})
    plain = context.pop("py_executable", sys.executable) == sys.executable and not any(context.values())
    if _option(arguments, LANGUAGE) != "PYTHON" or not plain or any("$" in value for value in variables.values()):
        return None
    environment = dict(each.split("=", 1) for each in _words(f"/proc/{pid}/environ"))
    rest = [each for each in arguments if not each.startswith((CONTEXT, LANGUAGE))]
    return rest, environment | variables, os.readlink(f"/proc/{pid}/cwd")


def _option(arguments: list[str], name: str) -> str:
    return next((argument.removeprefix(name) for argument in arguments if argument.startswith(name)), "")


def _words(path: str) -> list[str]:
    with open(path, "rb") as file:
        return os.fsdecode(file.read()).split("\0")[:-1]


def _be_worker(arguments: list[str], environment: dict[str, str], folder: str, output: list[int]) -> None:
    import runpy
    import signal

    import marks

    os.setsid()  # a raylet ends the whole group of a worker that has ended
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor, place in zip(output, (1, 2), strict=True):
        os.dup2(descriptor, place)
    os.closerange(3, max(output) + 1)  # all that was the template's
    mark = os.memfd_create(environment["HEADRACE_HOME"])  # see `marks`
    os.dup2(mark, marks.HOLDS, inheritable=False)
    os.close(mark)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = arguments
    sys.path[0] = os.path.dirname(arguments[0])
    runpy.run_path(arguments[0], run_name="__main__")
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1].startswith(TEMPLATE):
        be_template(int(sys.argv[1].removeprefix(TEMPLATE)))
    else:
        main()
