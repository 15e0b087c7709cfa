"""From an RPC to a call and back: which application it is for, how long it has, and its messages both ways as bytes.

In: RPCs of grpcio's server, with their messages not decoded; snapshots. Out: calls to the router; to the client,
messages, a status and metadata. Here nothing is known of any message: replicas read and write them.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import msgspec

from headrace.ingress.door import RequestIds
from headrace.ingress.grpc_calls import RpcCall, StreamCall, UnaryCall
from headrace.ingress.grpc_status import INTERNAL, INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE
from headrace.ingress.sticky import text_of_key
from headrace.spec.errors import OptionError
from headrace.spec.priority import priority_of_text
from headrace.spec.snapshot import ApplicationEntry, Snapshot
from headrace.wire.frames import BROKEN, GrpcStatus
from headrace.wire.items import STATUS, record
from headrace.wire.servicers import RpcMethod

if TYPE_CHECKING:
    from headrace.router import Router
    from headrace.spec.grpc import gRPCOptions

log = logging.getLogger("headrace.ingress")

Handler = Callable[[Any, Any], Awaitable[Any]]

_sane_id = re.compile(r"[\x20-\x7e]{1,128}").fullmatch
_encode = msgspec.msgpack.Encoder().encode
_decode_status = msgspec.msgpack.Decoder(GrpcStatus).decode
_KNOWN = frozenset(
    (
        "application",
        "multiplexed_model_id",
        "priority",
        "request_id",
        "session_id",
        "traceparent",
        "x-request-id",
        "x-request-priority",
        "x-session-id",
    )
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_COMPRESSIONS = {kind.value: kind for kind in grpc.Compression}


class Rpcs:
    """Makes the handlers of one ingress process. All methods belong to the loop's thread."""

    def __init__(self, router: Router, options: gRPCOptions, ids: RequestIds) -> None:
        self._router = router
        self._loop = router.loop
        self._timeout_s = options.request_timeout_s
        self._tells_auth = options.ssl_ca_certs is not None
        self._new_id = ids.next_now
        self._apps: dict[str, ApplicationEntry] = {}
        self._only: ApplicationEntry | None = None
        self._known = False  # somebody has told us what there is

    def __repr__(self) -> str:
        return f"<Rpcs for {', '.join(sorted(self._apps)) or 'no application'}>"

    @property
    def applications(self) -> list[str]:
        """The names of all applications."""
        return sorted(self._apps)

    @property
    def ready(self) -> bool:
        """Whether an application takes requests."""
        return any(revision.weight > 0 for entry in self._apps.values() for revision in entry.revisions)

    def update(self, snapshot: Snapshot) -> None:
        """Route by this snapshot from the next RPC on."""
        self._apps = snapshot.applications
        self._known = snapshot.version > 0
        self._only = next(iter(self._apps.values())) if len(self._apps) == 1 else None

    def handler(self, method: RpcMethod) -> Any:
        """grpcio's handler for the method, which takes and gives bytes."""
        handlers = {
            "unary_unary": (grpc.unary_unary_rpc_method_handler, self._unary_unary),
            "unary_stream": (grpc.unary_stream_rpc_method_handler, self._unary_stream),
            "stream_unary": (grpc.stream_unary_rpc_method_handler, self._stream_unary),
            "stream_stream": (grpc.stream_stream_rpc_method_handler, self._stream_stream),
        }
        register, handle = handlers[method.kind]
        return register(handle(method))

    # --- the four kinds --------------------------------------------------------------------------------------------

    def _unary_unary(self, method: RpcMethod) -> Handler:
        router, prepare, conclude = self._router, self._prepare, self._conclude

        async def handle(request: bytes, context: Any) -> bytes:
            call = UnaryCall(router)
            if not prepare(call, method, context):
                return b""
            call.body = request
            router.submit(call)
            try:
                meta, message = await call.answer
            except asyncio.CancelledError:
                call.leave()
                raise
            if call.timer is not None or call.outflow is not None:
                call.settle()
            if meta:
                await conclude(call, context, meta)
            return message

        return handle

    def _stream_unary(self, method: RpcMethod) -> Handler:
        async def handle(_: Any, context: Any) -> bytes:
            call = UnaryCall(self._router)
            if not self._prepare(call, method, context):
                return b""
            feeding = self._feed(call, context)
            try:
                meta, message = await call.answer
            except asyncio.CancelledError:
                call.leave()
                raise
            finally:
                feeding.cancel()
            call.settle()
            if meta:
                await self._conclude(call, context, meta)
            return message

        return handle

    def _unary_stream(self, method: RpcMethod) -> Handler:
        async def handle(request: bytes, context: Any) -> None:
            call = StreamCall(self._router)
            if not self._prepare(call, method, context):
                return
            call.body = request
            self._router.submit(call)
            try:
                await self._pass_on(call, context)
            except BaseException:  # the client has left, or cannot be written to
                call.leave()
                raise
            call.settle()

        return handle

    def _stream_stream(self, method: RpcMethod) -> Handler:
        async def handle(_: Any, context: Any) -> None:
            call = StreamCall(self._router)
            if not self._prepare(call, method, context):
                return
            feeding = self._feed(call, context)
            try:
                await self._pass_on(call, context)
            except BaseException:  # as in _unary_stream
                call.leave()
                raise
            finally:
                feeding.cancel()
            call.settle()

        return handle

    # --- the start -------------------------------------------------------------------------------------------------

    def _prepare(self, call: RpcCall, method: RpcMethod, context: Any) -> bool:
        """Set what the metadata says. False: the RPC is answered already, with its status."""
        metadata = context.invocation_metadata()
        told: dict[str, str] = {}
        for key, value in metadata:
            if key in _KNOWN and isinstance(value, str) and _sane_id(value):
                told[key] = value
        call.request_id = told.get("request_id") or told.get("x-request-id") or self._new_id()
        context.set_trailing_metadata((("request_id", call.request_id),))
        name = told.get("application")
        entry = self._only if name is None else self._apps.get(name)
        if entry is None:
            _set_status(context, self._no_application(name))
            return False
        call.app = entry.name
        call.deployment = entry.ingress
        call.method = method.name
        if told:
            try:
                self._read_told(call, told)
            except OptionError as error:
                _set_status(context, GrpcStatus(INVALID_ARGUMENT, str(error)))
                return False
        if entry.sticky is not None and entry.sticky.of == "header":
            call.key = _key_of(entry.sticky.name, metadata)
        self._limit(call, entry, context.time_remaining())
        head: tuple[Any, ...] = (method.path, method.kind, metadata, context.peer(), method.servicer)
        if self._tells_auth:
            head += (context.auth_context(), context.peer_identity_key() or "")
        call.http = msgspec.Raw(_encode(head))
        return True

    def _read_told(self, call: RpcCall, told: dict[str, str]) -> None:
        """What concerns the choice of a replica. Raises OptionError for a priority that is none."""
        sticky = told.get("session_id") or told.get("x-session-id")
        if sticky is not None:
            call.sticky = sticky
        if "multiplexed_model_id" in told:
            call.model_id = told["multiplexed_model_id"]
        if "traceparent" in told:
            call.trace = told["traceparent"]
        priority = told.get("priority") or told.get("x-request-priority")
        if priority is not None:
            call.priority = priority_of_text(priority)

    def _limit(self, call: RpcCall, entry: ApplicationEntry, remaining_s: float | None) -> None:
        """Give the call its deadline: the client's, which grpcio keeps for us, or an earlier one of ours."""
        ours = self._timeout_s
        if entry.request_timeout_s is not None and (ours is None or entry.request_timeout_s < ours):
            ours = entry.request_timeout_s
        if ours is not None and (remaining_s is None or ours < remaining_s):
            call.deadline = self._loop.time() + ours
            call.limit(self._loop, call.deadline)
        elif remaining_s is not None:
            call.deadline = self._loop.time() + remaining_s

    def _no_application(self, name: str | None) -> GrpcStatus:
        known = ", ".join(sorted(self._apps)) or "none"
        if not self._known:
            return GrpcStatus(UNAVAILABLE, "starting: no applications yet")
        if name is not None:
            return GrpcStatus(NOT_FOUND, f"no application is called {name!r}; there are: {known}")
        if not self._apps:
            return GrpcStatus(NOT_FOUND, "no application runs yet")
        return GrpcStatus(
            NOT_FOUND, f"the metadata must name the application by the key 'application'; there are: {known}"
        )

    # --- messages --------------------------------------------------------------------------------------------------

    def _feed(self, call: RpcCall, context: Any) -> asyncio.Task[None]:
        """Submit the call, and send what the client sends, at the pace at which the replica takes it."""
        call.more = True
        self._router.submit(call)
        return self._loop.create_task(self._read_messages(call, context), name="feed")

    async def _read_messages(self, call: RpcCall, context: Any) -> None:
        send = self._router.send_body
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                if not send(call, record(message), True):
                    call.writable = self._loop.create_future()
                    await call.writable
            # A client that cancels ends its stream as well, and half would pass for whole: grpcio tells of the
            # cancellation a moment later, but before it answers this.
            await context.read()
            for _ in range(3):  # the cancellation goes from task to task
                await asyncio.sleep(0)
            send(call, b"", False)
        except Exception as error:  # the top of a task: whatever grpcio raises of a stream that broke
            call.end(GrpcStatus(INTERNAL, f"the stream of requests broke off (request {call.request_id})"))
            log.warning("request %s: the stream of requests broke off: %s", call.request_id, error)
            self._router.cancel(call)

    async def _pass_on(self, call: StreamCall, context: Any) -> None:
        """Write what comes, at the pace at which the client takes it, then the status."""
        write = context.write
        while items := await call.next():
            for kind, data, _, cost in items:
                if kind == STATUS:
                    await self._conclude(call, context, data)
                else:
                    await write(data)
                call.taken(cost)
        if call.status is not None:
            _set_status(context, call.status)

    async def _conclude(self, call: RpcCall, context: Any, said: bytes | GrpcStatus) -> None:
        """Tell the client what the replica, or the router, says of the call."""
        if not isinstance(said, GrpcStatus):
            try:
                said = _decode_status(said)
            except BROKEN as error:
                log.error("request %s: the replica's status is none: %s", call.request_id, error)
                said = GrpcStatus(INTERNAL, f"internal error (request {call.request_id})")
        _set_status(context, said)
        if said.compression:
            context.set_compression(_COMPRESSIONS[said.compression])
        if said.trailing:
            context.set_trailing_metadata((("request_id", call.request_id), *map(tuple, said.trailing)))
        if said.initial:
            await context.send_initial_metadata(tuple(map(tuple, said.initial)))


def _key_of(name: str, metadata: Any) -> str | None:
    """The metadata by which the request keeps to a revision; of several of one name the last counts."""
    for key, value in reversed(metadata or ()):
        if key == name:
            return text_of_key(value.encode(errors="surrogatepass") if isinstance(value, str) else bytes(value))
    return None


def _set_status(context: Any, status: GrpcStatus) -> None:
    if status.code:
        context.set_code(_CODES.get(status.code, grpc.StatusCode.UNKNOWN))
    if status.details:
        context.set_details(status.details)
