"""Whether to stay awake for the next answer rather than sleep until it comes. In: how long answers took; out: yes or no.

To put a processor to sleep and wake it again costs tens of microseconds on a virtual machine, more than a quick model
needs to answer. When one call alone is under way, its answer is near, and there is a processor to spare, waiting awake
is worth the cycles (adaptive spinning; Karlin, Li, Manasse and Owicki, 'Empirical studies of competitive spinning for
a shared-memory multiprocessor', SOSP 1991: to spin no longer than a wake-up costs is at most twice as dear as the best).
"""

from __future__ import annotations

LONGEST_S = 150e-6  # an answer that is further away is not waited for awake
SHARE = 1 / 8  # what the latest answer weighs in the estimate


class BusyWait:
    """The estimate of when the answer to a lone call comes, in seconds after it was sent."""

    __slots__ = ("estimate_s",)

    def __init__(self, processors: int) -> None:
        # With one processor the replica could not run while we wait for it.
        self.estimate_s = LONGEST_S / 2 if processors > 1 else float("inf")

    def worthwhile(self) -> bool:
        """Whether the answer to a call that is sent now is near enough."""
        return self.estimate_s <= LONGEST_S

    def heard(self, elapsed_s: float) -> None:
        """The answer to a lone call came after `elapsed_s`."""
        # One slow answer is not to rule out a hundred quick ones.
        self.estimate_s += (min(elapsed_s, 4 * LONGEST_S) - self.estimate_s) * SHARE
