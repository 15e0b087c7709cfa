"""Which revision of an application a request belongs to, or a call that is made outside of any request.

In: weights, and a random number or a key. Out: a revision.

Revisions share the interval [0, 1) by weight, the newest first. So when weight moves from older revisions to newer
ones, each border moves one way: no key goes back to an older revision.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import accumulate
from math import ceil

from headrace.spec.snapshot import ApplicationEntry

_BYTES = 6
_PLACES = 1 << 8 * _BYTES
_BEYOND = b"\xff" * (_BYTES + 1)


class Split:
    """How the traffic is split: made once for weights (number, weight >= 0) in any order, asked for every request.

    `only` is the one revision that has any weight, 0 where there is none or more than one.
    """

    __slots__ = ("_begin", "_cuts", "_marks", "_numbers", "only")

    def __init__(self, weights: Iterable[tuple[int, float]], salt: str = "") -> None:
        shares = [(number, weight) for number, weight in sorted(weights, reverse=True) if weight > 0]
        total = sum(weight for _, weight in shares)
        # Where each revision's places end. The last one's end is not needed: whatever is beyond the others is its own.
        self._cuts = [reached / total * _PLACES for reached in accumulate(weight for _, weight in shares[:-1])]
        self._marks = [_mark(cut) for cut in self._cuts]
        self._numbers = [number for number, _ in shares] or [0]
        self._begin = _salted(salt).copy
        self.only = shares[0][0] if len(shares) == 1 else 0

    def __repr__(self) -> str:
        return f"<Split of {self._numbers} at {[cut / _PLACES for cut in self._cuts]}>"

    def at(self, draw: float) -> int:
        """The revision at this place of [0, 1); 0 when no revision has any weight."""
        return self._numbers[bisect_right(self._cuts, draw * _PLACES)]

    def of(self, key: str) -> int:
        """The revision of all requests with this key; 0 when no revision has any weight."""
        hashed = self._begin()
        try:
            hashed.update(key.encode())
        except UnicodeEncodeError:
            hashed.update(key.encode(errors="surrogatepass"))
        return self._numbers[bisect_right(self._marks, hashed.digest())]


def draw_revision(
    weights: Sequence[tuple[int, float]], draw: float, sticky: str | None = None, salt: str = ""
) -> int | None:
    """The number of a revision, by (number, weight >= 0) in any order; None when all weights are 0.

    `draw` is a random number in [0, 1). A `sticky` key takes its place: the same key, the same revision, in every
    process, while the weights are the same. `salt` (the application, say) keeps experiments independent.
    """
    return Split(weights).at(draw if sticky is None else sticky_draw(sticky, salt)) or None


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
    """The key's place in [0, 1): by BLAKE2b (RFC 7693) of both, so that it is the same everywhere."""
    hashed = _salted(salt)
    hashed.update(key.encode(errors="surrogatepass"))
    return int.from_bytes(hashed.digest()) / _PLACES


def _mark(cut: float) -> bytes:
    """The first hash that is not before the cut: hashes are compared as bytes, which takes no number to be made."""
    first = ceil(cut)
    return first.to_bytes(_BYTES) if first < _PLACES else _BEYOND


def _salted(salt: str) -> blake2b:
    return blake2b(f"{salt}\0".encode(errors="surrogatepass"), digest_size=_BYTES)
