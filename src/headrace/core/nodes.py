"""Which nodes of the cluster can be reached, as far as the controller can tell.

In: what the engine says of nodes, what is heard of the agent on each of them, and `now`. Out: the state of each node,
and which of them were lost.

A node is lost when its agent's connection is broken and not back in time, or silent for too long, or when the engine
does not name it any more, whichever is first; it is back when its agent is and the engine names it. Where the engine
says that the agent is being started anew the node is itself well, and has longer. Two things speak against the
controller and not against nodes, and then no node is judged: that it looks much later than it should have (it was
stalled, and what came meanwhile lies unread), and that no node at all can be heard. A node that was never heard of,
as all are to a controller that has just begun, has longer. The node "" has no agent: it is the controller's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from headrace.spec.status import NodeStatus

TOLD_GONE = 32  # nodes that are not of the cluster any more, of which it is still told that they are lost


class NodePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds: how long an agent may be without a connection (`broken_s`; `restart_s` while the engine says
    that it is being started anew), say nothing on it (`silent_s`; from `suspect_s` on nothing is started there), or not
    have come for the first time (`first_s`). Looks are `look_s` apart; when one comes later than `stalled_s` after the
    last, the controller itself was stalled.
    """

    broken_s: float = 5.0  # Ray takes two or three to begin an agent anew, where there is not much else to do
    restart_s: float = 60.0
    silent_s: float = 5.0  # a machine whose processors are all taken for so long is rare, and loses but time
    suspect_s: float = 1.2
    first_s: float = 10.0
    look_s: float = 0.25
    stalled_s: float = 1.0


@dataclass(slots=True)
class Node:
    """One node. Its agent is `connected` or not; it was `met` once, was last `heard` then, and is lost at `due`
    if nothing is heard of it until then. `named`: the engine knows it; `expected`: it does not yet, but something runs
    there; `restarting`: it says that the agent has died, though the node has not, and is being started anew.
    """

    id: str
    host: str = ""
    head: bool = False
    leaving: bool = False
    restarting: bool = False
    named: bool = False
    expected: bool = False
    connected: bool = False
    met: bool = False
    heard: float = 0.0
    due: float = 0.0
    lost: bool = False


class Nodes:
    """All nodes. `look` is to be called every `look_s`, and judges; all else notes what happens."""

    def __init__(self, policy: NodePolicy, now: float) -> None:
        self._policy = policy
        self._nodes: dict[str, Node] = {}
        self._gone: dict[str, None] = {}  # once named, not any more
        self._looked = now

    def __repr__(self) -> str:
        return f"<Nodes {', '.join(f'{id} {self.state(id)}' for id in self._nodes) or 'none'}>"

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def node(self, id: str) -> Node:
        """What is known of the node. Raises KeyError."""
        return self._nodes[id]

    def state(self, id: str, now: float | None = None) -> NodeStatus:
        """The state of the node; LOST for one that is not known (any more). `now`: also whether it is silent now."""
        node = self._nodes.get(id)
        if node is None or node.lost:
            return NodeStatus.LOST
        if not node.named or not (node.met or not id):
            return NodeStatus.COMING
        if id and not (node.connected if now is None else self._is_heard(node, now)):
            return NodeStatus.SUSPECT
        return NodeStatus.LEAVING if node.leaving else NodeStatus.ALIVE

    def is_lost(self, id: str) -> bool:
        """Whether what runs there counts as gone. Of a node that was never known it does not."""
        node = self._nodes.get(id)
        return node.lost if node is not None else id in self._gone

    def lost(self) -> list[str]:
        """The nodes that are lost, but for those that left the cluster so long ago that all know it."""
        present = [node.id for node in self._nodes.values() if node.lost]
        gone = [id for id in self._gone if id not in self._nodes]
        return sorted(present + gone[-TOLD_GONE:])

    def leaving(self) -> frozenset[str]:
        """The nodes from which replicas should move."""
        return frozenset(node.id for node in self._nodes.values() if node.leaving)

    # --- what happens -----------------------------------------------------------------------------------------------

    def name(self, nodes: Iterable[Node], now: float) -> list[str]:
        """These are the nodes of the engine from now on. Returns those that are lost with that."""
        named = {node.id: node for node in nodes}
        for id, told in named.items():
            node = self._node(id, now)
            if not node.named:
                node.due = max(node.due, now + self._bound_s(node))
                if node.connected:
                    node.lost = False  # its agent was back before the engine said so
            if told.restarting is not node.restarting:
                node.restarting = told.restarting
                if not node.connected:
                    node.due = now + self._bound_s(node)
            node.named, node.expected, node.head, node.leaving = True, False, told.head, told.leaving
            node.host = told.host or node.host
            self._gone.pop(id, None)
        lost = []
        for node in [node for node in self._nodes.values() if node.id not in named]:
            if node.named:
                self._gone[node.id] = None
                if not node.lost:
                    lost.append(node.id)
                node.named, node.lost = False, True
            if not node.connected and not node.expected:
                del self._nodes[node.id]
        return lost

    def expect(self, id: str, now: float) -> None:
        """Something runs on the node, as far as an earlier controller knew. It has as long to come as all others."""
        node = self._node(id, now)
        node.expected = not node.named

    def connected(self, id: str, host: str, now: float) -> bool:
        """The agent of the node has a connection. True: the node is back, which was lost."""
        node = self._node(id, now)
        node.connected = True
        node.host = host or node.host
        return self._heard(node, now)

    def reported(self, id: str, now: float) -> bool:
        """The agent of the node says that it is there. True: the node is back, which was lost."""
        node = self._nodes.get(id)
        return node is not None and self._heard(node, now)

    def broken(self, id: str, now: float) -> None:
        """The agent of the node has no connection any more."""
        node = self._nodes.get(id)
        if node is None or not node.connected:
            return
        node.connected = False
        node.due = now + self._bound_s(node)
        if not node.named and not node.expected:
            del self._nodes[id]

    def _node(self, id: str, now: float) -> Node:
        if id not in self._nodes:
            self._nodes[id] = Node(id, due=now + self._policy.first_s, lost=id in self._gone)
        return self._nodes[id]

    def _heard(self, node: Node, now: float) -> bool:
        node.met = True
        node.heard = now
        node.due = now + self._policy.silent_s
        back = node.lost and node.named
        if back:
            node.lost = False
        return back

    # --- judging ----------------------------------------------------------------------------------------------------

    def look(self, now: float) -> list[str]:
        """The nodes that are lost from now on."""
        late = now - self._looked > self._policy.stalled_s
        self._looked = now
        watched = [node for node in self._nodes.values() if node.id and not node.lost and (node.named or node.expected)]
        if late:
            for node in watched:
                node.heard = now
                node.due = max(node.due, now + self._bound_s(node))
        elif not any(self._is_heard(node, now) for node in watched):
            for node in watched:  # whoever is heard first, the others have time from then on
                node.due = max(node.due, now + self._policy.silent_s)
        lost = [node for node in watched if now >= node.due]
        for node in lost:
            node.lost = True
            if node.expected:
                self._gone[node.id] = None
                node.expected = False
                if not node.connected:
                    del self._nodes[node.id]
        return [node.id for node in lost]

    def _is_heard(self, node: Node, now: float) -> bool:
        return node.connected and now < node.heard + self._policy.suspect_s

    def _bound_s(self, node: Node) -> float:
        if not node.met:
            return self._policy.first_s
        if node.connected:
            return self._policy.silent_s
        return self._policy.restart_s if node.restarting else self._policy.broken_s
