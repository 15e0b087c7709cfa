"""What the instance knows of backends: kept as notes in its controller, for all clients, until they are deleted.

In: a class or function with its arguments, and a config. Out: a backend's specification, out of which an endpoint's
application is made. Nothing of a backend runs before it has traffic.
"""

from __future__ import annotations

import hashlib
import inspect
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from headrace.serve.deployment import Application, Deployment
from headrace.serve.driver import current_tie
from headrace.serve.graph import ByValue, build, resolved_max_ongoing
from headrace.serve.older.config import MOST_CALLS, BackendConfig
from headrace.serve.older.kinds import ServedConfig, accepts_batches, is_asynchronous
from headrace.spec.application import ApplicationSpec, DeploymentSpec, Environment
from headrace.spec.errors import HeadraceError, OptionError, OptionTypeError, RevisionConflictError
from headrace.spec.names import checked_name
from headrace.spec.options import DeploymentOptions, deployment_options
from headrace.spec.sticky import Sticky
from headrace.wire.control import Answer, GetNotes, KeepNotes, Notes, Operation

HISTORY = 20  # former revisions of an endpoint
SHARD_KEY = Sticky(of="header", name="x-serve-shard-key")

# Labels of an endpoint's revisions.
BACKEND = "backend"
MADE = "made"
METHODS = "methods"

_CONFIG, _CODE = "backends/", "backend code/"

A = TypeVar("A", bound=Answer)


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """What of a backend does not change: its specification as it was built, and the sources that come with it. `token`
    is of the call that made it.
    """

    spec: DeploymentSpec
    environment: Environment
    packs: dict[str, bytes]
    token: str


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """What of a backend is looked at often. `plain`: its code runs one request at a time; `batched`: it accepts
    batches; `reconfigurable`: it takes a user_config.
    """

    tag: str
    config: dict[str, Any]
    reconfigurable: bool
    plain: bool
    batched: bool
    max_ongoing: int

    def parsed(self) -> BackendConfig:
        """Its config."""
        return BackendConfig(**self.config)


_decode_code = msgspec.msgpack.Decoder(Code).decode
_decode_registered = msgspec.msgpack.Decoder(Registered).decode


def ask(kind: type[A], operation: Operation) -> A:
    """What the controller answers, which is of this kind."""
    answer = current_tie().ask(operation)
    if not isinstance(answer, kind):
        raise HeadraceError(f"the controller answered {type(operation).__name__} with {type(answer).__name__}")
    return answer


def registered() -> dict[str, Registered]:
    """All backends by tag."""
    notes = ask(Notes, GetNotes(_CONFIG)).notes
    return {found.tag: found for found in map(_decode_registered, notes.values())}


def find(tag: object, what: str = "") -> Registered:
    """The backend. Raises OptionTypeError, OptionError."""
    if not isinstance(tag, str):
        raise OptionTypeError(f"{what or 'backend_tag'}={tag!r} must be the tag of a backend, a string")
    note = ask(Notes, GetNotes(_CONFIG + tag)).notes.get(_CONFIG + tag)
    if note is None:
        known = ", ".join(sorted(registered())) or "none"
        raise OptionError(
            f"{f'{what}: ' if what else ''}backend {tag!r} is not registered, create_backend makes one; there are: "
            f"{known}"
        )
    return _decode_registered(note)


def register(
    tag: str,
    target: Callable[..., Any],
    init_args: tuple[Any, ...],
    config: BackendConfig,
    ray_actor_options: Mapping[str, Any] | None,
) -> None:
    """Keep a new backend. Raises OptionError where there is one of that tag, and what `build` raises."""
    checked_name(tag)
    if isinstance(target, Deployment | Application):
        raise OptionTypeError(f"create_backend({tag!r}) takes a plain class or function, not {target!r}")
    if not (inspect.isclass(target) or inspect.isroutine(target)):
        raise OptionTypeError(f"create_backend({tag!r}) takes a class or a function, not {target!r}")
    if inspect.isclass(target):
        _check_arguments(tag, target, init_args)
    elif init_args:
        raise OptionError(f"create_backend({tag!r}): a function takes no arguments: {init_args!r:.100} are too many")
    called = _called(target)
    made = Registered(
        tag=tag,
        config=config.dict(),
        reconfigurable=hasattr(target, "reconfigure"),
        plain=not any(map(is_asynchronous, called)),
        batched=any(map(accepts_batches, called)),
        max_ongoing=resolved_max_ongoing(target, DeploymentOptions()),
    )
    check_config(made, config)
    options_of(made, ())  # of a user_config that cannot be sent, it tells
    options = {"ray_actor_options": ray_actor_options} if ray_actor_options is not None else {}
    from headrace.serve.older.served import Backend  # it brings what replicas need, and other drivers do not

    deployment = Deployment(Backend, tag, deployment_options({"user_config": {}, **options}))
    packing = ByValue()
    spec = build(deployment.bind(tag, target, tuple(init_args)), tag, None, packing=packing)
    (only,) = spec.deployments
    code = Code(spec=only, environment=spec.environment, packs=dict(packing.packs()), token=uuid.uuid4().hex)
    name, encoder = _CONFIG + tag, msgspec.msgpack.Encoder()
    try:
        current_tie().ask(KeepNotes({name: encoder.encode(made), _CODE + tag: encoder.encode(code)}, absent=(name,)))
    except RevisionConflictError:
        # A controller that went away in between may have been asked twice.
        if any(_decode_code(note).token == code.token for note in ask(Notes, GetNotes(_CODE + tag)).notes.values()):
            return
        raise OptionError(
            f"backend {tag!r} is registered already: choose another tag, or delete_backend({tag!r}) first"
        ) from None


def _called(target: Callable[..., Any]) -> list[object]:
    """What takes the calls: the function, `__call__` of the class, or all its public methods where it has none."""
    if not inspect.isclass(target):
        return [target]
    own = {name: getattr(target, name) for cls in target.__mro__[:-1] for name in vars(cls)}
    if "__call__" in own:
        return [own["__call__"], *(each for each in own.values() if accepts_batches(each))]
    return [each for name, each in own.items() if not name.startswith("_") and callable(each)]


def _check_arguments(tag: str, target: type, init_args: Sequence[Any]) -> None:
    try:
        inspect.signature(target).bind(*init_args)
    except TypeError as error:
        raise OptionTypeError(f"create_backend({tag!r}) does not fit the constructor: {error}") from None
    except ValueError:
        pass  # no signature (a class of an extension module): the replica will tell


def check_config(backend: Registered, config: BackendConfig) -> None:
    """Raise OptionError for a config that the backend's code cannot have."""
    if config.max_batch_size is not None and not backend.batched:
        raise OptionError(
            f"max_batch_size={config.max_batch_size} of backend {backend.tag!r}: its code does not accept batches; "
            "mark what takes a list of requests with @serve.accept_batch"
        )
    if config.user_config is not None and not backend.reconfigurable:
        raise OptionError(
            f"backend {backend.tag!r} has a user_config, but no method reconfigure(user_config) to take it"
        )


def keep_config(backend: Registered, config: BackendConfig) -> Registered:
    """Keep another config of the backend. Raises OptionError, OptionTypeError."""
    check_config(backend, config)
    changed = msgspec.structs.replace(backend, config=config.dict())
    options_of(changed, ())  # of a user_config that cannot be sent, it tells
    current_tie().ask(KeepNotes({_CONFIG + backend.tag: msgspec.msgpack.encode(changed)}))
    return changed


def forget(tag: str) -> None:
    """Keep the backend no more."""
    current_tie().ask(KeepNotes({_CONFIG + tag: None, _CODE + tag: None}))


def code_of(tag: str) -> Code:
    """What the backend runs."""
    note = ask(Notes, GetNotes(_CODE + tag)).notes.get(_CODE + tag)
    if note is None:
        raise OptionError(f"backend {tag!r} is not registered any more")
    return _decode_code(note)


def options_of(backend: Registered, methods: Sequence[str], base: DeploymentOptions | None = None) -> DeploymentOptions:
    """The options of a deployment that runs the backend for an endpoint with these HTTP methods."""
    config = backend.parsed()
    served = ServedConfig(
        max_batch_size=config.max_batch_size or 1,
        batch_wait_timeout_s=float(config.batch_wait_timeout),
        methods=tuple(methods),
        user_config=config.user_config,
    )
    limit = config.max_concurrent_queries
    if backend.batched:
        at_once = max(limit or 0, 2 * served.max_batch_size)
    elif backend.plain:
        at_once = 1
    else:
        at_once = backend.max_ongoing if limit is None or limit >= MOST_CALLS else limit
    return deployment_options(
        {
            "num_replicas": config.num_replicas,
            "max_ongoing_requests": at_once,
            "user_config": {name: getattr(served, name) for name in served.__struct_fields__},
            "graceful_shutdown_timeout_s": config.experimental_graceful_shutdown_timeout_s,
        },
        base,
    )


def application(
    backend: Registered, code: Code, endpoint: str, route: str | None, methods: Sequence[str]
) -> ApplicationSpec:
    """The endpoint's application as it is when this backend has its traffic."""
    options = options_of(backend, methods, code.spec.options)
    deployment = msgspec.structs.replace(
        code.spec,
        name=endpoint,
        options=options,
        max_ongoing_requests=options.max_ongoing_requests or code.spec.max_ongoing_requests,
    )
    whole = msgspec.msgpack.encode((deployment, route, code.environment.pack), order="sorted")
    made = hashlib.blake2b(whole, digest_size=8).hexdigest()
    return ApplicationSpec(
        name=endpoint,
        route_prefix=route,
        ingress=endpoint,
        deployments=(deployment,),
        environment=code.environment,
        sticky=SHARD_KEY,
        history=HISTORY,
        labels={BACKEND: backend.tag, METHODS: ",".join(methods), MADE: made},
        source=f"backend {backend.tag}",
    )
