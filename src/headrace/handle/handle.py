"""Handles: calls from Python to a deployment, from any thread, any event loop and any process of the instance.

In: arguments of users' code (a script, a notebook, another deployment). Out: calls to the process's router, and their
results to whoever awaits them, as often as they like.
"""

from __future__ import annotations

import time
from typing import Any, NoReturn

import msgspec

from headrace import runtime as runtimes
from headrace.handle.broadcast import DeploymentBroadcastResponse
from headrace.handle.call import HandleCall
from headrace.handle.generator import DeploymentResponseGenerator, ItemCall
from headrace.handle.options import HandleOptions, check_sendable, checked_changes
from headrace.handle.origin import take_origin
from headrace.handle.resolution import send
from headrace.handle.response import DeploymentResponse
from headrace.handle.selection import ReplicaChoice, ReplicaSelection, SlotCall
from headrace.runtime import Runtime
from headrace.spec.errors import OptionError, OptionTypeError


def _apply(options: HandleOptions, response: HandleCall) -> None:
    """Set on the call what the handle's options say."""
    if options.timeout_s is not None:
        deadline = time.monotonic() + options.timeout_s  # the clock of every event loop on Linux
        if response.deadline is None or deadline < response.deadline:
            response.deadline = deadline
            response._timed = True
    if options.session_id is not None:
        response.sticky = options.session_id
    if options.multiplexed_model_id is not None:
        response.model_id = options.multiplexed_model_id
    if options.priority is not None:
        response.priority = options.priority
    if options.hedge is not None:
        response.hedge = options.hedge


class DeploymentHandle:
    """A way to call a deployment of an application: `handle.remote(...)`, `handle.method.remote(...)`.

    Handles of the same deployment are equal and hash alike, whatever their options. A handle can be pickled and used in
    any process of the instance, on any thread. In a replica, calls belong to the request that the calling code works
    for: they stay in its revision (within the application) and carry its id, deadline and trace. Outside of any request
    (in a constructor, say) they go where new requests go, or stay in the revision of a replica that has no share of
    those yet, or no more.
    """

    def __init__(
        self,
        deployment_name: str,
        app_name: str = "default",
        options: HandleOptions | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.deployment_name = deployment_name
        self.app_name = app_name
        self._options = options or HandleOptions()
        self._runtime = runtime  # None until the first call: then that of the code which makes it

    @property
    def deployment_id(self) -> tuple[str, str]:
        """(deployment, application)."""
        return self.deployment_name, self.app_name

    def __repr__(self) -> str:
        method = "" if self._options.method_name == "__call__" else f", method={self._options.method_name!r}"
        return f"DeploymentHandle(deployment={self.deployment_name!r}, app={self.app_name!r}{method})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeploymentHandle):
            return NotImplemented
        return self.deployment_name == other.deployment_name and self.app_name == other.app_name

    def __hash__(self) -> int:
        return hash((self.deployment_name, self.app_name))

    def __reduce__(self) -> tuple[Any, ...]:
        return DeploymentHandle, (self.deployment_name, self.app_name, self._options)

    def __getattr__(self, name: str) -> DeploymentHandle:
        # Names with two underscores are Python asking for a protocol (copy, pickle, numpy...), not a method to call.
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        method = self._with(method_name=name)
        self.__dict__[name] = method  # so that `handle.method` costs a look-up from now on
        return method

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        method = "" if self._options.method_name == "__call__" else f".{self._options.method_name}"
        raise OptionTypeError(
            f"a handle is not called directly: use handle{method}.remote(...) to call {self.deployment_name!r}"
        )

    def options(self, **changes: Any) -> DeploymentHandle:
        """This handle with other options: `method_name`, `timeout_s` (seconds that the answer matters, from `.remote()`
        on), `session_id` (calls with the same one go to the same replica where they can), `multiplexed_model_id`,
        `priority` (-10 to 10: of calls that wait, the higher go first), `stream` (the method is a generator, and
        `.remote()` returns a DeploymentResponseGenerator), `hedge` (a slow call gets a copy on another replica: True,
        False, or a dict as the deployment's `hedge`; None: as the deployment says).

        Raises OptionError or OptionTypeError.
        """
        return self._with(**checked_changes(changes))

    def _with(self, **changes: Any) -> DeploymentHandle:
        options = msgspec.structs.replace(self._options, **changes)
        return DeploymentHandle(self.deployment_name, self.app_name, options, self._runtime)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the deployment with these arguments; the call is on its way when this returns.

        Returns a DeploymentResponse, or a DeploymentResponseGenerator where the handle has the option `stream`.
        Arguments that are DeploymentResponses themselves are replaced by their results before the call is sent.
        Raises PayloadError for what cannot be pickled, InstanceError in a script whose instance does not run; all else
        is raised where the result is asked for.
        """
        options = self._options
        runtime = self._runtime
        if runtime is None or not runtime.alive:
            runtime = self._adopt_runtime()
        response: HandleCall
        if options.stream:
            response = ItemCall(runtime, self.app_name, self.deployment_name, options.method_name)
        else:
            response = DeploymentResponse(runtime, self.app_name, self.deployment_name, options.method_name)
        self._start(response, args, kwargs)
        return DeploymentResponseGenerator(response) if isinstance(response, ItemCall) else response

    def broadcast(self, method_name: str, *args: Any, **kwargs: Any) -> DeploymentBroadcastResponse:
        """Call this method of every replica that takes calls now, with the same arguments, all at once.

        For what concerns each of them: to drop a cache, to tell a threshold. The calls wait for room, and are not
        refused because many wait. In a request they go to the replicas of its revision, else to those of each revision
        that takes traffic. Raises as `remote`.
        """
        if not isinstance(method_name, str) or not method_name:
            raise OptionTypeError(f"broadcast({method_name!r}, ...): the first argument must be the name of a method")
        check_sendable("method_name", method_name)
        runtime = self._runtime
        if runtime is None or not runtime.alive:
            runtime = self._adopt_runtime()
        response = DeploymentBroadcastResponse(runtime, self.app_name, self.deployment_name, method_name)
        self._start(response, args, kwargs)
        return response

    def choose_replica(self, *args: Any, **kwargs: Any) -> ReplicaChoice:
        """Choose a replica, keep a slot there, and say which it is: `async with handle.choose_replica() as selection:`
        (outside of event loops also `with`). Then `handle.dispatch(selection, ...)` calls it.

        It is chosen, and waited for, as for a call by `remote`; a router of your own may look at the arguments, which
        are not sent. The slot counts as a call in work. It is given back when the block ends without a dispatch, and
        lost when the replica drains or dies, or the time of the handle (`timeout_s`) or of the request is over.
        Entering it raises what a call would: BackPressureError, RequestTimeoutError, DeploymentUnavailableError.
        """

        def begin() -> SlotCall:
            runtime = self._runtime
            if runtime is None or not runtime.alive:
                runtime = self._adopt_runtime()
            slot = SlotCall(runtime, self.app_name, self.deployment_name, self._options.method_name)
            self._start(slot, args, kwargs)
            return slot

        return ReplicaChoice(begin, self._options.stream)

    def dispatch(self, selection: ReplicaSelection, *args: Any, **kwargs: Any) -> Any:
        """Call the replica that was chosen, in the slot that is kept there; returns as `remote` does.

        The method and the options are those of the handle that chose. Where the slot was lost meanwhile, the call waits
        for that replica as any other, and fails with ReplicaDiedError when it takes no calls any more. Raises
        OptionError when the selection is of another deployment, was used, or its block has ended.
        """
        if not isinstance(selection, ReplicaSelection):
            raise OptionTypeError(
                f"dispatch({selection!r:.100}): the first argument must be a selection, as in "
                "`async with handle.choose_replica() as selection`"
            )
        slot = selection._slot
        if (slot.deployment, slot.app) != (self.deployment_name, self.app_name):
            raise OptionError(
                f"dispatch() of a handle to {self.deployment_name!r} of {self.app_name!r}: the selection is of "
                f"{slot.deployment!r} of {slot.app!r}"
            )
        kind = ItemCall if selection._stream else DeploymentResponse
        response = kind(slot._runtime, slot.app, slot.deployment, slot.method)
        take_origin(response)
        selection._use_for(response)
        send(response, args, kwargs)
        return DeploymentResponseGenerator(response) if isinstance(response, ItemCall) else response

    def _adopt_runtime(self) -> Runtime:
        runtime = self._runtime = runtimes.current(self._runtime)
        return runtime

    def _start(self, call: HandleCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Send the call with these arguments for the code that runs now."""
        take_origin(call)
        if self._options.special:
            _apply(self._options, call)
        send(call, args, kwargs)

    def shutdown(self) -> None:
        """Let go of what the handle holds. The process's connections are shared, so there is nothing to do."""

    async def shutdown_async(self) -> None:
        """As `shutdown`, from async code."""
