"""What a driver hands to the controller: an application as data. No user object is in it, only bytes that make one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.hedging import HedgingConfig
from headrace.spec.options import DeploymentOptions
from headrace.spec.sticky import Sticky

LONGEST_TIMEOUT_S = 366 * 24 * 3600  # what is more means no limit
DEFAULT_HISTORY = 10
MOST_HISTORY = 100
MOST_LABELS = 50
LONGEST_LABEL = 200


class ImportedCode(msgspec.Struct, frozen=True, tag="import"):
    """Code that a replica imports: `module`, then the dotted `qualname` in it (a Deployment there is unwrapped)."""

    module: str
    qualname: str


class PickledCode(msgspec.Struct, frozen=True, tag="pickle"):
    """Code that no replica could import (`__main__`, a notebook, a closure): cloudpickle bytes of the callable."""

    data: bytes


Code = ImportedCode | PickledCode


class DeploymentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment of one revision.

    `arguments` is the cloudpickle of `(args, kwargs)` of the constructor, in which each bound deployment stands as a
    persistent id `("deployment", name)` and becomes a handle in the replica. `digest` is over code, arguments and
    resources: equal digests may share replicas. `max_ongoing_requests` is resolved (never None). `uses` names the
    deployments that the arguments refer to: callees start before and stop after their callers. `unrepeatable` names the
    methods whose calls must not run twice, `hedged_methods` those that say themselves how they are hedged (None: not at
    all). `multiplexed`: it keeps several models, and its calls may name one. `parts` has a digest for each of "code",
    "arguments" and "resources", to tell what changed; it is empty where they could not be told apart.
    """

    name: str
    code: Code
    arguments: bytes
    options: DeploymentOptions
    digest: str
    max_ongoing_requests: int
    uses: tuple[str, ...] = ()
    is_function: bool = False
    unrepeatable: tuple[str, ...] = ()
    hedged_methods: dict[str, HedgingConfig | None] = {}
    multiplexed: bool = False
    parts: dict[str, str] = {}


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica process needs of the place where the application was built.

    `pack` names the source pack of the revision ("" for none): its modules are imported from there, whatever lies on
    disk by then.
    """

    sys_path: tuple[str, ...] = ()
    cwd: str = ""
    variables: dict[str, str] = {}
    pack: str = ""


class ApplicationSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One application as it should be. `route_prefix` None means no HTTP; `ingress` is the deployment at the door.

    `request_timeout_s` is the time that requests from outside have, unless they say less; None: no limit. `sticky` says
    by what requests keep to a revision. `history` is how many former revisions are kept to go back to. `labels` are
    the deployer's own, and `source` says what it was built from (an import path, a config file), for people to read.
    `config` is the declarative configuration that it was deployed by, as plain data; None for one that code deployed.
    """

    name: str
    route_prefix: str | None
    ingress: str
    deployments: tuple[DeploymentSpec, ...]
    environment: Environment = Environment()
    request_timeout_s: float | None = None
    sticky: Sticky | None = None
    history: int = DEFAULT_HISTORY
    labels: dict[str, str] = {}
    source: str = ""
    config: dict[str, Any] | None = None


def checked_request_timeout(value: object) -> float | None:
    """`value` when it can be a `request_timeout_s`: a number of seconds above 0, or None for no limit.

    Raises OptionTypeError, OptionError.
    """
    if value is None:
        return None
    allowed = f"a number of seconds above 0 and at most {LONGEST_TIMEOUT_S}, or None for no limit"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"request_timeout_s={value!r} must be {allowed}")
    if not 0 < value <= LONGEST_TIMEOUT_S:  # comparisons alone: an integer may be too large for a float
        raise OptionError(f"request_timeout_s={value!r} must be {allowed}")
    return float(value)


def checked_history(value: object) -> int:
    """`value` when it can be a `revision_history_limit`. Raises OptionTypeError, OptionError."""
    allowed = f"the number of former revisions to keep, from 0 to {MOST_HISTORY}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"revision_history_limit={value!r} must be {allowed}")
    if not 0 <= value <= MOST_HISTORY:
        raise OptionError(f"revision_history_limit={value!r} must be {allowed}")
    return value


def checked_labels(value: object) -> dict[str, str]:
    """`value` when it can be the labels of a revision, {} for None. Raises OptionTypeError, OptionError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise OptionTypeError(f"labels={value!r} must be a dict of texts, such as {{'commit': '1f00ba2'}}")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise OptionTypeError(f"labels: {name!r}: {text!r} must be a text for a text")
        if not name or max(len(name), len(text)) > LONGEST_LABEL:
            raise OptionError(f"labels: {name!r} must have 1 to {LONGEST_LABEL} characters, and its text no more")
    if len(value) > MOST_LABELS:
        raise OptionError(f"labels: {len(value)} are too many: at most {MOST_LABELS}")
    return dict(value)
