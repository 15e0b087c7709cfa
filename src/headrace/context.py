"""What the code that runs now knows of itself: the request that it works for, and the replica that it is in.

In: the replica's invoker sets the request for each call, its host the replica. Out: handles read from here which
application, revision and deadline the calls that they make belong to; user code reads its replica and request id.
"""

from __future__ import annotations

import contextvars
from typing import Any

import msgspec

from headrace.spec.errors import HeadraceError
from headrace.wire.frames import CallMeta, HttpHead

_head_decoder = msgspec.msgpack.Decoder(HttpHead | None)


class ReplicaContext(msgspec.Struct, kw_only=True, eq=False):
    """The replica that the code runs in. `replica_id` is `deployment#n`; `servable_object` the user's instance or
    function, None while it is being constructed.
    """

    app_name: str
    deployment: str
    replica_id: str
    revision: int = 0
    max_ongoing_requests: int = 0
    servable_object: object = None

    @property
    def replica_tag(self) -> str:
        """The replica's id under the name that it has in older code."""
        return self.replica_id


class RequestContext(msgspec.Struct, gc=False, eq=False):
    """The request that the code runs for. `deadline` is in seconds of the clock of the replica's loop, or None.

    `calls` are those that it made by handles and that have not ended: they are cancelled when it is.

    Made for every call, so it only refers to the call's metadata; the rest is read from there when asked for.
    """

    meta: CallMeta
    deadline: float | None = None
    replica: ReplicaContext | None = None
    calls: set[Any] | None = None

    @property
    def request_id(self) -> str:
        return self.meta.request_id

    @property
    def app(self) -> str:
        return self.meta.app

    @property
    def revision(self) -> int:
        """The revision that every call made for this request stays in."""
        return self.meta.revision

    @property
    def attempt(self) -> int:
        """1, and one more for each replica that died while it worked on this call."""
        return self.meta.attempt

    @property
    def sticky(self) -> str | None:
        return self.meta.sticky

    @property
    def model_id(self) -> str | None:
        return self.meta.model_id

    @property
    def trace(self) -> str | None:
        return self.meta.trace

    @property
    def method(self) -> str:
        return self.meta.method

    @property
    def route(self) -> str:
        """The route prefix of an HTTP request; "" for a call that is none."""
        head = _head_decoder.decode(self.meta.http)
        return "" if head is None else head.root_path or "/"


request_variable: contextvars.ContextVar[RequestContext | None] = contextvars.ContextVar(
    "headrace_request", default=None
)
replica_variable: contextvars.ContextVar[ReplicaContext | None] = contextvars.ContextVar(
    "headrace_replica", default=None
)


class _Process:
    """The replica that is alone in this process: threads that user code starts have no context variables of ours."""

    replica: ReplicaContext | None = None


def set_process_replica(replica: ReplicaContext | None) -> None:
    """Name the one replica of this process, for code that runs outside of any call and any context."""
    _Process.replica = replica


def current_request() -> RequestContext | None:
    """The request that the calling code works for, or None outside of any."""
    return request_variable.get()


def current_replica() -> ReplicaContext | None:
    """The replica that the calling code runs in, or None in a driver."""
    request = request_variable.get()
    if request is not None and request.replica is not None:
        return request.replica
    return replica_variable.get() or _Process.replica


def get_replica_context() -> ReplicaContext:
    """The replica that the calling code runs in. Raises HeadraceError outside of a replica."""
    replica = current_replica()
    if replica is None:
        raise HeadraceError(
            "serve.get_replica_context() was called outside of a replica: call it in a deployment's methods"
        )
    return replica
