"""The composition root of the controller on a Ray cluster: the same controller, in a thread of its actor.

In: the instance's name and options; the cluster, to which this process belongs. Out: the life of the controller. Its
state, source packs and secret are in the cluster's GCS, so that it goes on on another node when this one dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable
from functools import partial

import msgspec

from headrace.controller.kv_store import KeyValueStore
from headrace.controller.main import Controller
from headrace.controller.packs import RowPacks
from headrace.controller.rows import Rows
from headrace.engine.directory import InstanceDirectory, instance_directory, write_secret
from headrace.engine.ray import agent, agents, inventory
from headrace.engine.ray.engine import RayEngine
from headrace.engine.ray.kv import KeyValues
from headrace.spec.cluster import ClusterOptions
from headrace.wire.handshake import SECRET_BYTES

logger = logging.getLogger(__name__)

_LIFE_KEY = "life"
_FOLLOW_S = 2.0  # for the nodes, of a controller that follows one: those that answer later are known then


def run(instance: str, options: ClusterOptions, started: Callable[[], None]) -> None:
    """Live until the orderly end. `started` is called, in this thread, once it can be reached from every node.

    Raises InstanceError when it cannot begin, OSError when the cluster does not answer.
    """
    asyncio.run(_live(instance, options, started))


async def _live(instance: str, options: ClusterOptions, started: Callable[[], None]) -> None:
    values = KeyValues(instance)
    secret = await asyncio.to_thread(values.add, agent.SECRET_KEY, os.urandom(SECRET_BYTES))
    life = await asyncio.to_thread(values.add, _LIFE_KEY, uuid.uuid4().hex.encode())
    directory = own_directory(instance)
    directory.create()
    write_secret(directory, secret)
    own = options.node_address or await asyncio.to_thread(inventory.own_address)
    host: str = os.environ.get(agent.HOST_VARIABLE) or own
    follows = await asyncio.to_thread(values.get, agent.CONTROLLER_KEY) is not None
    engine = RayEngine(instance, secret, options, patience_s=_FOLLOW_S if follows else agents.UP_S)
    rows = Rows(values)
    store, packs = KeyValueStore(rows), RowPacks(rows)
    controller = Controller(engine, directory, life.decode(), store=store, packs=packs, roams=True)
    listening = asyncio.Event()
    life_of_it = asyncio.create_task(controller.run(listening.set), name="controller")
    waiting = asyncio.create_task(listening.wait())
    await asyncio.wait({life_of_it, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not life_of_it.done():
        try:
            address = await controller.server.listen_tcp(
                host, options.ports, secret, agent.tls_files(options), os.environ.get(agent.LISTEN_VARIABLE, "")
            )
            await asyncio.to_thread(partial(values.put, agent.OPTIONS_KEY, msgspec.msgpack.encode(options)))
            await asyncio.to_thread(partial(values.put, agent.CONTROLLER_KEY, address.encode()))
            engine.controller_at(address)
        except BaseException:
            life_of_it.cancel()
            raise
        started()
    await life_of_it
    directory.remove_sockets()
    for path in (directory.secret, directory.snapshot):
        path.unlink(missing_ok=True)


def own_directory(instance: str) -> InstanceDirectory:
    """The controller's own, beside that of its node's agent: what others look for at a controller is there."""
    usual = instance_directory(instance)
    return InstanceDirectory(usual.path.parent / "@controller" / instance)
