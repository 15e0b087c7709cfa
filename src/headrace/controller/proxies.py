"""The ingress processes: as many as the HTTP options say, started again when they die.

In: options of HTTP and gRPC, exits from the engine, reports of ingress processes. Out: starts and stops through the
engine, and one answer to whoever asked for HTTP: they listen, or why they do not.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from headrace.core.lifecycle import COUNTED, Event, Phase, advance
from headrace.core.restart import RestartPolicy, Restarts
from headrace.engine.base import Engine, ProcessExited, ProcessInfo, ProcessRequest
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import HeadraceError, InstanceError
from headrace.spec.grpc import GrpcService
from headrace.spec.status import ProxyDetails, ProxyStatus
from headrace.wire.control import IngressReport

logger = logging.getLogger(__name__)

START_ATTEMPTS = 3
STOP_MARGIN_S = 2.0

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


@dataclass(slots=True)
class _Waiter:
    answer: Callable[[HeadraceError | None], None]
    ids: set[str] = field(default_factory=set)


class Proxies:
    """What should listen and what does. `spawn` runs a coroutine as a task; `wake` has the reconciler look again."""

    def __init__(
        self,
        engine: Engine,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        wake: Callable[[], None],
        policy: RestartPolicy,
    ) -> None:
        self._engine = engine
        self._spawn = spawn
        self._wake = wake
        self._policy = policy
        self._waiters: list[_Waiter] = []
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
        proxy = self._place(info.id)
        proxy.phase, proxy.pid, proxy.launched_at = Phase.RECOVERING, info.pid, now

    def configure(self, options: HTTPOptions, grpc: GrpcService | None = None) -> None:
        """Have this many processes with these options from the next step on."""
        self.options = options
        self.grpc = grpc
        self._wake()

    def when_listening(self, answer: Callable[[HeadraceError | None], None]) -> None:
        """Call `answer` once: with None when all that should listen do, with the error when one cannot."""
        for proxy in self._proxies.values():
            proxy.failed_starts = 0
        self._waiters.append(_Waiter(answer, set(self._wanted())))
        self._wake()

    @property
    def number(self) -> int:
        """How many processes there should be."""
        return 0 if self.options is None else self.options.ingress_workers

    def _wanted(self) -> list[str]:
        return [f"ingress#{i}" for i in range(self.number)]

    def _place(self, id: str) -> Proxy:
        if id not in self._proxies:
            self._proxies[id] = Proxy(id, Restarts(self._policy))
        return self._proxies[id]

    def step(self, now: float) -> float | None:
        """Start what should be there, stop what should not, answer who waits. Returns when to look again at latest."""
        wanted = self._wanted()
        wake_at: float | None = None
        for id in wanted:
            proxy = self._place(id)
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
            if proxy.id in wanted:
                continue
            if proxy.phase is Phase.GONE:
                del self._proxies[proxy.id]
            elif proxy.phase is not Phase.STOPPING:
                self._stop(proxy)
        self._answer()
        return wake_at

    def _answer(self) -> None:
        for waiter in list(self._waiters):
            places = [self._proxies[id] for id in waiter.ids if id in self._proxies]
            failed = next((proxy for proxy in places if proxy.failed_starts >= START_ATTEMPTS), None)
            if failed is not None:
                self._waiters.remove(waiter)
                waiter.answer(InstanceError(f"{failed.id} does not start: {failed.error}"))
            elif len(places) == len(waiter.ids) and all(proxy.phase is Phase.RUNNING for proxy in places):
                self._waiters.remove(waiter)
                waiter.answer(None)

    async def _launch(self, proxy: Proxy) -> None:
        assert self.options is not None
        env = {"HEADRACE_HTTP_OPTIONS": msgspec.json.encode(self.options).decode()}
        if self.grpc is not None:
            env["HEADRACE_GRPC"] = msgspec.json.encode(self.grpc).decode()
        request = ProcessRequest(
            id=proxy.id,
            role="ingress",
            argv=(sys.executable, "-P", "-m", "headrace.ingress"),
            env=env,
        )
        try:
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
        if proxy.phase is Phase.STOPPING:
            proxy.on(Event.EXITED)
        elif proxy.phase is not Phase.GONE:
            tail = "\n".join(event.tail)
            self._failed(proxy, f"{event.id} ended with code {event.code}" + (f":\n{tail}" if tail else ""), now)

    def _failed(self, proxy: Proxy, error: str, now: float | None = None) -> None:
        if proxy.phase not in (Phase.RUNNING, Phase.RECOVERING):
            proxy.failed_starts += 1
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
            logger.error("a report from %s, which is not known", report.ingress_id)
            return
        proxy.pid, proxy.host, proxy.port, proxy.grpc_port = report.pid, report.host, report.port, report.grpc_port
        if report.draining:
            if proxy.phase in COUNTED:
                proxy.on(Event.STOP)  # it was told to stop, by whomever
        else:
            proxy.on(Event.READY)
            proxy.failed_starts = 0

    def _stop(self, proxy: Proxy) -> None:
        drain_s = 0.0 if self.options is None else self.options.drain_timeout_s
        proxy.on(Event.STOP)
        self._engine.stop(proxy.id, drain_s + STOP_MARGIN_S)

    def drain_all(self) -> None:
        """Stop all, for good: none is started any more."""
        self.options = None if self.options is None else msgspec.structs.replace(self.options, ingress_workers=0)
        for waiter in self._waiters:
            waiter.answer(InstanceError("the instance is shutting down"))
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
                status=_STATUS.get(proxy.phase, ProxyStatus.UNHEALTHY),
                pid=proxy.pid,
                host=proxy.host,
                port=proxy.port,
                restarts=max(0, proxy.starts - 1),
                grpc_port=proxy.grpc_port,
                scheme=scheme,
            )
            for proxy in self._proxies.values()
        }
