"""What chooses a replica for a call where two random ones are not good enough: the seam, and nothing more.

In: replicas that come and go, and for each call those with room. Out: one of them, or None where it has no preference:
the balancer then takes the lesser load of two random ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from headrace.core.balance import Replica


class Asked(Protocol):
    """What a policy may know of a call."""

    request_id: str
    method: str
    sticky: str | None  # the id of its session
    model_id: str | None

    def text(self) -> str:
        """The text that the call is about (a prompt, the body), as far as it has one; "" otherwise. Costs a decode."""


class RoutingPolicy(Protocol):
    """Chooses replicas for the calls of one deployment in one process. Nothing in it may wait.

    `sees_all`: it must know every replica of the deployment, not only those that this process keeps connections to.
    """

    sees_all: bool

    def choose(self, call: Asked, replicas: Sequence[Replica]) -> Replica | None:
        """One of `replicas`, which have room and are in no order, at least one; None: no preference."""

    def sent(self, call: Asked, replica: Replica) -> None:
        """The call leaves for this replica: the one that was chosen, or one that had a slot after it had waited."""

    def added(self, replica: Replica) -> None:
        """The replica takes calls from now on."""

    def removed(self, replica: Replica) -> None:
        """The replica takes no more calls."""
