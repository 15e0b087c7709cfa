"""Which revision of an application a request belongs to, or a call that is made outside of any request.

In: weights, and a random number or a key. Out: a revision.

Revisions share the interval [0, 1) by weight, the newest first. So when weight moves from older revisions to newer
ones, each border moves one way: no key goes back to an older revision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from headrace.spec.snapshot import ApplicationEntry


def draw_revision(
    weights: Sequence[tuple[int, float]], draw: float, sticky: str | None = None, salt: str = ""
) -> int | None:
    """The number of a revision, by (number, weight >= 0) in any order; None when all weights are 0.

    `draw` is a random number in [0, 1). A `sticky` key takes its place: the same key, the same revision, in every
    process, while the weights are the same. `salt` (the application, say) keeps experiments independent.
    """
    total = sum(weight for _, weight in weights)
    if total <= 0:
        return None
    left = (draw if sticky is None else sticky_draw(sticky, salt)) * total
    chosen: int | None = None
    for number, weight in sorted(weights, reverse=True):
        if weight > 0:
            chosen = number
            left -= weight
            if left < 0:
                break
    return chosen


def own_revision(entry: ApplicationEntry, deployment: str, own: int) -> int:
    """The revision of the calls that a replica of `deployment`, of revision `own`, makes outside of any request.

    0 (draw one) where its deployment has a share of the traffic, in whatever revision; else its own, for as long as
    that is listed: a replica that starts or leaves talks to the graph that it was made for.
    """
    mine = next((revision for revision in entry.revisions if revision.number == own), None)
    if mine is None:
        return 0
    key = mine.deployments.get(deployment)
    if key is not None and any(each.weight > 0 and each.deployments.get(deployment) == key for each in entry.revisions):
        return 0
    return own


def sticky_draw(key: str, salt: str = "") -> float:
    """The key's place in [0, 1): by SHA-256, so that it is the same everywhere."""
    digest = hashlib.sha256(f"{salt}\0{key}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:6]) / (1 << 48)
