"""Instances on a Ray cluster, from outside: connect, find one, start one, end one. All synchronous.

In: the cluster's address, an instance's name. Out: the instance's directory on this node. The controller runs in an
actor that Ray restarts; what it is made of is not known here, only the name of the function that runs it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import time
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError

from headrace.engine.directory import InstanceDirectory, runtime_directory
from headrace.engine.ray import inventory
from headrace.engine.ray.agent import CONTROLLER_KEY, NODE_KEY, OPTIONS_KEY, SECRET_KEY
from headrace.engine.ray.agents import charge_of
from headrace.engine.ray.hosts import brief
from headrace.engine.ray.kv import KeyValues
from headrace.engine.ray.names import NAMESPACE, controller_name
from headrace.engine.ray.nodes import HEAD_RESOURCE, look
from headrace.engine.ray.seats import ANY_NUMBER_OF_CALLS
from headrace.spec.cluster import ClusterOptions
from headrace.spec.errors import InstanceError
from headrace.wire.handshake import SECRET_BYTES

logger = logging.getLogger(__name__)

_CONNECT_S = 10.0
STATE = "state/"  # begin the keys of what the controller keeps: see `controller.rows`
_START_S = 60.0
_AGENT_S = 30.0
_CHECK_S = 0.05
_FORCE_S = 15.0


def connect(address: str | None = None) -> None:
    """Connect this process to the cluster at `address` (None, `auto`: the one that it is on), unless it is already.

    Raises InstanceError when there is none.
    """
    if ray.is_initialized():
        present = str(ray.get_runtime_context().gcs_address)
        if address not in (None, "auto") and not same_address(str(address), present, ray.util.get_node_ip_address()):
            raise InstanceError(
                f"this process is connected to the Ray cluster at {present} already, and can be to none at {address}: "
                "one process means one cluster"
            )
        return
    try:
        if address not in (None, "auto"):
            host, _, port = str(address).rpartition(":")
            socket.create_connection((host, int(port)), _CONNECT_S).close()  # Ray itself tries for many minutes
        ray.init(address=address or "auto", namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        # As Ray does itself at the end of the process, but for half a second in which it waits for what workers print.
        atexit.register(ray.shutdown)
    except (RayError, ConnectionError, ValueError, RuntimeError, OSError, AssertionError) as error:
        where = "on this machine" if address in (None, "auto") else f"at {address}"
        raise InstanceError(
            f"no Ray cluster is found {where} ({brief(error)}): start one by `ray start --head`, and join others to it "
            f"by `ray start --address HOST:6379`; this process has to run on a node of it{_on_tokens()}"
        ) from error


def find(instance: str) -> InstanceDirectory | None:
    """The instance's directory on this node, None when it does not run: when it has no controller, and none that Ray is
    about to begin anew. A node that just joined is waited for.
    """
    kept = KeyValues(instance)
    node = str(ray.get_runtime_context().get_node_id())
    try:
        if kept.get(CONTROLLER_KEY) is None or inventory.handle(controller_name(instance)) is None:
            return None
        path = _until(lambda: kept.get(NODE_KEY + node), _AGENT_S)
    except OSError as error:
        raise InstanceError(f"whether instance {instance} runs cannot be told: {error}") from error
    if path is None:
        raise InstanceError(f"instance {instance} runs on the cluster, but has no agent on this node ({node[:8]}) yet")
    return runtime_directory(path.decode())


def start(instance: str, options: ClusterOptions) -> tuple[InstanceDirectory, bool]:
    """See to it that the instance runs; its directory on this node, and whether this has begun it: of several who start
    it at once, one has.

    Where its controller was killed for good and all else of it runs, the next one takes that up, under the options that
    the instance was started with.
    """
    ran = inventory.handle(controller_name(instance)) is not None
    try:
        kept = None if ran else KeyValues(instance).get(OPTIONS_KEY)
    except OSError as error:
        raise InstanceError(f"whether instance {instance} runs cannot be told: {error}") from error
    if kept is not None:
        options = msgspec.msgpack.decode(kept, type=ClusterOptions)
    own = os.urandom(SECRET_BYTES)
    try:
        secret = b"" if ran else KeyValues(instance).add(SECRET_KEY, own)
    except OSError as error:
        raise InstanceError(f"the secret of instance {instance} cannot be kept: {error}") from error
    try:
        controller = _controller(instance, options)
        if not ran:
            _begin_agents(instance, secret, options)
        ray.get(controller.ready.remote(), timeout=_START_S)
    except (RayError, TimeoutError) as error:
        if not ran and kept is None:
            end(instance, 0)
        raise InstanceError(
            f"the controller of instance {instance} did not start on the cluster: {brief(error)}"
        ) from error
    directory = find(instance)
    if directory is None:
        raise InstanceError(f"instance {instance} has ended while it was started")
    if not _until(directory.control_socket.exists, _AGENT_S):
        raise InstanceError(f"the agent of this node does not listen at {directory.control_socket}")
    return directory, secret == own


def end(instance: str, timeout_s: float) -> None:
    """Wait until the instance has ended, as it was asked to; after `timeout_s` end whatever is left by force."""
    controller = controller_name(instance)
    _until(lambda: controller not in inventory.actors(instance), timeout_s)
    deadline = time.monotonic() + _FORCE_S
    while left(instance):
        if time.monotonic() > deadline:
            raise InstanceError(f"instance {instance} could not be ended on the cluster: {', '.join(left(instance))}")
        inventory.remove_all(instance, but_controller=False)
        time.sleep(_CHECK_S)
    forget(instance)


def left(instance: str) -> list[str]:
    """The names of what the instance has on the cluster."""
    return inventory.actors(instance) + inventory.groups(instance)


def forget(instance: str) -> None:
    """Remove what is kept of this life of the instance on the cluster: not the controller's state, for histories and
    numbers of revisions outlive it. For when nothing of it runs.
    """
    kept = KeyValues(instance)
    with contextlib.suppress(OSError):  # the GCS is gone, and what it kept with it
        for key in kept.keys(""):
            if not key.startswith(STATE):
                kept.delete(key)


def _controller(instance: str, options: ClusterOptions) -> Any:
    from headrace.engine.ray.controller import ControllerActor

    actor = ray.remote(ControllerActor).options(
        name=controller_name(instance),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=ANY_NUMBER_OF_CALLS,
        num_cpus=0,
        # Beside the GCS, without which it could neither be started anew nor keep anything.
        resources={HEAD_RESOURCE: 0.001},
    )
    return actor.remote(instance, options)


def _begin_agents(instance: str, secret: bytes, options: ClusterOptions) -> None:
    """Have the agents start beside the controller, which asks for the same ones. A process of Ray's takes a second."""
    seen = look()
    alive = tuple(each.state.id for each in seen)
    for each in seen:
        inventory.agent(each.state.id, charge_of(instance, secret, options, each, alive))


def _on_tokens() -> str:
    """What else it may be: Ray says of a token that is missing or wrong only that it cannot connect."""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        given = [name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)]
        return f"; the token in {given[0] if given else '~/.ray/auth_token'} has to be that of the cluster"
    return (
        "; a cluster that was started with authentication (RAY_AUTH_MODE=token) takes only who has RAY_AUTH_MODE=token "
        "and its token, in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token"
    )


def same_address(one: str, other: str, own_host: str) -> bool:
    """Whether two HOST:PORT are the same, also where one has a name for the address of the other. The host of this node
    itself stands, as it does for Ray, for localhost.
    """

    def resolved(address: str) -> tuple[str, str]:
        host, _, port = address.rpartition(":")
        try:
            found = socket.gethostbyname(host.strip("[]"))
        except OSError:
            found = host
        return own_host if found in ("127.0.0.1", "[::1]") else found, port

    return resolved(one) == resolved(other)


def _until(condition: Any, timeout_s: float) -> Any:
    """What the condition gives once it holds; what it gave last when it did not for so long."""
    deadline = time.monotonic() + timeout_s
    while True:
        holds = condition()
        if holds or time.monotonic() >= deadline:
            return holds
        time.sleep(_CHECK_S)
