"""The gRPC side of one ingress process: grpcio's own server, with handlers that pass bytes on.

In: the servicer functions of users, which say what services there are; snapshots. Out: a port that is listened on
beside HTTP's; what clients ask goes to the router. This module is imported only where gRPC was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.spec.errors import OptionError, PortBusyError
from headrace.wire.servicers import MISSING, RpcMethod, methods_of

# grpcio's older way of listening needs fewer threads and wake-ups: a fifth more RPCs a second where there are two
# processors, measured with 1.85. Read when the module is loaded; what the user has set holds.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

try:
    import grpc

    from headrace.ingress.grpc_admin import Health, register_api, register_reflection
except ImportError as error:
    raise OptionError(f"{MISSING} ({error})") from error

from headrace.ingress.door import RequestIds
from headrace.ingress.grpc_rpcs import Rpcs
from headrace.ingress.listener import bind

if TYPE_CHECKING:
    from headrace.router import Router
    from headrace.spec.application import Environment
    from headrace.spec.grpc import GrpcService
    from headrace.spec.snapshot import Snapshot

log = logging.getLogger("headrace.ingress")


class GrpcServer:
    """Serves from `open` to `drain`. All methods belong to the loop's thread. `port` is the one that is bound."""

    def __init__(self, router: Router, service: GrpcService) -> None:
        self._service = service
        self._rpcs = Rpcs(router, service.options, RequestIds(os.urandom(16)))
        self._loop = router.loop
        self._server: Any = None
        self._health: Health | None = None
        self._draining = False
        self._telling: asyncio.Task[None] | None = None
        self.port = 0

    def __repr__(self) -> str:
        return f"<GrpcServer on port {self.port} {self._rpcs}{' draining' if self._draining else ''}>"

    async def open(self, host: str) -> None:
        """Listen, on `host` unless the options name another. Raises OptionError, ImportPathError, PortBusyError."""
        options = self._service.options
        adopt(self._service.environment)
        methods: dict[str, RpcMethod] = {}
        for path in options.grpc_servicer_functions:
            methods |= methods_of(path)
        services = sorted({method.service for method in methods.values()})
        server = grpc.aio.server(
            maximum_concurrent_rpcs=options.max_concurrent_rpcs,
            options=(
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", options.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # A client that has vanished without a word is noticed; one that asks often whether we live may.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ),
        )
        # Generic, not registered: grpcio would wait for each registered method by a task of its own.
        server.add_generic_rpc_handlers((_Methods({path: self._rpcs.handler(m) for path, m in methods.items()}),))
        self._health = Health(services)
        self._health.register(server)
        register_api(server, lambda: self._rpcs.applications, lambda: self._rpcs.ready and not self._draining)
        register_reflection(server, services)
        await self._health.tell(self._rpcs.ready)
        self.port = self._bind(server, options.host or host, options.port)
        await server.start()
        self._server = server

    def update(self, snapshot: Snapshot) -> None:
        """Route by this snapshot from the next RPC on."""
        self._rpcs.update(snapshot)
        if self._health is not None and not self._draining and self._health.told != self._rpcs.ready:
            self._telling = self._loop.create_task(self._health.tell(self._rpcs.ready), name="health")

    async def drain(self, timeout_s: float) -> None:
        """Take no new RPCs (clients get UNAVAILABLE), and finish those in work; after the timeout, cancel them.

        Harmless when it is done already.
        """
        self._draining = True
        if self._server is None or self._health is None:
            return
        server, self._server = self._server, None
        if self._telling is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._telling
        await self._health.drain()
        await server.stop(timeout_s)

    def _bind(self, server: Any, host: str, port: int) -> int:
        """Bind every address that `host` has here; several processes bind the same port."""
        credentials = self._credentials()
        addresses = _addresses(host, port)
        for address in addresses:
            try:
                if credentials is None:
                    server.add_insecure_port(address)
                else:
                    server.add_secure_port(address, credentials)
            except RuntimeError as error:
                raise PortBusyError(f"cannot listen for gRPC on {address}: {error}") from error
        return int(addresses[0].rpartition(":")[2])

    def _credentials(self) -> Any:
        options = self._service.options
        if options.ssl_certfile is None or options.ssl_keyfile is None:
            return None
        pair = (_pem("ssl_keyfile", options.ssl_keyfile), _pem("ssl_certfile", options.ssl_certfile))
        roots = None if options.ssl_ca_certs is None else _pem("ssl_ca_certs", options.ssl_ca_certs)
        return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the handler of a method. What is in nobody's table, grpcio answers with UNIMPLEMENTED."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)


def adopt(environment: Environment) -> None:
    """Import from where the process that asked for gRPC imports from."""
    if environment.sys_path:
        started_in = str(Path.cwd())
        rest = [path for path in sys.path if path not in environment.sys_path and path != started_in]
        sys.path[:] = [*environment.sys_path, *rest]


def _addresses(host: str, port: int) -> list[str]:
    """The addresses of `host` that this machine has, as grpcio takes them."""
    sockets = bind(host, port)
    addresses = [_written(sock) for sock in sockets]
    for sock in sockets:
        sock.close()
    return addresses


def _written(sock: socket.socket) -> str:
    address, port = sock.getsockname()[:2]
    return f"[{address}]:{port}" if sock.family == socket.AF_INET6 else f"{address}:{port}"


def _pem(name: str, path: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise OptionError(f"{name}={path!r} cannot be read: {error.strerror}") from error
    if b"-----BEGIN" not in data:
        raise OptionError(f"{name}={path!r} is no PEM file")
    return data
