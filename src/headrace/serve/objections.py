"""What the local engine makes of an application whose options say more than one machine can do.

In: a specification that is to be deployed on a local instance. Out: one warning at the user's line for all options that
have no effect there; OptionError for one that would change an answer.
"""

from __future__ import annotations

from headrace.spec.application import ApplicationSpec
from headrace.spec.errors import OptionError
from headrace.spec.options import warn_ignored
from headrace.spec.placement import local_objections


def check_local(spec: ApplicationSpec) -> None:
    """Warn, or raise OptionError."""
    ignored: dict[str, str] = {}
    for deployment in spec.deployments:
        reasons, refused = local_objections(deployment.options.placement_of(deployment.name))
        if refused is not None:
            raise OptionError(f"deployment {deployment.name!r}: {refused}")
        ignored |= {f"{name} of {deployment.name}": reason for name, reason in reasons.items()}
    if ignored:
        warn_ignored(ignored)
