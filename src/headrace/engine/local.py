"""The engine of this machine: asks the keeper, over its private socket, from the controller's event loop.

In: the controller's calls. Out: messages to the keeper; exits and the loss of the keeper to `on_event`. There is no
reconnecting: a keeper that is gone is the end of the instance. Then `stop` acts by itself, on the processes it knows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from headrace.core.resources import Resources
from headrace.engine import linux, messages
from headrace.engine.base import EngineEvent, EngineLost, NodeInfo, ProcessInfo, ProcessRequest
from headrace.engine.child import kill_group
from headrace.engine.directory import InstanceDirectory
from headrace.spec import errors
from headrace.spec.errors import InstanceError, ProtocolError
from headrace.spec.placement import local_objections

logger = logging.getLogger(__name__)

_OPEN_TIMEOUT_S = 10.0

_Answer = messages.Started | messages.Listed | messages.PortReserved
_AnswerT = TypeVar("_AnswerT", messages.Started, messages.Listed, messages.PortReserved)


class LocalEngine:
    """See `base.Engine`. One for the life of a controller."""

    def __init__(self, directory: InstanceDirectory) -> None:
        self._directory = directory
        self._transport: asyncio.WriteTransport | None = None
        self._on_event: Callable[[EngineEvent], None] | None = None
        self._opened: asyncio.Future[messages.Opened] | None = None
        self._capacity: Resources | None = None
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        self._next_n = 1
        self._known: dict[str, ProcessInfo] = {}
        self._lost = ""
        self._told: set[str] = set()  # the groups of which it was said what has no effect here

    def __repr__(self) -> str:
        state = self._lost or ("open" if self._transport is not None else "closed")
        return f"LocalEngine({self._directory.name}, {state}, {len(self._known)} processes)"

    async def open(self, on_event: Callable[[EngineEvent], None]) -> None:
        loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._opened = loop.create_future()
        path = str(self._directory.keeper_socket)
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                await loop.create_unix_connection(lambda: _Link(self), path)
                self._send(messages.Open())
                opened = await self._opened
        except (OSError, TimeoutError) as error:
            await self.close()
            raise InstanceError(f"the keeper of instance {self._directory.name} does not answer at {path}") from error
        self._capacity = opened.capacity
        for info in await self.list():
            self._known[info.id] = info

    async def start(self, request: ProcessRequest) -> ProcessInfo:
        ignored, refused = local_objections(request.placement)
        if refused is not None:
            raise errors.OptionError(refused)
        self._tell_ignored(request.placement.group, ignored)
        answer = await self._ask(messages.Started, lambda n: messages.Start(n, request))
        return answer.info

    def _tell_ignored(self, group: str, ignored: Mapping[str, str]) -> None:
        """Say once of each deployment which of its options have no effect here."""
        if ignored and group not in self._told:
            self._told.add(group)
            reasons = "; ".join(f"{name}: {reason}" for name, reason in ignored.items())
            logger.warning("options of %s have no effect: %s", group.partition("@")[0], reasons)

    def stop(self, id: str, grace_s: float) -> None:
        if self._transport is not None:
            self._send(messages.Stop(id, grace_s))
        elif id in self._known:
            self._stop_alone(self._known[id], grace_s)

    async def list(self) -> Sequence[ProcessInfo]:
        answer = await self._ask(messages.Listed, messages.ListProcesses)
        return answer.processes

    def abandon(self, id: str) -> None:
        self.stop(id, 0.0)

    def nodes(self) -> Sequence[NodeInfo]:
        return (NodeInfo(),)

    def capacity(self) -> Resources:
        if self._capacity is None:
            raise InstanceError("the engine is not open: what the machine has is known after open()")
        return self._capacity

    async def reserve_port(self, host: str, port: int, name: str = "http", node: str = "") -> int:
        answer = await self._ask(messages.PortReserved, lambda n: messages.ReservePort(n, name, host, port))
        return answer.port

    def shutdown(self, grace_s: float) -> None:
        if self._transport is not None:
            self._send(messages.EndInstance(grace_s))

    async def close(self) -> None:
        self._on_event = None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
        self._fail_waiting(InstanceError("the engine was closed"))

    def _send(self, message: messages.ToKeeper) -> None:
        if self._transport is None:
            raise InstanceError(self._lost or "the engine is not open")
        self._transport.write(messages.encode(message))

    async def _ask(self, kind: type[_AnswerT], message: Callable[[int], messages.ToKeeper]) -> _AnswerT:
        n = self._next_n
        self._next_n += 1
        self._send(message(n))
        # Cancelled, the answer finds nobody; a process that was started meanwhile shows in `list` and in its exit.
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting[n] = future
        try:
            answer = await future
        finally:
            self._waiting.pop(n, None)
        if not isinstance(answer, kind):
            raise ProtocolError(f"the keeper answered {type(answer).__name__} where {kind.__name__} was due")
        return answer

    # From the link

    def connected(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport

    def received(self, message: messages.FromKeeper) -> None:
        match message:
            case messages.Opened():
                if self._opened is not None and not self._opened.done():
                    self._opened.set_result(message)
            case messages.Exited(number=number, event=event):
                known = self._known.get(event.id)
                if known is not None and known.pid == event.pid:
                    del self._known[event.id]
                if self._on_event is not None:
                    self._on_event(event)
                    self._send(messages.Acknowledge(number))
            case messages.Refused(n=n, error=name, message=text):
                self._resolve(n, _error(name, text))
            case messages.Started(n=n, info=info):
                self._known[info.id] = info  # before its exit can come, which may be the next message
                self._resolve(n, message)
            case messages.Listed(n=n) | messages.PortReserved(n=n):
                self._resolve(n, message)

    def disconnected(self, error: Exception | None) -> None:
        if self._transport is None:  # closed by us
            return
        self._transport = None
        self._lost = f"the keeper of instance {self._directory.name} is gone" + (f" ({error})" if error else "")
        self._fail_waiting(InstanceError(self._lost))
        if self._on_event is not None:
            self._on_event(EngineLost(reason=self._lost))

    def _resolve(self, n: int, outcome: _Answer | errors.HeadraceError) -> None:
        future = self._waiting.get(n)
        if future is None or future.done():
            return
        if isinstance(outcome, errors.HeadraceError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def _fail_waiting(self, error: InstanceError) -> None:
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(error)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)

    def _stop_alone(self, info: ProcessInfo, grace_s: float) -> None:
        """Without a keeper: signal it ourselves, if the pid still means the process that was started."""
        if linux.started_at(info.pid) != info.started_at:
            self._known.pop(info.id, None)
            return
        if grace_s <= 0:
            kill_group(info.pid)
            return
        os.kill(info.pid, signal.SIGTERM)
        asyncio.get_running_loop().call_later(grace_s, self._stop_alone, info, 0.0)


class _Link(asyncio.Protocol):
    """The connection to the keeper: bytes to messages."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._buffer = messages.from_keeper()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._engine.connected(transport)

    def data_received(self, data: bytes) -> None:
        try:
            decoded = self._buffer.feed(data)
        except ProtocolError:
            assert self._transport is not None
            self._transport.close()  # not a keeper: as good as none
            return
        for message in decoded:
            try:
                self._engine.received(message)
            except Exception:  # the top of a callback: asyncio would cut the connection, and that is the keeper's end
                logger.exception("what the keeper told of could not be handled: %s", message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.disconnected(exc)


def _error(name: str, message: str) -> errors.HeadraceError:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.HeadraceError):
        return kind(message)
    return InstanceError(f"{name}: {message}")
