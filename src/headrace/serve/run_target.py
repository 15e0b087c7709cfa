"""An application with all that says how to run it: what `serve.run` takes, in one struct, checked before anything runs.

In: arguments of `run`, or a RunTarget of `run_many`. Out: its specification, and the Deploy that asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.serve.comparators import with_comparator
from headrace.serve.deployment import Application
from headrace.serve.graph import Packing, build
from headrace.spec.application import DEFAULT_HISTORY, ApplicationSpec
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.rollout import RollingUpdate, Strategy
from headrace.spec.rollout import rollout as parse_rollout
from headrace.wire.control import Deploy
from headrace.wire.who import who

DEFAULT_APP_NAME = "default"

Target = Application | Callable[..., Application]


@dataclass(frozen=True)
class RunTarget:
    """An application with the name and the route prefix to run it under, for `run_many`; the rest is as in `run`."""

    target: Target
    name: str = DEFAULT_APP_NAME
    route_prefix: str | None = "/"
    logging_config: Any = None
    external_scaler_enabled: bool = False
    request_timeout_s: float | None = None
    rollout: Any = None
    sticky: Any = None
    expected_revision: int | None = None
    revision_history_limit: int = DEFAULT_HISTORY
    labels: Mapping[str, str] | None = None

    def strategy(self) -> Strategy | None:
        """How the revision takes over the traffic; None for the default. Raises OptionError, OptionTypeError."""
        return None if self.rollout is None else with_comparator(parse_rollout(self.rollout))

    def spec(self, application: Application, packing: Packing) -> ApplicationSpec:
        """The specification of what `target` is or built. Raises what `build` does."""
        compare = getattr(self.rollout, "compare", None)
        if compare is not None:
            packing.reach(getattr(compare, "__module__", None) or "")  # replicas of the shadow import it
        return build(
            application,
            self.name,
            self.route_prefix,
            self.request_timeout_s,
            packing,
            sticky=self.sticky,
            revision_history_limit=self.revision_history_limit,
            labels=self.labels,
            source=source_of(self.target),
        )

    def deploy(self, spec: ApplicationSpec, packing: Packing, wait: bool = True) -> Deploy:
        """What the controller is asked for. Raises OptionError, OptionTypeError."""
        strategy = self.strategy()
        return Deploy(
            spec,
            wait=wait,
            rollout=strategy,
            until="end" if strategy is None or isinstance(strategy, RollingUpdate) else "ready",
            expected=checked_revision("expected_revision", self.expected_revision),
            by=who(),
            packs=packing.packs(),
        )


def checked_revision(name: str, value: object, least: int = 0) -> int | None:
    """`value` when it can be the number of a revision, or None. Raises OptionError, OptionTypeError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"{name}={value!r} must be the number of a revision, or None")
    if not least <= value < 2**31:
        raise OptionError(f"{name}={value!r} must be the number of a revision, from {least}, or None")
    return value


def source_of(target: Any) -> str:
    """What the application is built from, for people to read: `module:name` of its deployment or builder."""
    code = target._bound_deployment.func_or_class if isinstance(target, Application) else target
    module, name = getattr(code, "__module__", ""), getattr(code, "__qualname__", "")
    return f"{module}:{name}" if isinstance(module, str) and module and name else ""
