"""Whether to stay awake for the next event rather than sleep until it comes. In: how long events took; out: yes or no.

To put a processor to sleep and wake it again costs tens of microseconds on a virtual machine, more than a quick model
needs to answer. When one call alone is under way, what comes next is near, and there is a processor to spare, waiting
awake is worth the cycles. (Adaptive spinning: to spin about as long as a wake-up costs is never much dearer than the
best. Karlin, Li, Manasse, Owicki: Empirical studies of competitive spinning for a shared-memory multiprocessor, 1991.)
"""

from __future__ import annotations

LONGEST_S = 250e-6  # what is further away is not waited for awake: a few times what falling asleep and waking costs
SHARE = 1 / 8  # what the latest event weighs in the estimate


class BusyWait:
    """The estimate of how long the next wait is, in seconds. It begins too long: nearness has to be shown."""

    __slots__ = ("estimate_s",)

    def __init__(self) -> None:
        self.estimate_s = 2 * LONGEST_S

    def worthwhile(self) -> bool:
        """Whether what is waited for from now on is near enough."""
        return self.estimate_s <= LONGEST_S

    def crowded(self) -> None:
        """Several calls came at once: whoever has others to serve finds the loop awake anyway, and no call is alone."""
        self.estimate_s = 2 * LONGEST_S

    def heard(self, elapsed_s: float) -> None:
        """A wait lasted `elapsed_s`."""
        # A single long wait is not to rule out a hundred short ones.
        self.estimate_s += (min(elapsed_s, 4 * LONGEST_S) - self.estimate_s) * SHARE
