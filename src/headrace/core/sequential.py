"""Sequential tests that stay valid however often one looks: the mathematics of `core.analysis`.

In: counts that came since the last time. Out: the wealth of bets against "this revision is no worse", and bounds for
means. The chance that such a wealth, which begins as 1, ever reaches 1/alpha is at most alpha as long as the revision
is no worse (Ville's inequality; Shafer, "Testing by betting", J. R. Statist. Soc. A 2021). So it may be looked at after
every request, and what it says may be acted on at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, log1p, sqrt

# Each bet is on one ratio of odds: how much more likely failures are than they may be. Together they lose little to the
# bet that knew the ratio beforehand.
RATIOS = (1.25, 1.5, 2.0, 3.0, 6.0, 20.0)
KEPT = 0.25  # the share of the wealth that no bet has
START = (KEPT, *((1 - KEPT) / len(RATIOS) for _ in RATIOS))
SETTLED = 3000.0  # trials that count as made before the first: the more, the less is shared out at the beginning

_MOST = 1e100  # wealth above it is given away, which only makes a test more careful
_MOST_GAIN = 200.0
_PRIOR = 50.0  # what the first guess at a rate weighs, in observations
_NEAR = 1e-9  # how near to 0 and 1 a rate may come


def bet(wealth: Sequence[float], gains: Sequence[float], before: float, seen: float) -> list[float]:
    """The wealth, kept and by ratio, after each bet has gained so much (a logarithm), in `seen` trials after `before`.

    Then every bet, and what is kept, gives a part to all by START: so there is always something to bet with when a
    revision gets worse after a good while ("fixed share": Herbster and Warmuth, "Tracking the best expert", Machine
    Learning 1998). Who moves money between fair bets plays fair. The part falls with the number of trials, so that a
    long test does not give all away. `seen` must not depend on outcomes, and does not: it is a number of requests.
    """
    grown = [wealth[0]]
    grown += [held * exp(min(gain, _MOST_GAIN)) for held, gain in zip(wealth[1:], gains, strict=True)]
    total = sum(grown)
    if total > _MOST:
        grown = [held * (_MOST / total) for held in grown]
        total = _MOST
    shared = seen / (before + seen + SETTLED)
    return [held + shared * (total * start - held) for held, start in zip(grown, START, strict=True)]


def gains_above(count: int, hits: int, bound: float) -> list[float]:
    """What each ratio gains from `hits` in `count` trials, against "the chance of a hit is at most `bound`".

    A likelihood ratio for each trial: with the odds of the bound multiplied by r, the chance t of a hit fulfils
    t/bound = r/(1 + (r-1) bound) and (1-t)/(1-bound) = 1/(1 + (r-1) bound). Its expectation is 1 at the bound and less
    below it, whatever happened before: a test martingale (Waudby-Smith and Ramdas, "Estimating means of bounded random
    variables by betting", J. R. Statist. Soc. B 2024, in the case of 0 and 1).
    """
    if bound <= 0.0:
        return [_MOST_GAIN if hits else 0.0 for _ in RATIOS]
    return [hits * log(ratio) - count * log1p((ratio - 1) * bound) for ratio in RATIOS]


def gains_between(
    baseline: tuple[int, int], candidate: tuple[int, int], rate: float, share: float, weight: float
) -> list[float]:
    """What each ratio gains from a block of (trials, hits) of both, against "hits are no likelier in the candidate".

    `rate` is the share of hits seen before the block in `weight` trials of both, `share` the candidate's part of those
    trials: by these a, the chance of a hit in the baseline, and b, that in the candidate, are chosen for each ratio of
    odds. With n and m trials the gain is the likelihood of (a, b) over that of c = (n a + m b)/(n + m) in both (Turner,
    Ly and Grünwald, "Generic E-variables for exact sequential k-sample tests that allow for optional stopping",
    J. Statist. Plann. Inference 2024).

    Why it is fair: where a hit has the chance p, a trial of the baseline multiplies by f(p) = p a/c + (1-p)(1-a)/(1-c)
    in expectation, one of the candidate by g(p), the same with b; and n f + m g = n + m by the choice of c. So the
    block multiplies by f^n g^m <= ((n f + m g)/(n + m))^(n + m) = 1, the geometric mean being below the arithmetic one.
    That is for equal chances, whatever they are; as b > a, f falls with p and g rises, so a candidate that fails less
    than the baseline makes it smaller still. The rate may differ from one block to the next, as long as it does so in
    both.
    """
    trials, hits = baseline
    own_trials, own_hits = candidate
    if not trials or not own_trials:
        return [0.0 for _ in RATIOS]  # c is a or b: nothing to compare
    rate = min(max(rate, _NEAR), 1 - _NEAR)
    part = own_trials / (trials + own_trials)
    if weight <= 0:
        share = part
    found = []
    for ratio in RATIOS:
        more = ratio - 1
        # The chance in the baseline that gives `rate` overall: the positive root of a quadratic.
        square, linear = (1 - share) * more, 1 + more * (share - rate)
        below = 2 * rate / (linear + sqrt(linear * linear + 4 * square * rate))
        above = ratio * below / (1 + more * below)
        both = below + part * (above - below)
        found.append(
            hits * log(below / both)
            + (trials - hits) * log((1 - below) / (1 - both))
            + own_hits * log(above / both)
            + (own_trials - own_hits) * log((1 - above) / (1 - both))
        )
    return found


def guess(count: float, hits: float, prior: float) -> float:
    """The rate of hits, `prior` as long as there are few."""
    return (hits + _PRIOR * prior) / (count + _PRIOR)


def mean_margin(count: float, alpha: float, tuned: float = 1000.0) -> float:
    """How far, in standard deviations, a sum of `count` centred values may ever be above 0, but with chance `alpha`.

    The one-sided bound of a normal mixture (Robbins, 1970; Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform,
    nonparametric, nonasymptotic confidence sequences", Annals of Statistics 2021, section 3.5), which holds
    asymptotically for means of any independent values with a variance, that may be estimated, and may change:
    Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence
    sequences", Annals of Statistics 2024. It is closest at `tuned` values.
    """
    alpha = min(alpha, 0.25)
    doubled = log(1 / (2 * alpha))
    scale = tuned / (2 * doubled + log(1 + 2 * doubled))
    stretched = (count + scale) / scale
    return sqrt(2 * (count + scale) * log1p(sqrt(stretched) / (2 * alpha)))
