"""Calls go where the beginning of their text has been before. In: texts of calls, and where they went. Out: the replica
that has seen the longest common prefix of a text, as long as it is not much busier than others.

For language models, whose replicas keep what they computed for a prefix (the system prompt, the conversation so far).
What is remembered is a tree of texts, cut into blocks: a node is a prefix of whole blocks, and knows the replicas that
have seen it. Nodes are found by a hash over the blocks up to them, so no text is kept, and the memory is bounded: the
nodes that were used longest ago go first, and no node before those that continue it.

The rules are those of Ray Serve's PrefixCacheAffinityRouter, and so are the names; but what is remembered is of one
process, and always bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrace.spec.errors import OptionError

if TYPE_CHECKING:
    from headrace.core.balance import Replica
    from headrace.core.routing import Asked

BLOCK_CHARS = 32
LONGEST_CHARS = 16 * 1024  # of a text; what comes after it does not matter
IMBALANCED_THRESHOLD = 10.0
MATCH_RATE_THRESHOLD = 0.1


class PrefixTree:
    """Which replicas have seen which prefixes, about `most_chars` of text in all; then it shrinks to `fewer_chars`."""

    def __init__(self, most_chars: int, fewer_chars: int) -> None:
        self._most = max(1, most_chars // BLOCK_CHARS)
        self._fewer = min(self._most, fewer_chars // BLOCK_CHARS)
        self._nodes: OrderedDict[int, dict[Replica, None]] = OrderedDict()  # those used longest ago first

    def __repr__(self) -> str:
        return f"<PrefixTree of {len(self._nodes)} nodes>"

    @property
    def chars(self) -> int:
        """About how much text is remembered."""
        return len(self._nodes) * BLOCK_CHARS

    def path(self, text: str) -> list[int]:
        """The nodes of the text, shortest prefix first; the last is the whole of it, also where its block is short."""
        path: list[int] = []
        node = 0
        for start in range(0, min(len(text), LONGEST_CHARS), BLOCK_CHARS):
            node = hash((node, text[start : start + BLOCK_CHARS]))
            path.append(node)
        return path

    def seen_by(self, path: Sequence[int]) -> list[dict[Replica, None]]:
        """Who has seen each prefix on the path, as far as anybody has."""
        nodes = self._nodes
        owners = []
        for node in path:
            seen = nodes.get(node)
            if seen is None:
                break
            owners.append(seen)
        return owners

    def note(self, path: Sequence[int], replica: Replica) -> None:
        """The replica has seen this text."""
        nodes = self._nodes
        for node in reversed(path):  # the longest first, so that it is forgotten before those it continues
            seen = nodes.get(node)
            if seen is None:
                nodes[node] = {replica: None}
            else:
                seen[replica] = None
                nodes.move_to_end(node)
        if len(nodes) > self._most:
            while len(nodes) > self._fewer:
                nodes.popitem(last=False)

    def forget(self, replica: Replica) -> None:
        """The replica is gone, and with it all that it has seen. O(nodes)."""
        nodes = self._nodes
        for node in [node for node, seen in nodes.items() if replica in seen]:
            seen = nodes[node]
            del seen[replica]
            if not seen:
                del nodes[node]


class PrefixAffinity:
    """Calls go to the replica that has seen the longest prefix of their text (`Asked.text`).

    Unless it has more than `imbalanced_threshold` calls more than the least busy replica: then to the next longest, and
    in the end there is no preference. Nor is there one where less than the share `match_rate_threshold` of the text has
    been seen. `eviction_threshold_chars` of text are remembered at most, and `eviction_target_chars` when that was
    exceeded; `do_eviction` and `eviction_interval_secs` of Ray Serve's make no difference, for the memory is always
    bounded. O(replicas + blocks of the text) per call. Raises OptionError.
    """

    sees_all = False

    def __init__(
        self,
        imbalanced_threshold: float = IMBALANCED_THRESHOLD,
        match_rate_threshold: float = MATCH_RATE_THRESHOLD,
        eviction_threshold_chars: int = 400_000,
        eviction_target_chars: int | None = 360_000,
        do_eviction: bool = True,
        eviction_interval_secs: float | None = None,
    ) -> None:
        if not _number(imbalanced_threshold) or not imbalanced_threshold >= 0:
            raise OptionError(f"imbalanced_threshold={imbalanced_threshold!r} must be a number of calls, 0 or more")
        if not _number(match_rate_threshold) or not 0 <= match_rate_threshold <= 1:
            raise OptionError(f"match_rate_threshold={match_rate_threshold!r} must be a share, from 0 to 1")
        if not isinstance(eviction_threshold_chars, int) or eviction_threshold_chars < 1:
            raise OptionError(
                f"eviction_threshold_chars={eviction_threshold_chars!r} must be a number of characters, above 0"
            )
        target = eviction_threshold_chars if eviction_target_chars is None else eviction_target_chars
        if not isinstance(target, int) or target < 0:
            raise OptionError(f"eviction_target_chars={target!r} must be a number of characters, 0 or more")
        self.tree = PrefixTree(eviction_threshold_chars, target)
        self._imbalanced = imbalanced_threshold
        self._match_rate = match_rate_threshold
        self._last: tuple[Any, list[int]] = (None, [])  # the call that was asked about last, and the path of its text

    def __repr__(self) -> str:
        return f"<PrefixAffinity {self.tree}>"

    def choose(self, call: Asked, replicas: Sequence[Replica]) -> Replica | None:
        """The one that has seen most of the text, of those that are not much busier than another."""
        path = self._path(call)
        seen = self.tree.seen_by(path)
        if not seen:
            return None
        busiest = min(replica.ours + replica.others for replica in replicas) + self._imbalanced
        allowed = {replica for replica in replicas if replica.ours + replica.others <= busiest}
        while seen and len(seen) >= self._match_rate * len(path):
            owners = [replica for replica in seen.pop() if replica in allowed]
            if owners:
                return min(owners, key=lambda replica: replica.ours + replica.others)
        return None

    def sent(self, call: Asked, replica: Replica) -> None:
        """The replica sees the call's text now."""
        path = self._path(call)
        if path:
            self.tree.note(path, replica)
        self._last = (None, [])

    def added(self, replica: Replica) -> None:
        """It has seen nothing yet."""

    def removed(self, replica: Replica) -> None:
        """It has seen nothing that anybody could use."""
        self.tree.forget(replica)

    def _path(self, call: Asked) -> list[int]:
        last, path = self._last
        if last is not call:
            path = self.tree.path(call.text())
            self._last = (call, path)
        return path


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
