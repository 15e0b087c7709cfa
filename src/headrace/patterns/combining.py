"""One answer out of many: the mean, a vote, both with weights, or what another model makes of them.

In: the answers of an ensemble's members, in the order of the members. Out: one. Only numbers and labels are looked at,
in lists, arrays and dicts; no library is needed for that.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace import serve
from headrace.patterns.member import Declared, check_method, one
from headrace.patterns.pattern import is_function
from headrace.spec.errors import OptionError, OptionTypeError

if TYPE_CHECKING:
    from headrace.serve.handle import DeploymentHandle

WAYS = ("mean", "vote")


class Weights(NamedTuple):
    """What `weighted` made: a way to combine, and the weights as they were given."""

    way: str
    given: Sequence[float] | Mapping[str, float]


class Stacking(NamedTuple):
    """What `stacking` made: the model that gets the answers of the others."""

    model: Declared


def weighted(weights: Sequence[float] | Mapping[str, float], combine: str = "mean") -> Weights:
    """A mean, or a vote, in which members count differently: a weight for each, in their order or by their names.

    Raises OptionError, OptionTypeError.
    """
    _check_way(f"combine={combine!r} of weighted()", combine)
    if hasattr(weights, "tolist"):
        weights = weights.tolist()  # an array
    if not isinstance(weights, Mapping | Sequence) or isinstance(weights, str | bytes):
        raise OptionTypeError(f"weights={weights!r} of weighted() must be a list of numbers, or a dict of them by name")
    for weight in weights.values() if isinstance(weights, Mapping) else weights:
        if isinstance(weight, bool) or not isinstance(weight, Real):
            raise OptionTypeError(f"the weight {weight!r} of weighted() must be a number")
        if not 0 < weight < math.inf:
            raise OptionError(
                f"the weight {weight!r} of weighted() must be above 0; leave out a member that is not to count"
            )
    return Weights(combine, weights)


def stacking(model: serve.Application | DeploymentHandle, *, method: str | None = None) -> Stacking:
    """Another model makes the answer: it is called with the list of the members' answers, in their order.

    In the place of a member that did not answer is None. Raises OptionError, OptionTypeError, GraphError.
    """
    check_method("stacking", method)
    return Stacking(one("the model of stacking()", model, method))


def check_combine(combine: object, names: Sequence[str]) -> None:
    """Raise OptionTypeError or OptionError unless `combine` can be that of an ensemble of members of these names."""
    if isinstance(combine, Weights):
        given = combine.given
        if isinstance(given, Mapping) and given.keys() != set(names):
            raise OptionError(f"weighted() has weights for {', '.join(given)}, and the members are {', '.join(names)}")
        if len(given) != len(names):
            raise OptionError(f"weighted() has {len(given)} weights, and there are {len(names)} members")
    elif isinstance(combine, str):
        _check_way(f"combine={combine!r} of ensemble()", combine)
    elif not isinstance(combine, Stacking) and not is_function(combine):
        raise OptionTypeError(
            f"combine={combine!r} of ensemble() must be 'mean', 'vote', weighted(...), stacking(...), or a function of "
            "a dict of the answers by name"
        )


def _check_way(what: str, way: object) -> None:
    if not isinstance(way, str):
        raise OptionTypeError(f"{what} must be 'mean' or 'vote'")
    if way not in WAYS:
        near = difflib.get_close_matches(way, WAYS, 1)
        raise OptionError(f"{what} must be 'mean' or 'vote'" + (f"; did you mean {near[0]!r}?" if near else ""))


def weights_of(combine: object, names: Sequence[str]) -> dict[str, float]:
    """The weight of each member, 1 where nothing was said."""
    given: Any = combine.given if isinstance(combine, Weights) else (1,) * len(names)
    pairs = given.items() if isinstance(given, Mapping) else zip(names, given, strict=True)
    return {name: float(weight) for name, weight in pairs}


def mean(answers: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
    """The weighted mean of numbers and arrays; of lists and dicts of them, that of each part.

    Raises TypeError for what has no mean, ValueError for lists and dicts that do not fit together.
    """
    return _Mean(answers, weights).of(list(answers.values()), "")


def vote(answers: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
    """The label that has most votes; among several, that of the member which comes first. Of lists and arrays, the
    list of what has most votes at each place.

    Raises TypeError for what is no label, ValueError for lists of different lengths.
    """
    return _Vote(answers, weights).of([_as_list(answer) for answer in answers.values()], "")


class _Way(ABC):
    """Goes through answers of the same shape; `where` is the place in them, for errors."""

    verb = ""

    def __init__(self, answers: Mapping[str, Any], weights: Mapping[str, float]) -> None:
        self.names = list(answers)
        self.weights = [weights[name] for name in answers]
        self.total = sum(self.weights)

    def of(self, parts: list[Any], where: str) -> Any:
        if any(isinstance(part, list | tuple) for part in parts):
            if not all(isinstance(part, list | tuple) for part in parts):
                raise ValueError(self._misfit(parts, where, "are not all lists"))
            if len({len(part) for part in parts}) > 1:
                raise ValueError(self._misfit(parts, where, "are lists of different lengths"))
            columns = zip(*parts, strict=True)
            return [self.of(list(column), f"{where}[{place}]") for place, column in enumerate(columns)]
        return self.leaf(parts, where)

    @abstractmethod
    def leaf(self, parts: list[Any], where: str) -> Any:
        """One out of numbers or labels."""

    def _misfit(self, parts: Sequence[Any], where: str, why: str) -> str:
        pairs = ", ".join(f"{name}: {_short(part)}" for name, part in zip(self.names, parts, strict=True))
        at = f" at {where}" if where else ""
        return f"cannot {self.verb} answers that{at} {why} ({pairs}): give ensemble() a combine= function of your own"


class _Mean(_Way):
    verb = "take the mean of"

    def of(self, parts: list[Any], where: str) -> Any:
        first = parts[0]
        if not isinstance(first, dict):
            return super().of(parts, where)
        if not all(isinstance(part, dict) and part.keys() == first.keys() for part in parts):
            raise ValueError(self._misfit(parts, where, "are not all dicts of the same keys"))
        return {key: self.of([part[key] for part in parts], f"{where}[{key!r}]") for key in first}

    def leaf(self, parts: list[Any], where: str) -> Any:
        if any(isinstance(part, str | bytes | dict) or part is None for part in parts):
            raise TypeError(self._misfit(parts, where, "are not all numbers"))
        if len({tuple(getattr(part, "shape", ())) for part in parts}) > 1:  # which numpy would broadcast
            raise ValueError(self._misfit(parts, where, "are arrays of different shapes"))
        try:
            # Each by a float first: small integers would overflow in the sum, and arrays of booleans have another one.
            summed = parts[0] * self.weights[0]
            for part, weight in zip(parts[1:], self.weights[1:], strict=True):
                summed = summed + part * weight
            return summed / self.total
        except TypeError as error:
            raise TypeError(self._misfit(parts, where, f"are not all numbers ({error})")) from None


class _Vote(_Way):
    verb = "count"

    def leaf(self, parts: list[Any], where: str) -> Any:
        votes: dict[Any, float] = {}
        try:
            for label, weight in zip(parts, self.weights, strict=True):
                votes[label] = votes.get(label, 0.0) + weight
        except TypeError:
            raise TypeError(self._misfit(parts, where, "are no labels")) from None
        return max(votes, key=votes.__getitem__)  # the first of them, and so of the first member


def _as_list(answer: Any) -> Any:
    return answer.tolist() if getattr(answer, "shape", ()) else answer


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."
