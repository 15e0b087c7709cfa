"""The ingress processes: on each node as many as the HTTP options say, started again when they die.

In: options of HTTP and gRPC, the nodes, exits from the engine, reports of ingress processes. Out: starts and stops
through the engine, and one answer to whoever asked for HTTP: they listen, or why they do not.

Those of a node that is lost are left alone until it is back: they serve whoever reaches them. Those of a node that
leaves go when its replicas have gone.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.controller.nodes import Nodes
from headrace.core.lifecycle import COUNTED, Event, Phase, advance
from headrace.core.restart import RestartPolicy, Restarts
from headrace.engine.base import Engine, ProcessExited, ProcessInfo, ProcessRequest
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import HeadraceError, InstanceError, PortBusyError
from headrace.spec.grpc import GrpcService
from headrace.spec.status import NodeStatus, ProxyDetails, ProxyStatus
from headrace.wire.control import IngressReport

logger = logging.getLogger(__name__)

START_ATTEMPTS = 3
STOP_MARGIN_S = 2.0
SHOWN_OF_NODE = 8  # of its id, in that of an ingress

_STATUS = {
    Phase.LAUNCHING: ProxyStatus.STARTING,
    Phase.STARTING: ProxyStatus.STARTING,
    Phase.RECOVERING: ProxyStatus.HEALTHY,
    Phase.RUNNING: ProxyStatus.HEALTHY,
    Phase.DRAINING: ProxyStatus.DRAINING,
    Phase.STOPPING: ProxyStatus.DRAINING,
    Phase.GONE: ProxyStatus.UNHEALTHY,
}


@dataclass(slots=True)
class Proxy:
    """One ingress process, or the place of one that died and is to come back."""

    id: str
    restarts: Restarts
    node: str = ""
    phase: Phase = Phase.GONE
    pid: int = 0
    host: str = ""
    port: int = 0
    grpc_port: int = 0
    level: int = 0
    launched_at: float = 0.0
    starts: int = 0
    failed_starts: int = 0
    error: str = ""

    def on(self, event: Event) -> None:
        """Change the phase. Raises IllegalTransition."""
        self.phase = advance(self.phase, event)


_UNDECIDED = {NodeStatus.COMING, NodeStatus.SUSPECT}
_Answer = Callable[[HeadraceError | None], None]


def place_id(number: int, node: str) -> str:
    """The id of an ingress process: its number, and its node where there are several."""
    return f"ingress#{number}@{node[:SHOWN_OF_NODE]}" if node else f"ingress#{number}"


class Proxies:
    """What should listen and what does. `spawn` runs a coroutine as a task; `wake` has the reconciler look again."""

    def __init__(
        self,
        engine: Engine,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        wake: Callable[[], None],
        policy: RestartPolicy,
        nodes: Nodes,
    ) -> None:
        self._engine = engine
        self._nodes = nodes
        self._spawn = spawn
        self._wake = wake
        self._policy = policy
        self._waiters: list[_Answer] = []
        self._proxies: dict[str, Proxy] = {}
        self.options: HTTPOptions | None = None
        self.grpc: GrpcService | None = None

    def __repr__(self) -> str:
        return f"<Proxies {', '.join(f'{p.id} {p.phase.value}' for p in self._proxies.values()) or 'none'}>"

    def __contains__(self, id: str) -> bool:
        return id in self._proxies

    @property
    def gone(self) -> bool:
        """Whether none of their processes lives."""
        return all(proxy.phase is Phase.GONE for proxy in self._proxies.values())

    def adopt(self, info: ProcessInfo, now: float) -> None:
        """Take over a process that an earlier controller started."""
        self._adopt(self._place(info.id, info.node), info.pid, now)

    def _adopt(self, proxy: Proxy, pid: int, now: float) -> None:
        proxy.phase, proxy.pid, proxy.launched_at = Phase.RECOVERING, pid, now

    def configure(self, options: HTTPOptions, grpc: GrpcService | None = None) -> None:
        """Have this many processes with these options from the next step on."""
        self.options = options
        self.grpc = grpc
        self._wake()

    def when_listening(self, answer: Callable[[HeadraceError | None], None]) -> None:
        """Call `answer` once: with None when all that should listen do, with the error when one cannot."""
        for proxy in self._proxies.values():
            proxy.failed_starts = 0
        self._waiters.append(answer)
        self._wake()

    @property
    def number(self) -> int:
        """How many processes there should be, on all nodes together."""
        return len(self._all_places())

    @property
    def drain_s(self) -> float:
        """How long one that stops may go on with what it has in work."""
        return 0.0 if self.options is None else self.options.drain_timeout_s

    def on_node(self, node: str) -> list[str]:
        """The ids of those of this node."""
        return [proxy.id for proxy in self._proxies.values() if proxy.node == node]

    def _all_places(self) -> dict[str, tuple[str, NodeStatus]]:
        """Where there should be a process: its id -> its node, and how that is."""
        if self.options is None:
            return {}
        places = self._nodes.places()
        if self.options.location == "HeadOnly":
            places = [place for place in places if place.head]
        workers = range(self.options.ingress_workers)
        return {place_id(number, place.node): (place.node, place.status) for place in places for number in workers}

    def _is_to_be_named(self, node: str) -> bool:
        """Whether there may be an ingress on the node, once the engine has named it: it takes its time after a restart
        of the controller.
        """
        if not node or self.options is None or not self.options.ingress_workers or self._nodes.is_lost(node):
            return False
        return all(place.node != node for place in self._nodes.places())

    def _place(self, id: str, node: str) -> Proxy:
        if id not in self._proxies:
            self._proxies[id] = Proxy(id, Restarts(self._policy), node)
        return self._proxies[id]

    def connected(self, id: str, node: str, pid: int, now: float) -> bool:
        """A process has said hello. False: it has no place, or another has it; it should end."""
        proxy = self._proxies.get(id)
        if proxy is None or proxy.phase is Phase.GONE:
            if id not in self._all_places() and not self._is_to_be_named(node):
                return False
            # The engine could not tell of it: its node was cut off.
            self._adopt(self._place(id, node), pid, now)
            return True
        return not (pid and proxy.pid and pid != proxy.pid and proxy.phase is Phase.RUNNING)

    def step(self, now: float, occupied: Collection[str] = ()) -> float | None:
        """Start what should be there, stop what should not, answer who waits. Returns when to look again at latest.

        `occupied` are the nodes that have replicas.
        """
        places = self._all_places()
        wanted = {
            id: node
            for id, (node, status) in places.items()
            if status is NodeStatus.ALIVE or (status is NodeStatus.LEAVING and node in occupied)
        }
        kept = {id for id, (_, status) in places.items() if status is not NodeStatus.LEAVING}
        wake_at: float | None = None
        for id, node in wanted.items():
            proxy = self._place(id, node)
            if proxy.phase is not Phase.GONE:
                continue
            for level in proxy.restarts.take(now, 1):
                proxy.phase, proxy.level, proxy.launched_at = Phase.LAUNCHING, level, now
                proxy.starts += 1
                self._spawn(self._launch(proxy))
            due = proxy.restarts.due()
            if due is not None and (wake_at is None or due < wake_at):
                wake_at = due
        for proxy in list(self._proxies.values()):
            if proxy.id in wanted or proxy.id in kept or self._is_to_be_named(proxy.node):
                continue
            if proxy.phase is Phase.GONE:
                del self._proxies[proxy.id]
            elif proxy.node and self._nodes.is_lost(proxy.node):
                del self._proxies[proxy.id]
                self._engine.abandon(proxy.id)
            elif proxy.phase is not Phase.STOPPING:
                self._stop(proxy)
        if self._waiters:
            self._answer(wanted, places)
        return wake_at

    def _answer(self, wanted: Collection[str], places: Mapping[str, tuple[str, NodeStatus]]) -> None:
        """Tell who waits once all listen that can: also those of nodes that have still to come."""
        failed = next((each for each in self._proxies.values() if each.failed_starts >= START_ATTEMPTS), None)
        error: HeadraceError | None = None
        if failed is not None:
            error = InstanceError(f"{failed.id} does not start: {failed.error}")
        elif places and all(status is NodeStatus.LOST for _, status in places.values()):
            error = InstanceError("none of the nodes can be reached on which HTTP is to be served")
        elif any(self._proxies[id].phase is not Phase.RUNNING for id in wanted) or _UNDECIDED & {
            status for _, status in places.values()
        }:
            return
        waiters, self._waiters = self._waiters, []
        for answer in waiters:
            answer(error)

    async def _launch(self, proxy: Proxy) -> None:
        assert self.options is not None
        try:
            options, grpc = self.options, self.grpc
            if proxy.node:  # each has ports of its own
                options, grpc = await reserve_ports(self._engine, options, grpc, proxy.node)
            env = {"HEADRACE_HTTP_OPTIONS": msgspec.json.encode(options).decode()}
            if grpc is not None:
                env["HEADRACE_GRPC"] = msgspec.json.encode(grpc).decode()
            request = ProcessRequest(
                id=proxy.id,
                role="ingress",
                argv=(sys.executable, "-P", "-m", "headrace.ingress"),
                env=env,
                node=proxy.node,
            )
            info = await self._engine.start(request)
        except HeadraceError as error:
            self._failed(proxy, str(error))
        else:
            proxy.pid = info.pid
            if proxy.phase is not Phase.GONE:
                proxy.on(Event.LAUNCHED)
            if proxy.phase is Phase.STOPPING:
                self._engine.stop(proxy.id, STOP_MARGIN_S)
        self._wake()

    def exited(self, event: ProcessExited, now: float) -> None:
        """One of the processes is gone."""
        proxy = self._proxies[event.id]
        if proxy.phase is Phase.STOPPING or self._nodes.is_doubtful(proxy.node):
            if proxy.phase is not Phase.GONE:
                proxy.on(Event.EXITED)
        elif proxy.phase is not Phase.GONE:
            tail = "\n".join(event.tail)
            self._failed(proxy, f"{event.id} ended with code {event.code}" + (f":\n{tail}" if tail else ""), now)

    def _failed(self, proxy: Proxy, error: str, now: float | None = None) -> None:
        if proxy.phase not in (Phase.RUNNING, Phase.RECOVERING):
            proxy.failed_starts += 1
        if proxy.phase is Phase.GONE:
            return  # its node was lost meanwhile
        lived_s = 0.0 if now is None else now - proxy.launched_at
        when = proxy.launched_at if now is None else now
        wait_s = proxy.restarts.fail(when, proxy.level, lived_s, 1)
        proxy.error = error
        proxy.on(Event.EXITED)
        logger.error("%s; it is started again in %g s", error, wait_s)

    def report(self, report: IngressReport) -> None:
        """What an ingress says of itself."""
        proxy = self._proxies.get(report.ingress_id)
        if proxy is None:
            return  # it was told to end
        proxy.pid, proxy.host, proxy.port, proxy.grpc_port = report.pid, report.host, report.port, report.grpc_port
        if report.draining:
            if proxy.phase in COUNTED:
                proxy.on(Event.STOP)  # it was told to stop, by whomever
        else:
            proxy.on(Event.READY)
            proxy.failed_starts = 0

    def _stop(self, proxy: Proxy) -> None:
        proxy.on(Event.STOP)
        self._engine.stop(proxy.id, self.drain_s + STOP_MARGIN_S)

    def drain_all(self) -> None:
        """Stop all, for good: none is started any more."""
        self.options = None if self.options is None else msgspec.structs.replace(self.options, ingress_workers=0)
        for answer in self._waiters:
            answer(InstanceError("the instance is shutting down"))
        self._waiters.clear()
        self._wake()

    def pids(self) -> list[int]:
        """The processes."""
        return [proxy.pid for proxy in self._proxies.values() if proxy.phase is not Phase.GONE]

    def ids(self) -> list[str]:
        """Their ids."""
        return list(self._proxies)

    def details(self) -> Mapping[str, ProxyDetails]:
        """What the status tells of them."""
        scheme = "http" if self.options is None or self.options.ssl_certfile is None else "https"
        return {
            proxy.id: ProxyDetails(
                status=ProxyStatus.UNHEALTHY if self._nodes.is_lost(proxy.node) else _STATUS[proxy.phase],
                pid=proxy.pid,
                host=proxy.host,
                port=proxy.port,
                restarts=max(0, proxy.starts - 1),
                grpc_port=proxy.grpc_port,
                scheme=scheme,
                node=proxy.node,
            )
            for proxy in self._proxies.values()
        }


async def reserve_ports(
    engine: Engine, options: HTTPOptions, grpc: GrpcService | None, node: str
) -> tuple[HTTPOptions, GrpcService | None]:
    """The options with the ports that are held on the node, the same ones each time; `port` 0 asks for any.

    Raises PortBusyError, OptionError (no such address), InstanceError.
    """
    port = await engine.reserve_port(options.host, options.port, node=node)
    if grpc is not None:
        try:
            grpc_port = await engine.reserve_port(grpc.options.host or options.host, grpc.options.port, "grpc", node)
        except PortBusyError as error:
            raise PortBusyError(f"gRPC: {error}".replace("--port", "--grpc-port")) from error
        grpc = msgspec.structs.replace(grpc, options=msgspec.structs.replace(grpc.options, port=grpc_port))
    return msgspec.structs.replace(options, port=port), grpc
