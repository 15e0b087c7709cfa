"""The agents of an instance's nodes as the engine sees them: brought up, asked, brought up again.

In: the nodes that live. Out: an agent on each that is up. What a node's agent cannot do keeps no other from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from ray.exceptions import RayError

from headrace.engine import messages
from headrace.engine.ray import inventory
from headrace.engine.ray.agent import Charge, Post
from headrace.engine.ray.held import Seen
from headrace.engine.ray.hosts import ANSWER_S, Host, brief, call
from headrace.spec.cluster import ClusterOptions
from headrace.spec.errors import HeadraceError, InstanceError

logger = logging.getLogger(__name__)

UP_S = 30.0  # for an agent: its process starts on a node that may have much to do
_RETRY_S = 5.0


class Owner(Protocol):
    """The engine, as its agents need it."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...
    async def ask_ray(self, question: Callable[[], Any]) -> Any: ...
    def agent_up(self, host: Host, post: Post) -> None: ...


class Agents:
    """All on the engine's loop. `addresses` is of the nodes whose agents are up, or `restarting`."""

    def __init__(self, owner: Owner, instance: str, secret: bytes, options: ClusterOptions) -> None:
        self.addresses: dict[str, str] = {}
        self.directories: dict[str, str] = {}
        self.restarting: frozenset[str] = frozenset()
        self._owner = owner
        self._instance = instance
        self._secret = secret
        self._options = options
        self._hosts: dict[str, Host] = {}
        self._ports: dict[str, dict[str, tuple[str, int]]] = {}
        self._bringing: dict[str, asyncio.Task[None]] = {}
        self._controller = ""

    def __repr__(self) -> str:
        return f"Agents({', '.join(node[:8] for node in self._hosts)})"

    def bring(self, seen: Sequence[Seen]) -> None:
        """See to it that each of these nodes, which are all that live, has an agent."""
        alive = tuple(each.state.id for each in seen)
        for each in seen:
            task = self._bringing.get(each.state.id)
            if each.state.id not in self._hosts and (task is None or task.done()):
                self._bringing[each.state.id] = self._owner.spawn(self._bring(each, alive))

    async def wait(self, patience_s: float) -> None:
        """Wait until all that are being brought up are there; without any, until the first is, for as long as one may
        take.
        """
        waiting = [task for task in self._bringing.values() if not task.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=patience_s)
        if not self._hosts and any(not task.done() for task in waiting):
            await asyncio.wait(waiting, timeout=UP_S, return_when=asyncio.FIRST_COMPLETED)

    async def at(self, node: str) -> Host:
        """The agent of the node. Raises InstanceError where there is none, and none comes up."""
        task = self._bringing.get(node)
        if node not in self._hosts and task is not None:
            await asyncio.wait({task}, timeout=UP_S)
        if node not in self._hosts:
            raise InstanceError(f"node {node[:8]} of the cluster has no agent of the instance that is up")
        return self._hosts[node]

    async def reserve(self, node: str, message: messages.ReservePort) -> int:
        """Hold the port on the node, also when its agent restarts."""
        agent = await self.at(node)
        host, port = self._ports.get(node, {}).get(message.name, ("", 0))
        if message.port == 0 and message.host == host:
            # An agent that was begun anew does not know which one it was.
            message = messages.ReservePort(message.n, message.name, host, port)
        answer = await agent.ask(message)
        assert isinstance(answer, messages.PortReserved)
        self._ports.setdefault(node, {})[message.name] = (message.host, answer.port)
        return answer.port

    async def look(self) -> None:
        """See whose agent died alone and is being started anew. Raises what Ray raises."""
        away = [agent for agent in self._hosts.values() if agent.away]
        found = [agent.node for agent in away if await self._owner.ask_ray(partial(inventory.restarting, agent.actor))]
        self.restarting = frozenset(found)

    def restarted(self, agent: Host) -> None:
        """Ray has begun it anew: it holds no port yet."""
        for name, (host, port) in self._ports.get(agent.node, {}).items():
            self._owner.spawn(self._hold_again(agent, name, host, port))

    def gone(self, agent: Host) -> None:
        """It is gone for good; where its node lives, another is brought up."""
        if self._hosts.get(agent.node) is agent:
            self.forget(agent.node)

    def forget(self, node: str) -> None:
        """The node is gone."""
        agent = self._hosts.pop(node, None)
        if agent is not None and agent.following is not None and agent.following is not asyncio.current_task():
            agent.following.cancel()
        bringing = self._bringing.pop(node, None)
        if bringing is not None:
            bringing.cancel()  # nobody would ever answer it
        for kept in (self.directories, self.addresses, self._ports):
            kept.pop(node, None)

    def controller_at(self, address: str) -> None:
        """Tell all, and those that come, where the controller is."""
        self._controller = address
        for agent in self._hosts.values():
            self._owner.spawn(self._tell(agent))

    async def _bring(self, seen: Seen, alive: tuple[str, ...]) -> None:
        node = seen.state.id
        charge = charge_of(self._instance, self._secret, self._options, seen, alive)
        try:
            actor = await self._owner.ask_ray(partial(inventory.agent, node, charge))
            post: Post = await call(actor.post.remote(), UP_S)
        except (RayError, TimeoutError, ValueError) as error:
            logger.error("node %s has no agent: %s", node[:8], brief(error))
            await asyncio.sleep(_RETRY_S)
            return
        agent = Host(actor, node, post.where.life)
        self._hosts[node] = agent
        self.directories[node] = post.directory
        self.addresses[node] = post.host
        if self._controller:
            self._owner.spawn(self._tell(agent))
        self._owner.agent_up(agent, post)

    async def _tell(self, agent: Host) -> None:
        try:
            await call(agent.actor.controller_at.remote(self._controller), ANSWER_S)
        except (RayError, TimeoutError) as error:
            logger.warning("%r was not told where the controller is: %s", agent, brief(error))

    async def _hold_again(self, agent: Host, name: str, host: str, port: int) -> None:
        try:
            await agent.ask(messages.ReservePort(0, name, host, port))
        except HeadraceError as error:
            logger.error("port %d is not held any more on node %s: %s", port, agent.node[:8], error)


def charge_of(instance: str, secret: bytes, options: ClusterOptions, seen: Seen, alive: tuple[str, ...]) -> Charge:
    """What the agent of this node is begun with, `alive` being all nodes that live."""
    host = options.node_address or seen.host
    return Charge(instance=instance, secret=secret, host=host, options=options, alive=alive)
