"""Accounting of CPUs and GPUs: who holds what, what a newcomer gets, and what is short. Pure; amounts in 1/10,000.

In: requests of processes and the machine's capacity, from the engine. Out: grants (which GPUs), or ResourcesShortError.
Invariant: the sum of what is granted never exceeds the capacity, for the CPUs together and for each GPU alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from headrace.spec.errors import OptionError, ResourcesShortError

_UNIT = 10_000  # amounts are kept as integers, so that ten times 0.1 is 1


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What a process asks for, or what a machine has. `cpus` None or 0 reserves none; `gpus` below 1 shares one GPU."""

    cpus: float | None = None
    gpus: float = 0.0


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What a holder got: its CPUs (0.0: it reserved none), and the names of its GPUs (one, when it is a share)."""

    cpus: float
    gpus: tuple[str, ...]


class Ledger:
    """Who holds how much of one machine. Reserving is O(GPUs); a refusal names everything that is short."""

    def __init__(self, cpus: float, gpus: Sequence[str]) -> None:
        self._cpus = _units("num_cpus", cpus)
        self._gpus = tuple(gpus)
        self._cpus_free = self._cpus
        self._gpu_free = dict.fromkeys(self._gpus, _UNIT)
        self._held: dict[str, tuple[int, dict[str, int]]] = {}

    def __repr__(self) -> str:
        gpus = {name: free / _UNIT for name, free in self._gpu_free.items()}
        return f"Ledger(cpus_free={self._cpus_free / _UNIT:g}/{self._cpus / _UNIT:g}, gpus_free={gpus})"

    @property
    def capacity(self) -> Resources:
        """All that the machine has, held or not."""
        return Resources(cpus=self._cpus / _UNIT, gpus=float(len(self._gpus)))

    def reserve(self, holder: str, wanted: Resources) -> Grant:
        """Give `wanted` to `holder`, or raise ResourcesShortError and give nothing.

        Raises OptionError for amounts that no machine could grant, ValueError when `holder` holds something already.
        """
        if holder in self._held:
            raise ValueError(f"{holder} holds resources already")
        cpus, gpus = _amounts(wanted)
        shares = self._choose_gpus(gpus)
        if cpus > self._cpus_free or shares is None:
            raise ResourcesShortError(self._describe_shortage(holder, cpus, gpus))
        self._cpus_free -= cpus
        for name, amount in shares.items():
            self._gpu_free[name] -= amount
        self._held[holder] = (cpus, shares)
        return Grant(cpus=cpus / _UNIT, gpus=tuple(shares))

    def release(self, holder: str) -> None:
        """Take back what `holder` holds; nothing happens when it holds nothing."""
        cpus, shares = self._held.pop(holder, (0, {}))
        self._cpus_free += cpus
        for name, amount in shares.items():
            self._gpu_free[name] += amount

    def _choose_gpus(self, gpus: int) -> dict[str, int] | None:
        """GPU -> amount, or None when they do not fit. A share goes where the least is left: whole GPUs stay whole."""
        if gpus == 0:
            return {}
        if gpus < _UNIT:
            fitting = [name for name in self._gpus if self._gpu_free[name] >= gpus]
            return {min(fitting, key=self._gpu_free.__getitem__): gpus} if fitting else None
        whole = [name for name in self._gpus if self._gpu_free[name] == _UNIT][: gpus // _UNIT]
        return dict.fromkeys(whole, _UNIT) if len(whole) == gpus // _UNIT else None

    def _describe_shortage(self, holder: str, cpus: int, gpus: int) -> str:
        parts = []
        if cpus > self._cpus_free:
            held = ((name, amount) for name, (amount, _) in self._held.items())
            parts.append(_shortage("CPU", cpus, self._cpus, self._cpus_free, held))
        if self._choose_gpus(gpus) is None:
            held = ((name, sum(shares.values())) for name, (_, shares) in self._held.items())
            total = len(self._gpus) * _UNIT
            parts.append(_shortage("GPU", gpus, total, sum(self._gpu_free.values()), held))
        return f"{holder} does not fit on this machine: " + "; ".join(parts)


def check_amounts(wanted: Resources) -> None:
    """Raise OptionError for amounts that no machine could grant."""
    _amounts(wanted)


def _amounts(wanted: Resources) -> tuple[int, int]:
    cpus = _units("num_cpus", wanted.cpus or 0.0)
    gpus = _units("num_gpus", wanted.gpus)
    if gpus > _UNIT and gpus % _UNIT:
        raise OptionError(f"num_gpus={wanted.gpus:g} is neither a whole number nor a share of one GPU (0 < share < 1)")
    return cpus, gpus


def _units(option: str, amount: float) -> int:
    if not math.isfinite(amount) or amount < 0:
        raise OptionError(f"{option}={amount!r} must be a number >= 0")
    units = round(amount * _UNIT)
    if amount > 0 and units == 0:
        raise OptionError(f"{option}={amount!r} is too small: the least share is {1 / _UNIT}")
    return units


def _shortage(kind: str, wanted: int, total: int, free: int, held: Iterable[tuple[str, int]]) -> str:
    """One kind's part of the message: what is asked, what there is, what is free, and who holds the rest."""
    holders = sorted(((name, amount) for name, amount in held if amount), key=lambda pair: -pair[1])
    text = f"it asks for {wanted / _UNIT:g} {kind}, the machine has {total / _UNIT:g}"
    if not holders:
        return text
    listed = ", ".join(f"{name} {amount / _UNIT:g}" for name, amount in holders[:8])
    more = f" and {len(holders) - 8} more" if len(holders) > 8 else ""
    return f"{text} of which {free / _UNIT:g} free (held: {listed}{more})"
