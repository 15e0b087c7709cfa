"""The client of 2020 and 2021: backends, endpoints and the traffic between them.

In: what `serve.start()` and `serve.connect()` return is asked for, or, in the oldest code, the functions of `serve`
itself. Out: notes of backends, revisions of endpoints, weights; handles.

An endpoint is an application of its name. A backend that it has traffic for is a revision of it; one that has none yet
is a note in the controller, and nothing of it runs.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.context import current_replica
from headrace.handle import DeploymentHandle
from headrace.serve.driver import current_tie, driver
from headrace.serve.older import backends, endpoints
from headrace.serve.older.config import BackendConfig, changed_config, refuse_environment
from headrace.serve.older.handle import EndpointHandle
from headrace.serve.older.kinds import backend_tag
from headrace.spec.errors import (
    ApplicationNotFound,
    DeployFailedError,
    HeadraceError,
    InstanceError,
    OptionError,
    OptionTypeError,
)
from headrace.spec.names import checked_name, checked_route_prefix
from headrace.spec.rollout import ShadowTraffic
from headrace.wire.control import Answer, Delete, Deploy, Deployed, Done, GetStatus, SetShadow, SetTraffic, Status
from headrace.wire.who import who

__all__ = ["Client", "connect", "get_current_backend_tag", "get_current_replica_tag"]

logger = logging.getLogger("headrace.serve")

NEAR = 1e-8  # what the sum of weights may differ from 1 by
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")


class Client:
    """What backends and endpoints are made and changed by. Any number of them may be about; none holds anything."""

    def __repr__(self) -> str:
        return f"<Client of instance {current_tie().name!r}>"

    # ---- backends

    def create_backend(
        self,
        backend_tag: str,
        func_or_class: Callable[..., Any],
        *init_args: Any,
        config: BackendConfig | Mapping[str, Any] | None = None,
        ray_actor_options: Mapping[str, Any] | None = None,
        env: Any = None,
    ) -> None:
        """Keep a class (with the arguments of its constructor) or function under this tag, for endpoints to send
        requests to. It is built and checked now; its replicas start, and its constructor is called, when it first gets
        traffic. Raises OptionError (a ValueError), OptionTypeError, PayloadError.
        """
        if env is not None:
            refuse_environment(env)
        checked = changed_config(config, BackendConfig())
        backends.register(backend_tag, func_or_class, init_args, checked, ray_actor_options)

    def list_backends(self) -> dict[str, BackendConfig]:
        """The config of each backend, by tag."""
        return {tag: backend.parsed() for tag, backend in backends.registered().items()}

    def get_backend_config(self, backend_tag: str) -> BackendConfig:
        """How the backend is configured."""
        return backends.find(backend_tag).parsed()

    def update_backend_config(self, backend_tag: str, config_options: BackendConfig | Mapping[str, Any]) -> None:
        """Change what the dict names of the config; the replicas go on. Returns when those of all endpoints have it."""
        backend = backends.find(backend_tag)
        changed = backends.keep_config(backend, changed_config(config_options, backend.parsed()))
        for endpoint in endpoints.endpoints().values():
            number = endpoint.numbers.get(changed.tag)
            if number is None:
                continue
            revision = endpoints.revision_of(endpoint, changed)
            if revision == number:
                continue
            if changed.tag in endpoint.traffic:
                weights = {endpoint.numbers[tag]: weight for tag, weight in endpoint.traffic.items()}
                weights[revision] = weights.pop(number)
                _ask(SetTraffic(app=endpoint.name, weights=weights, by=who()))
            if changed.tag in endpoint.shadows:
                endpoint.numbers[changed.tag] = revision
                self._mirror(endpoint, endpoint.shadows)

    def delete_backend(self, backend_tag: str, force: bool = False) -> None:
        """Delete the backend, which no endpoint may have in its traffic or as a shadow. `force` changes nothing: a
        backend without traffic has no replicas to wait for.
        """
        if not isinstance(backend_tag, str):
            raise OptionTypeError(f"backend_tag={backend_tag!r} must be the tag of a backend, a string")
        for endpoint in endpoints.endpoints().values():
            for what, shares in (("traffic", endpoint.traffic), ("shadows", endpoint.shadows)):
                if backend_tag in shares:
                    raise OptionError(
                        f"backend {backend_tag!r} is in the {what} of endpoint {endpoint.name!r}: give that to others "
                        "by set_traffic, or delete_endpoint, first"
                    )
        backends.forget(backend_tag)

    # ---- endpoints

    def create_endpoint(
        self,
        endpoint_name: str,
        *,
        backend: str | None = None,
        route: str | None = None,
        methods: Sequence[str] = ("GET",),
    ) -> None:
        """Send requests to the route, and calls of its handles, to the backend. Returns when they get there.

        `route` None: handles only. Raises OptionError (a ValueError), OptionTypeError, DeployFailedError with the
        traceback of a constructor that raised.
        """
        if backend is None:
            raise OptionTypeError(f"create_endpoint({endpoint_name!r}) needs backend=..., the tag of a backend")
        name, prefix, allowed = checked_name(endpoint_name), checked_route_prefix(route), _checked_methods(methods)
        found = backends.find(backend, "backend")
        present = current_tie().snapshot().applications
        if name in present:
            what = "endpoint" if name in endpoints.endpoints() else "application"
            raise OptionError(f"there is an {what} {name!r} already: choose another name, or delete it first")
        code = backends.code_of(found.tag)
        spec = backends.application(found, code, name, prefix, allowed)
        try:
            _ask(Deploy(spec, by=who(), packs=code.packs, expected=0))
        except DeployFailedError:
            with contextlib.suppress(ApplicationNotFound):
                _ask(Delete(name))  # it never was: the same call may be tried again
            raise

    def list_endpoints(self) -> dict[str, dict[str, Any]]:
        """Each endpoint's `route`, `methods`, `traffic` and `shadows` (shares by backend), by name."""
        return {name: endpoint.described() for name, endpoint in endpoints.endpoints().items()}

    def delete_endpoint(self, endpoint: str) -> None:
        """Delete the endpoint; its backends stay. For one that is not there, only says so in the log."""
        try:
            found = endpoints.find(endpoint)
            _ask(Delete(found.name))
        except (OptionError, ApplicationNotFound) as error:
            if isinstance(error, OptionTypeError):
                raise
            logger.warning("no endpoint is deleted: %s", error)

    # ---- traffic

    def set_traffic(self, endpoint_name: str, traffic_policy_dictionary: Mapping[str, float]) -> None:
        """Share the endpoint's requests so among backends: `{"v1": 0.9, "v2": 0.1}`. Its shadows are dropped.

        Returns when all routers know. Raises OptionError (a ValueError) where weights are below 0 or do not add up to
        1, or a backend is not registered; DeployFailedError where one does not start: then all is as it was.
        """
        weights = _checked_weights(traffic_policy_dictionary)
        endpoint = endpoints.find(endpoint_name)
        found = {tag: backends.find(tag, "set_traffic") for tag in weights}
        shares = {endpoints.revision_of(endpoint, found[tag]): share for tag, share in weights.items() if share > 0}
        _ask(SetTraffic(app=endpoint.name, weights=shares, by=who()))
        if endpoint.shadows:
            _ask(SetShadow(app=endpoint.name, shadows={}, by=who()))

    def shadow_traffic(self, endpoint_name: str, backend_tag: str, proportion: float) -> None:
        """Send this share of the endpoint's requests to the backend as well, drawn apart from who answers; nobody gets
        its answers, and nobody waits for them. 0 stops it. Returns when the backend takes requests.
        """
        if isinstance(proportion, bool) or not isinstance(proportion, int | float):
            raise OptionTypeError(f"proportion={proportion!r} must be a share of the requests, from 0 to 1")
        if not 0 <= proportion <= 1:
            raise OptionError(f"proportion={proportion!r} must be a share of the requests, from 0 to 1")
        endpoint = endpoints.find(endpoint_name)
        backend = backends.find(backend_tag, "shadow_traffic")
        shadows = {tag: share for tag, share in endpoint.shadows.items() if tag != backend.tag}
        before = dict(endpoint.shadows)
        if not proportion:
            self._mirror(endpoint, shadows)
            return
        number = endpoints.revision_of(endpoint, backend)
        endpoint.numbers[backend.tag] = number
        self._mirror(endpoint, shadows | {backend.tag: float(proportion)})
        try:
            endpoints.await_ready(endpoint.name, number, backend.tag)
        except HeadraceError:
            self._mirror(endpoint, before)
            raise

    def _mirror(self, endpoint: endpoints.Endpoint, shares: Mapping[str, float]) -> None:
        shadows = {endpoint.numbers[tag]: ShadowTraffic(fraction=share) for tag, share in shares.items()}
        _ask(SetShadow(app=endpoint.name, shadows=shadows, by=who()))

    def has_endpoint(self, name: object) -> bool:
        """Whether there is an endpoint of that name."""
        return isinstance(name, str) and current_tie().runs() and name in endpoints.endpoints()

    # ---- the rest

    def get_handle(self, endpoint_name: str, missing_ok: bool = False, sync: bool = True) -> EndpointHandle:
        """A handle to the endpoint. With `sync` False, `remote` is to be awaited for the response.

        Raises ApplicationNotFound (a KeyError) where there is no such endpoint, unless `missing_ok`.
        """
        name = checked_name(endpoint_name)
        meant = current_tie()
        runtime = meant.runtime() if meant is not driver() else None
        if not missing_ok:
            router = meant.runtime()
            if name not in router.router.snapshot.applications and (
                router.owns_this_thread() or name not in meant.snapshot().applications
            ):
                raise ApplicationNotFound(f"endpoint {name!r} does not exist: create_endpoint makes one")
        return EndpointHandle(name, DeploymentHandle(name, name, None, runtime), sync)

    def stat(self, percentiles: Any = None, agg_windows_seconds: Any = None) -> list[dict[str, Any]]:
        """How many calls each replica of each endpoint works on now. Figures of the past are not told here: percentiles
        and windows change nothing.
        """
        told: list[dict[str, Any]] = []
        applications = backends.ask(Status, GetStatus()).status.applications
        for name, endpoint in endpoints.endpoints().items():
            found = applications[name].deployments if name in applications else {}
            for replica in (each for overview in found.values() for each in overview.replicas):
                info = {
                    "name": "replica_processing_queries",
                    "endpoint": name,
                    "backend": endpoint.labels.get(replica.revision, {}).get(backends.BACKEND, ""),
                    "replica": replica.id,
                }
                told.append({"info": info, "value": replica.ongoing})
        return told

    def shutdown(self) -> None:
        """End the instance with all its endpoints and backends."""
        current_tie().shutdown()


def connect() -> Client:
    """A client of the instance that runs. Raises InstanceError where none does."""
    meant = current_tie()
    if not meant.runs():
        raise InstanceError(f"instance {meant.name!r} does not run: serve.start() starts it")
    return Client()


def get_current_backend_tag() -> str | None:
    """The tag of the backend whose code runs now; None outside of any."""
    return backend_tag() or None


def get_current_replica_tag() -> str | None:
    """The replica that the code runs in, as `tag#number`; None outside of any backend."""
    tag, replica = backend_tag(), current_replica()
    return f"{tag}#{replica.replica_id.rpartition('#')[2]}" if tag and replica is not None else None


def _ask(operation: Deploy | Delete | SetTraffic | SetShadow) -> Answer:
    answer = current_tie().ask(operation, on_progress=logger.info)
    if not isinstance(answer, Deployed | Done):
        raise HeadraceError(f"the controller answered {type(operation).__name__} with {type(answer).__name__}")
    return answer


def _checked_methods(methods: object) -> tuple[str, ...]:
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        raise OptionTypeError(f"methods={methods!r} must be a list of HTTP methods, such as ['GET', 'POST']")
    allowed: list[str] = []
    for method in methods:
        if not isinstance(method, str):
            raise OptionTypeError(f"methods: {method!r} must be a string, such as 'POST'")
        if method.upper() not in _METHODS:
            raise OptionError(f"methods: {method!r} must be one of {', '.join(_METHODS)}")
        allowed.append(method.upper())
    if not allowed:
        raise OptionError("methods=[] must have at least one HTTP method")
    return tuple(dict.fromkeys(allowed))


def _checked_weights(given: object) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise OptionTypeError(f"the traffic must be a dict of backend and weight, such as {{'v1': 1.0}}, not {given!r}")
    for tag, weight in given.items():
        if not isinstance(tag, str):
            raise OptionTypeError(f"traffic: {tag!r} must be the tag of a backend, a string")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise OptionTypeError(f"traffic: the weight of {tag!r} must be a number from 0 to 1, not {weight!r}")
        if not 0 <= weight <= 1 + NEAR:
            raise OptionError(f"traffic: the weight of {tag!r} must be a number from 0 to 1, not {weight!r}")
    total = math.fsum(given.values())
    if abs(total - 1.0) > NEAR:
        raise OptionError(f"traffic: the weights of {dict(given)!r} must add up to 1, and add up to {total:g}")
    return {tag: min(1.0, float(weight)) for tag, weight in given.items()}
