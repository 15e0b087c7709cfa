"""Which policy chooses the replicas of a deployment: made from its `request_router`, and guarded against its errors.

In: the configuration of the snapshot; from the balancer, replicas and calls. Out: to the balancer, a RoutingPolicy that
never raises, or None for the power of two choices. A router of a user's own may raise, wait, or answer with nonsense:
that is logged once, and the balancer chooses by itself; requests go on.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import random
import threading
import traceback
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

from headrace.core.balance import Replica
from headrace.core.routers import ConsistentHash, PrefixAffinity, RoundRobin
from headrace.core.routing import Asked, RoutingPolicy
from headrace.router.call import Call
from headrace.router.request_router import DeploymentID, PendingRequest, RequestRouter, RunningReplica
from headrace.router.router_class import OURS, is_loaded, load, make
from headrace.spec.errors import HeadraceError
from headrace.spec.request_router import HOME, POWER_OF_TWO, RequestRouterConfig

log = logging.getLogger("headrace.router")

MOST_RANKED = 10_000  # replicas that are looked at in what a router answers: it may be endless


def make_policy(config: RequestRouterConfig | None, deployment: str) -> RoutingPolicy | None:
    """The policy for the calls of `deployment` (`app/name`) in this process; None: the power of two choices.

    Never raises: what is wrong with a configuration was told when it was deployed, and is logged here.
    """
    if config is None or config.request_router_class == POWER_OF_TWO:
        return None
    if config.request_router_class not in OURS:
        return GuardedRouter(config, deployment)
    try:
        return _policy_of_ours(config)
    except (HeadraceError, TypeError) as error:
        log.error("calls of %s go to the less busy of two random replicas: %s", deployment, error)
        return None


def _policy_of_ours(config: RequestRouterConfig) -> RoutingPolicy:
    name, kwargs = config.request_router_class.removeprefix(f"{HOME}:"), config.request_router_kwargs
    if name == "ConsistentHashRouter":
        return ConsistentHash(**kwargs)
    if name == "PrefixCacheAffinityRouter":
        return PrefixAffinity(**kwargs)
    return RoundRobin(random.random(), **kwargs)


class Nonsense(Exception):
    """A user's router has answered with what is no answer."""


class GuardedRouter:
    """A user's router as a policy. Its module is imported in a thread, if it is not yet: until then, no preference."""

    sees_all = True

    def __init__(self, config: RequestRouterConfig, deployment: str) -> None:
        self._config = config
        self._deployment = deployment
        self._router: RequestRouter | None = None
        self._found: type[RequestRouter] | BaseException | None = None  # what the import has brought
        self._views: dict[Replica, RunningReplica] = {}  # in the order in which they came
        self._changed = True  # the router does not know yet
        self._pending: PendingRequest | None = None  # what was shown of the last call
        self._told: set[str] = set()  # kinds of errors
        app, _, name = deployment.partition("/")
        self._id = DeploymentID(name, app)
        if is_loaded(config):
            self._find()
        else:
            threading.Thread(target=self._find, name="headrace-router-import", daemon=True).start()

    def __repr__(self) -> str:
        return f"<GuardedRouter {self._router or self._config.request_router_class} of {len(self._views)} replicas>"

    # --- as a policy -----------------------------------------------------------------------------------------------

    def choose(self, call: Asked, replicas: Sequence[Replica]) -> Replica | None:
        """The router's first choice that has room; None where it has none, or has failed."""
        try:
            router = self._ready()
            if router is None:
                return None
            with_room = set(replicas)
            candidates = [view for replica, view in self._views.items() if replica in with_room]
            answer: Any = router.choose_replicas(candidates, self._shown(call))
            return self._first(_outcome(answer) if inspect.isawaitable(answer) else answer, with_room)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a user's router may raise anything: it must not end the request
            self._tell(error, "choose_replicas")
            return None

    def sent(self, call: Asked, replica: Replica) -> None:
        """Tell the router, where it wants to know."""
        router, view = self._router, self._views.get(replica)
        pending, self._pending = self._shown(call), None
        if router is None or view is None or type(router).on_request_routed is RequestRouter.on_request_routed:
            return
        try:
            hook: Any = router.on_request_routed
            told = hook(pending, view.replica_id, None)
            if inspect.isawaitable(told):
                _outcome(told)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # as above
            self._tell(error, "on_request_routed")

    def added(self, replica: Replica) -> None:
        """The router learns of it before its next choice."""
        self._views[replica] = RunningReplica(replica, self._id)
        self._changed = True

    def removed(self, replica: Replica) -> None:
        """As `added`."""
        self._views.pop(replica, None)
        self._changed = True

    # --- the router ------------------------------------------------------------------------------------------------

    def _find(self) -> None:
        try:
            self._found = load(self._config)
        except BaseException as error:  # the top of a thread: `choose` tells it
            self._found = error

    def _ready(self) -> RequestRouter | None:
        """The router, which knows the replicas of now; None: it is not here yet, or will never be."""
        router = self._router
        if router is None:
            found, self._found = self._found, None
            if found is None:
                return None
            if isinstance(found, BaseException):
                self._tell(found, "the import")
                return None
            router = make(found, self._config.request_router_kwargs, self._id)
            self._router = router
        if self._changed:
            self._changed = False
            router.update_replicas(list(self._views.values()))
        return router

    def _shown(self, call: Asked) -> PendingRequest:
        assert isinstance(call, Call)
        pending = self._pending
        if pending is None or pending._call is not call:
            pending = self._pending = PendingRequest(call)
        return pending

    def _first(self, ranks: object, with_room: set[Replica]) -> Replica | None:
        """Of the first rank with such a replica, the least busy one with room."""
        for rank in itertools.islice(_each(ranks, "ranks"), MOST_RANKED):
            able = []
            for view in itertools.islice(_each(rank, "replicas"), MOST_RANKED):
                if not isinstance(view, RunningReplica):
                    raise Nonsense(f"a rank must hold RunningReplicas, not {view!r}")
                replica = view._replica
                if replica in with_room:
                    able.append(replica)
                elif replica not in self._views:
                    self._tell(Nonsense(f"{view.replica_id} takes no calls any more"), "choose_replicas", "gone")
            if able:
                return min(able, key=lambda replica: (replica.ours + replica.others, random.random()))
        return None

    def _tell(self, error: BaseException, where: str, kind: str = "") -> None:
        """Log it, if nothing of its kind has been logged."""
        kind = kind or f"{where} {type(error).__name__}"
        if kind in self._told:
            return
        self._told.add(kind)
        unknown = not isinstance(error, HeadraceError | Nonsense)
        # The text of a user's error may be an error in itself.
        what = str(error) if isinstance(error, Nonsense) else "".join(traceback.format_exception_only(error)).strip()
        instead = "the less busy of two random replicas is taken instead"
        log.error(
            "the router %s of %s: %s: %s; %s, whenever this happens",
            *(self._config.request_router_class, self._deployment, where, what),
            "the request goes on" if where == "on_request_routed" else instead,
            exc_info=error if unknown else error.__cause__,
        )


def _outcome(answer: Awaitable[Any]) -> Any:
    """What a coroutine comes to without waiting. Raises Nonsense when it waits."""
    steps = answer.__await__()
    try:
        next(steps)
    except StopIteration as stop:
        return stop.value
    if hasattr(steps, "close"):
        steps.close()
    raise Nonsense("it waits for something: what it awaits must be there at once")


def _each(value: object, of_what: str) -> Iterable[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise Nonsense(
            f"it must answer with a list of lists of replicas, best first, or [] for no preference: {value!r} is no "
            f"list of {of_what}"
        )
    return value
