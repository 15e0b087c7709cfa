"""The agent of a node: owns the instance's directory there, keeps the ingress processes, and relays the control socket.

In: what Ray's actor was begun with, the controller's address as it is kept on the cluster. Out: a directory in which
the processes of the node find everything as on one machine: the control socket, the secret, the keeper's lock. An agent
that restarts takes the same directory, for the node's workers are in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future

import msgspec

from headrace.core.resources import Resources
from headrace.engine.base import ProcessRequest
from headrace.engine.credentials import write_tls_files
from headrace.engine.directory import (
    InstanceDirectory,
    KeeperLock,
    instance_directory,
    read_node,
    write_node,
    write_secret,
)
from headrace.engine.node_link import NodeLink
from headrace.engine.ray.host import Seat, Where, take_care
from headrace.engine.ray.kv import KeyValues
from headrace.engine.relay import Relay
from headrace.spec.cluster import ClusterOptions
from headrace.spec.errors import InstanceError
from headrace.wire.tls import TlsFiles

logger = logging.getLogger(__name__)

SECRET_KEY = "secret"
CONTROLLER_KEY = "controller"  # its address, `tcp:HOST:PORT`
OPTIONS_KEY = "options"  # those that the instance was started with
LISTEN_VARIABLE = "HEADRACE_NODE_LISTEN"  # there: where its processes listen, if not at the address for the others
HOST_VARIABLE = "HEADRACE_NODE_HOST"  # in the environment of the node's raylet it overrules the address that Ray has
NODE_KEY = "node/"  # and the node's id: where the instance's directory is there
_ASK_AGAIN_S = 1.0
_LISTEN_S = 10.0
_LOCK_S = 10.0  # for the lock of an agent that was killed


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is begun with. `host` is the address of its node, `alive` the nodes that there were then."""

    instance: str
    secret: bytes
    host: str
    options: ClusterOptions = ClusterOptions()
    alive: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Charge({self.instance} at {self.host})"  # it may stand in a log, which the secret must not


class Post(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that is up."""

    where: Where
    directory: str
    host: str


class Agent(Seat):
    """See the module. Its `caretaker` has the node's ingress processes and ports."""

    def __init__(self, charge: Charge) -> None:
        super().__init__()
        logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s %(message)s")
        self._charge = charge
        self._kept = KeyValues(charge.instance)
        self._controller = ""
        self._tell: Callable[[], object] = _nobody
        self._ask_controller()
        self._directory, self._lock = take_directory(charge, self.node)
        write_secret(self._directory, charge.secret)
        write_node(self._directory, self.node)
        write_tls_files(self._directory, tls_files(charge.options))
        self._host = os.environ.get(HOST_VARIABLE) or charge.host
        variables = node_variables(charge.instance, self._directory, self.node, self._host, charge.options)
        self.caretaker = take_care(self._directory, variables, kin(charge.secret))
        self._kept.put(NODE_KEY + self.node, str(self._directory.path).encode())
        self._listening: Future[None] = Future()
        threading.Thread(target=self._carry, name="headrace-relay", daemon=True).start()
        threading.Thread(target=self._follow_controller, name="headrace-where", daemon=True).start()
        self._listening.result(_LISTEN_S)

    async def post(self) -> Post:
        """Where it is: the sign that it is up."""
        return Post(where=await self.where(), directory=str(self._directory.path), host=self._host)

    async def controller_at(self, address: str) -> None:
        """The controller is here from now on."""
        self._controller = address
        self._tell()

    async def furnish(self, directory: str, variables: dict[str, str], executable: str) -> None:
        """It is furnished already."""
        self._executable = executable

    async def leave(self) -> None:
        """The instance ends: have nothing of it go on here."""
        assert self.caretaker is not None
        await asyncio.get_running_loop().run_in_executor(None, self.caretaker.close)
        self._directory.remove_sockets()
        for path in (self._directory.secret, self._directory.snapshot):
            path.unlink(missing_ok=True)
        self._lock.release()

    def _localized(self, request: ProcessRequest) -> ProcessRequest:
        return msgspec.structs.replace(super()._localized(request), resources=Resources())

    def _carry(self) -> None:
        try:
            asyncio.run(self._relay())
        except Exception as error:  # the top of the thread: an agent that carries nothing is none
            logger.exception("the agent of node %s failed", self.node)
            if self._listening.done():
                os._exit(1)  # Ray begins it anew
            self._listening.set_exception(error)

    async def _relay(self) -> None:
        relay = Relay(self._directory, self._charge.secret, tls_files(self._charge.options), lambda: self._controller)
        await relay.start()
        self._tell = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, relay.told)
        self._listening.set_result(None)
        await NodeLink(self._directory, self.node, self._host, cut=relay.cut).run()

    def _follow_controller(self) -> None:
        """A controller that moved tells where it is; here is who did not hear it."""
        while True:
            time.sleep(_ASK_AGAIN_S)
            self._ask_controller()
            self._tell()

    def _ask_controller(self) -> None:
        with contextlib.suppress(OSError):  # the GCS is away: what was last known is what there is
            self._controller = (self._kept.get(CONTROLLER_KEY) or self._controller.encode()).decode()


def _nobody() -> None:
    """Nobody waits for it yet."""


def take_directory(charge: Charge, node: str) -> tuple[InstanceDirectory, KeeperLock]:
    """The instance's directory for this node, locked: the one it had, the usual one, or one beside that of another
    node of this machine.
    """
    usual = instance_directory(charge.instance)
    beside = InstanceDirectory(usual.path.parent / f"@{node[:8]}" / charge.instance)
    if not beside.path.exists() and not _is_anothers(usual, node, charge.alive):
        with contextlib.suppress(InstanceError):
            return _taken(usual, node, patience_s=_LOCK_S if read_node(usual) == node else 0.0)
    return _taken(beside, node, patience_s=_LOCK_S)


def node_variables(
    instance: str, directory: InstanceDirectory, node: str, host: str, options: ClusterOptions
) -> dict[str, str]:
    """What the processes of a node are told beside what they are told on one machine."""
    variables = {
        "HEADRACE_INSTANCE": instance,
        "HEADRACE_RUNTIME_DIR": str(directory.path),
        "HEADRACE_NODE": node,
        HOST_VARIABLE: host,
    }
    if options.ports is not None:
        variables["HEADRACE_PORTS"] = f"{options.ports[0]}-{options.ports[1]}"
    if options.tls_certfile:
        variables["HEADRACE_TLS_CERT"] = options.tls_certfile
        variables["HEADRACE_TLS_KEY"] = options.tls_keyfile
        variables["HEADRACE_TLS_CA"] = options.tls_cafile
    return variables


def kin(secret: bytes) -> str:
    """What agents of one instance on one machine know each other by, which all of the machine may see."""
    return hashlib.blake2b(b"kin", key=secret, digest_size=8).hexdigest()


def tls_files(options: ClusterOptions) -> TlsFiles | None:
    """The certificates of the instance, None where it has none."""
    if not options.tls_certfile:
        return None
    return TlsFiles(certfile=options.tls_certfile, keyfile=options.tls_keyfile, cafile=options.tls_cafile)


def _is_anothers(directory: InstanceDirectory, node: str, alive: Iterable[str]) -> bool:
    """Whether another node that lives has it, though its agent may be about to restart."""
    owner = read_node(directory)
    return owner not in ("", node) and owner in alive


def _taken(directory: InstanceDirectory, node: str, patience_s: float) -> tuple[InstanceDirectory, KeeperLock]:
    directory.create()
    deadline = time.monotonic() + patience_s
    while True:
        try:
            lock = directory.lock_keeper()
            break
        except InstanceError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)
    if read_node(directory) != node:
        directory.clean()
    return directory, lock
