"""What the code that runs now knows of itself: the request that it works for, and the replica that it is in.

In: the replica's invoker sets the request for each call, its host the replica. Out: handles read from here which
application, revision and deadline the calls that they make belong to; user code reads its replica and request id.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from headrace.spec.errors import HeadraceError, RequestCancelledError, RequestTimeoutError
from headrace.wire.frames import CallMeta, HttpHead

_head_decoder = msgspec.msgpack.Decoder(HttpHead | None)


class ModelBoard(Protocol):
    """Where a replica says which models it has, for routers to see. All on the replica's loop."""

    load: Callable[[str], None] | None  # called with a model that routers would like to be loaded

    def tell(self, ready: Sequence[str] = (), loading: Sequence[str] = (), gone: Sequence[str] = ()) -> None:
        """These models are ready now, being loaded now, and neither any more."""


class ReplicaContext(msgspec.Struct, kw_only=True, eq=False):
    """The replica that the code runs in. `replica_id` is `deployment#n`; `servable_object` the user's instance or
    function, None while it is being constructed. `runtime` is what its handles call by, where that is not the process's
    own: in an instance inside of a process. `loop` is the event loop that its calls run on. `models` is told which
    models are loaded. `holds_handles`: it may call other deployments, by handles that its constructor was given.
    """

    app_name: str
    deployment: str
    replica_id: str
    revision: int = 0
    max_ongoing_requests: int = 0
    servable_object: object = None
    runtime: Any = None  # of a layer above
    loop: Any = None
    models: ModelBoard | None = None
    holds_handles: bool = False

    @property
    def replica_tag(self) -> str:
        """The replica's id under the name that it has in older code."""
        return self.replica_id


class UnderWay(Protocol):
    """What became of a call meanwhile."""

    cancelled: bool  # its caller has left
    expired: bool  # its deadline has passed
    models: Any  # what holds the models that its code was given (`replica/held.py`)


class RequestContext(msgspec.Struct, gc=False, eq=False):
    """The request that the code runs for. `deadline` is in seconds of `time.monotonic()`, or None.

    `calls` are those that it made by handles and that have not ended: they are cancelled when it is. `call` is the call
    itself, as the replica knows it.

    Made for every call, so it only refers to the call's metadata; the rest is read from there when asked for.
    """

    meta: CallMeta
    deadline: float | None = None
    replica: ReplicaContext | None = None
    calls: set[Any] | None = None
    call: UnderWay | None = None

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
    def priority(self) -> int:
        """Of calls that wait, the higher go first; every call made for this request has the same."""
        return self.meta.priority

    @property
    def mirrored(self) -> bool:
        """Whether this is a copy of a request, made for a shadow: nobody gets its answer."""
        return self.meta.mirrored

    @property
    def remaining_s(self) -> float | None:
        """The seconds for which the answer still matters, 0 when that time is over; None: for ever."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more: the caller has left, or the time is over."""
        call = self.call
        if call is not None and (call.cancelled or call.expired):
            return True
        return self.deadline is not None and time.monotonic() >= self.deadline

    def check(self) -> None:
        """For code that nothing can interrupt (a loop in a plain method): end here if nobody waits for the answer.

        Raises RequestCancelledError when the caller has left, RequestTimeoutError when the time is over.
        """
        if self.call is not None and self.call.cancelled:
            raise RequestCancelledError(f"the caller of request {self.request_id} has left")
        if self.cancelled:
            raise RequestTimeoutError(f"the time of request {self.request_id} is over")

    @property
    def sticky(self) -> str | None:
        return self.meta.sticky

    @property
    def model_id(self) -> str | None:
        return self.meta.model_id

    @property
    def waited_s(self) -> float:
        """How long the call had waited for a replica, in seconds, when it was sent to this one."""
        return self.meta.waited_s

    @property
    def trace(self) -> str | None:
        return self.meta.trace

    @property
    def method(self) -> str:
        return self.meta.method

    @property
    def route(self) -> str:
        """The route prefix of an HTTP request; "" for a call that is none."""
        try:
            head = _head_decoder.decode(self.meta.http)
        except msgspec.ValidationError:  # the head of an RPC
            return ""
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


def get_request_context() -> RequestContext:
    """The request that the calling code works for: its id, deadline, attempt, whether it was cancelled, and so on.

    Raises HeadraceError outside of a request.
    """
    request = request_variable.get()
    if request is None:
        raise HeadraceError(
            "serve.get_request_context() was called outside of a request: call it in what a deployment's method runs"
        )
    return request


def get_replica_context() -> ReplicaContext:
    """The replica that the calling code runs in. Raises HeadraceError outside of a replica."""
    replica = current_replica()
    if replica is None:
        raise HeadraceError(
            "serve.get_replica_context() was called outside of a replica: call it in a deployment's methods"
        )
    return replica
