"""What a batch costs by its size: how long the model will work on so many rows.

In: batches that ended, each with its size, its seconds, and the key that its items shared. Out: a curve for a key,
`fixed_s + row_s * rows`, such that nearly all batches take no longer. No clock: what is older is what more batches came
after.

Three things are learned apart, as they change apart:

- The *shape*, how the cost grows with rows, from the latest batches of each range of sizes. A range that is not visited
  keeps what it knew, so a load that never changes its batch size does not forget the others. The shape is the line of
  least relative squared errors through the medians of the ranges, neither part negative. What the sizes seen cannot
  tell apart counts as proportional to rows: dear for sizes never seen that are larger, cheap for smaller ones, so that
  both are worth trying with care.
- The *level* of a key: so many times the shape. It moves in steps, to the median of what the last LATEST batches took
  in parts of what the shape says, where that is STEP times more or less than it was, and slowly otherwise. So a model
  that becomes three times slower, or faster, is known after LEARNED_AFTER batches of that key, and one pause (a garbage
  collection, a first call that compiles) changes nothing. Sizes not seen since then are taken to have changed in
  proportion. The level is of the key, as models differ in cost; the shape is of all keys, as what they have in common
  is the machine and the way to it, and as a model called rarely could not learn one alone. A key of which too little
  is known has the level of the latest batches of any.
- The *margin*, the upper quantile of what the last MARGINS batches took, in parts of what level and shape say. It is at
  most MOST_MARGIN: what exceeds that is a pause, and no smaller batch would have met its deadline.

That a cost is affine in rows is what Nexus measured on GPUs (Shen et al., SOSP 2019), and what the batchers of Clipper
and BentoML fit: by least squares, over means, in which one pause moves the line and a step takes as many batches as the
window has.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from itertools import islice
from math import ceil
from typing import NamedTuple

LATEST = 5  # batches of a key whose median is its level
LEARNED_AFTER = LATEST // 2 + 1
LEAST_BATCHES = 5  # before that many have been seen, nothing is known
RANGES = 3  # make a shape that is believed
REACH = 4  # times the largest size, as far as which it is
RANGE = 7  # batches of a range of sizes whose median stands for it
QUANTILE = 0.95
MARGINS = 32  # batches over which the quantile is
MOST_MARGIN = 2.0
DRIFT = 0.05  # of the way, with every batch, that the level goes where it is out by less than a step
STEP = 1.5  # times more, or less, than expected is a step; smaller changes are left to shape and margin

FAR = 4.0  # times more than is known is out of reach

_KEYS = 256  # whose levels are kept
_HALF_LIFE = 16.0  # in batches, of a range of sizes in the shape's fit
_OLD = 48  # batches, after which newer ones of a range do without older ones
_LEAST_WEIGHT = 0.05
_PROPORTIONAL = 0.005  # in the fit, the weight of "proportional to rows"; sizes that differ by a tenth outweigh it
_LEAST_S = 1e-7
_UNREAD = 16  # batches that are kept until somebody asks; of those before nothing is learned
_READ_EVERY = 128  # batches, where somebody only asks for a bound


class Curve(NamedTuple):
    """The seconds that nearly all batches of so many rows stay below, `margin` times what they typically take."""

    fixed_s: float
    row_s: float
    margin: float

    def of(self, rows: int) -> float:
        """For a batch of so many rows; one without rows counts as one of one."""
        return self.fixed_s + self.row_s * (rows if rows > 1 else 1)

    def room(self, seconds: float, most: int) -> int:
        """The rows of the largest batch that takes no longer, at most `most`; 0: none does."""
        if self.of(most) <= seconds:
            return most
        if self.of(1) > seconds:
            return 0
        rows = min(most, int((seconds - self.fixed_s) / self.row_s)) if self.row_s else most
        # By rounding alone, the quotient may be one too many or too few.
        return max(1, next((near for near in (rows + 1, rows) if self.of(near) <= seconds), rows - 1))


class BatchCost:
    """The cost of batches of one function. `batches` have been seen, the largest of `largest` rows."""

    __slots__ = (
        "_clock",
        "_curves",
        "_fixed",
        "_levels",
        "_margin",
        "_margins",
        "_pooled",
        "_ranges",
        "_read",
        "_row",
        "_unread",
        "_unread_s",
        "batches",
        "largest",
    )

    def __init__(self) -> None:
        self.batches = 0
        self.largest = 0
        self._unread: deque[tuple[int, float, Hashable]] = deque(maxlen=_UNREAD)
        self._unread_s = 0.0
        self._read = 0  # `batches`, when they were looked at
        self._clock = 0
        self._ranges: dict[int, _Range] = {}
        self._fixed = 0.0
        self._row = 0.0
        self._levels: OrderedDict[Hashable, _Level] = OrderedDict()  # the key heard of last at the end
        self._pooled = _Level(1.0)
        self._margins: deque[float] = deque(maxlen=MARGINS)
        self._margin = 1.0
        self._curves: dict[Hashable, Curve] = {}

    def __repr__(self) -> str:
        if not self.known:
            return f"<BatchCost not known, {self.batches} seen>"
        fixed_s, row_s, margin = self.curve(None)
        return f"<BatchCost {fixed_s:.6f} s + {row_s:.7f} s a row, margin {margin:.2f}, from {self.batches}>"

    @property
    def known(self) -> bool:
        """Whether enough batches have been seen to say anything."""
        return self.batches >= LEAST_BATCHES

    def observe(self, rows: int, seconds: float, key: Hashable = None) -> None:
        """A batch of so many rows took so long. It is looked at when a curve is asked for, which takes far longer."""
        self.batches += 1
        if rows > self.largest:
            self.largest = rows
        if seconds > self._unread_s:
            self._unread_s = seconds
        self._unread.append((rows, seconds, key))

    def bound_s(self, rows: int, key: Hashable) -> float:
        """A batch is most unlikely to take longer. Far less work than `curve`, for those who have time."""
        stale = self.batches - self._read >= _READ_EVERY
        curve = (None if stale else self._curves.get(key)) or self.curve(key)
        return FAR * max(curve.of(rows), self._unread_s)

    def curve(self, key: Hashable) -> Curve:
        """The curve of batches of this key."""
        if self._unread:
            for rows, seconds, of in self._unread:
                self._learn(max(1, rows), max(_LEAST_S, seconds), of)
            self._unread.clear()
            self._unread_s = 0.0
            self._read = self.batches
            self._curves.clear()
        curve = self._curves.get(key)
        if curve is None:
            scale = self._level(key).value * self._margin
            curve = self._curves[key] = Curve(self._fixed * scale, self._row * scale, self._margin)
        return curve

    def _learn(self, rows: int, seconds: float, key: Hashable) -> None:
        self._clock += 1
        own = self._levels.get(key)
        if own is None:
            own = self._levels[key] = _Level(self._pooled.value)
            if len(self._levels) > _KEYS:
                self._levels.popitem(last=False)
        self._levels.move_to_end(key)
        if not self._foreseen(rows):  # a size so new that is dearer is taken to be so by its size, for the time being
            self._range_of(rows).guess(rows, seconds / self._level(key).value, self._clock)
            self._fit()
        own.latest.append((rows, seconds))
        self._pooled.latest.append((rows, seconds))
        self._pooled.step(self._fixed, self._row)
        stepped = own.step(self._fixed, self._row)
        if len(own.latest) == LATEST:  # only now, when a step in the level is told from the neighbours on both sides
            middle_rows, middle_s = own.latest[LATEST // 2]
            self._range_of(middle_rows).add(middle_rows, middle_s / own.value, self._clock)
            self._fit()
        level = self._level(key).value
        if stepped:
            self._margins.clear()
            for seen, took in islice(reversed(own.latest), LEARNED_AFTER):
                self._margins.append(took / (level * (self._fixed + self._row * seen)))
        else:
            self._margins.append(seconds / (level * (self._fixed + self._row * rows)))
        margins = sorted(self._margins)
        self._margin = min(MOST_MARGIN, max(1.0, margins[ceil(QUANTILE * len(margins)) - 1]))

    def _foreseen(self, rows: int) -> bool:
        """Whether the shape says something of batches of so many rows."""
        known = self._ranges.get(_range(rows))
        if known is not None:
            return True
        return len(self._ranges) >= RANGES and rows <= REACH * max(each.rows for each in self._ranges.values())

    def _level(self, key: Hashable) -> _Level:
        own = self._levels.get(key)
        return own if own is not None and len(own.latest) >= LEARNED_AFTER else self._pooled

    def _range_of(self, rows: int) -> _Range:
        number = _range(rows)
        found = self._ranges.get(number)
        if found is None:
            found = self._ranges[number] = _Range()
        return found

    def _fit(self) -> None:
        """The line through the medians of the ranges, of least relative squared errors: with x = 1/s and z = rows/s,
        of least (fixed * x + row * z - 1)².
        """
        s_xx = s_xz = s_zz = s_x = s_z = 0.0
        for each in self._ranges.values():
            weight = max(_LEAST_WEIGHT, 2.0 ** ((each.at - self._clock) / _HALF_LIFE))
            x = 1 / each.seconds
            z = each.rows * x
            s_x += weight * x
            s_z += weight * z
            s_xx += weight * x * x
            s_xz += weight * x * z
            s_zz += weight * z * z
        s_xx *= 1 + _PROPORTIONAL
        det = s_xx * s_zz - s_xz * s_xz
        fixed = (s_x * s_zz - s_z * s_xz) / det if det > 0 else 0.0
        row = (s_z * s_xx - s_x * s_xz) / det if det > 0 else 0.0
        if fixed <= 0:
            fixed, row = 0.0, s_z / s_zz
        elif row <= 0:
            fixed, row = s_x / s_xx, 0.0
        self._fixed, self._row = fixed, row


class _Level:
    """How the batches of a key compare with the shape: `value` times it.

    It moves in steps, and slowly between them: were it to follow every change, it would follow that of sizes, and the
    shape would learn nothing.
    """

    __slots__ = ("latest", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self.latest: deque[tuple[int, float]] = deque(maxlen=LATEST)

    def step(self, fixed: float, row: float) -> bool:
        """Whether the latest batches are out of proportion; then the level is theirs."""
        if len(self.latest) < LEARNED_AFTER:
            return False
        ratios = sorted([seconds / (fixed + row * rows) for rows, seconds in self.latest])
        middle = ratios[(len(ratios) - 1) // 2]
        if 1 / STEP <= middle / self.value <= STEP:
            self.value *= (middle / self.value) ** DRIFT
            return False
        self.value = middle
        return True


class _Range:
    """The latest batches whose sizes are of one range, and the median one of them; seconds are relative to the level.

    `seconds` is 0 while nothing is known of it.
    """

    __slots__ = ("_latest", "at", "rows", "seconds")

    def __init__(self) -> None:
        self._latest: deque[tuple[float, int, float, int]] = deque(maxlen=RANGE)
        self.at = 0
        self.rows = 0
        self.seconds = 0.0

    def guess(self, rows: int, seconds: float, at: int) -> None:
        """Until something is added."""
        self.rows, self.seconds, self.at = rows, seconds, at

    def add(self, rows: int, seconds: float, at: int) -> None:
        latest = self._latest
        latest.append((seconds / rows, rows, seconds, at))
        while at - latest[0][3] > _OLD:
            latest.popleft()
        self.at = at
        _, self.rows, self.seconds, _ = sorted(latest)[(len(latest) - 1) // 2]


def _range(rows: int) -> int:
    """Two ranges for each power of two: 1, 2, 3, 4 and 5, 6 and 7, 8 to 11, 12 to 15, ..."""
    log = rows.bit_length()
    return 2 * log + (rows >> (log - 2) & 1 if log > 1 else 0)
