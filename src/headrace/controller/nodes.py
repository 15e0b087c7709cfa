"""The nodes of the instance as the controller knows them, and what follows from that for what runs on them.

In: the nodes of the engine; connections and reports of the nodes' agents, by the control server; the time. Out: to the
reconciler, which nodes are lost, leave, or can have replicas and an ingress.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

import msgspec

from headrace.core import nodes as cluster
from headrace.core.nodes import NodePolicy
from headrace.engine.base import NodeInfo
from headrace.spec.status import NodeDetails, NodeStatus

logger = logging.getLogger(__name__)


class Place(msgspec.Struct, frozen=True):
    """A node as what runs on it sees it."""

    node: str
    status: NodeStatus
    head: bool


class Nodes:
    """See `core.nodes`. `wake` has the reconciler look again. `begin` starts the looks, `close` ends them."""

    def __init__(self, wake: Callable[[], None], policy: NodePolicy | None = None) -> None:
        self._wake = wake
        self._policy = policy or NodePolicy()
        self._nodes = cluster.Nodes(self._policy, 0.0)
        self._losses: list[str] = []
        self._arrivals = False
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return repr(self._nodes)

    def begin(self, nodes: Iterable[NodeInfo], now: float) -> None:
        """These are the engine's nodes; whatever was known of others is not any more."""
        self._nodes = cluster.Nodes(self._policy, now)
        self.changed(nodes, now)
        self._again()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def changed(self, nodes: Iterable[NodeInfo], now: float) -> None:
        """These are the engine's nodes from now on."""
        told = [cluster.Node(each.id, each.host, each.head, each.leaving, each.restarting) for each in nodes]
        self._lose(self._nodes.name(told, now), "it is not part of the cluster any more")
        self._arrivals = True
        self._wake()

    def expect(self, node: str, now: float) -> None:
        """Something runs there that an earlier controller started, whether the engine names the node yet or not."""
        if node:
            self._nodes.expect(node, now)

    # --- the agents -------------------------------------------------------------------------------------------------

    def connected(self, node_id: str, host: str, now: float) -> None:
        """The agent of the node has a connection."""
        self._returned(node_id, self._nodes.connected(node_id, host, now))
        self._arrivals = True
        self._wake()

    def reported(self, node_id: str, now: float) -> None:
        """The agent of the node says that it is there."""
        doubtful = self._nodes.state(node_id, now) is NodeStatus.SUSPECT
        back = self._nodes.reported(node_id, now)
        self._returned(node_id, back)
        if back or doubtful:
            self._arrivals = True
            self._wake()

    def lost(self, node_id: str, now: float) -> None:
        """The agent of the node has no connection any more."""
        self._nodes.broken(node_id, now)
        self._wake()

    def _returned(self, node_id: str, back: bool) -> None:
        if back:
            logger.warning("node %s can be reached again", node_id)

    # --- looking ----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        lost = self._nodes.look(now)
        if lost:
            self._lose(lost, "it cannot be reached")
            self._wake()
        self._again()

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._policy.look_s, self._look)

    def _lose(self, lost: list[str], why: str) -> None:
        for node in lost:
            logger.error("node %s is lost: %s; what ran there starts elsewhere", node, why)
        self._losses += lost

    # --- what follows -----------------------------------------------------------------------------------------------

    def take_losses(self) -> list[str]:
        """The nodes that were lost since this was asked last."""
        losses, self._losses = self._losses, []
        return losses

    def take_arrivals(self) -> bool:
        """Whether there may be more room than when this was asked last."""
        arrivals, self._arrivals = self._arrivals, False
        return arrivals

    def is_lost(self, node: str) -> bool:
        """Whether what runs on the node counts as gone."""
        return self._nodes.is_lost(node)

    def all_lost(self) -> list[str]:
        """The nodes of which those who call what runs there should know that they are lost."""
        return self._nodes.lost()

    def is_doubtful(self, node: str) -> bool:
        """Whether the node cannot be reached, be it for good: what ends there did not end by itself."""
        return bool(node) and self.status(node) in (NodeStatus.SUSPECT, NodeStatus.LOST)

    def status(self, node: str) -> NodeStatus:
        """What is known of the node."""
        return self._nodes.state(node, asyncio.get_running_loop().time())

    def leaving(self) -> frozenset[str]:
        """The nodes from which replicas should move."""
        return self._nodes.leaving()

    def avoided(self) -> tuple[str, ...]:
        """The nodes on which nothing should be started now. One that may be back in a moment is better than none."""
        places = self.places()
        shunned = {NodeStatus.LOST, NodeStatus.LEAVING}
        if any(each.status in (NodeStatus.ALIVE, NodeStatus.COMING) for each in places):
            shunned.add(NodeStatus.SUSPECT)
        return tuple(each.node for each in places if each.status in shunned or each.node in self.leaving())

    def places(self) -> list[Place]:
        """All nodes that there are, also lost ones that may come back."""
        return [Place(node.id, self.status(node.id), node.head) for node in self._nodes if node.named]

    def details(self) -> dict[str, NodeDetails]:
        """What the status tells of them: nothing where there is but this machine."""
        return {
            node.id: NodeDetails(status=self.status(node.id), host=node.host, head=node.head)
            for node in self._nodes
            if node.id
        }
