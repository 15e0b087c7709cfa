"""headrace.core.resources: nothing is granted twice, and whoever is refused learns what is short and who has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.core.resources import Grant, Ledger, Resources
from headrace.spec.errors import OptionError, ResourcesShortError


def test_nothing_asked_is_nothing_held() -> None:
    ledger = Ledger(1, [])
    for n in range(100):
        assert ledger.reserve(f"p{n}", Resources()) == Grant(cpus=0.0, gpus=())
    ledger.reserve("zero", Resources(cpus=0.0))
    assert ledger.reserve("all", Resources(cpus=1)).cpus == 1.0


def test_ten_tenths_are_one() -> None:
    ledger = Ledger(1, ["0"])
    for n in range(10):
        ledger.reserve(f"p{n}", Resources(cpus=0.1, gpus=0.1))
    with pytest.raises(ResourcesShortError):
        ledger.reserve("more", Resources(cpus=0.0001))
    for n in range(10):
        ledger.release(f"p{n}")
    assert ledger.reserve("all", Resources(cpus=1, gpus=1)) == Grant(cpus=1.0, gpus=("0",))


def test_shares_fill_one_gpu_before_they_break_another() -> None:
    ledger = Ledger(8, ["GPU-a", "GPU-b", "GPU-c"])
    assert ledger.reserve("1", Resources(gpus=0.5)).gpus == ("GPU-a",)
    assert ledger.reserve("2", Resources(gpus=0.6)).gpus == ("GPU-b",)
    assert ledger.reserve("3", Resources(gpus=0.4)).gpus == ("GPU-b",)
    assert ledger.reserve("4", Resources(gpus=0.5)).gpus == ("GPU-a",)
    assert ledger.reserve("5", Resources(gpus=1)).gpus == ("GPU-c",)


def test_whole_gpus_are_whole() -> None:
    ledger = Ledger(8, ["0", "1"])
    ledger.reserve("share", Resources(gpus=0.1))
    with pytest.raises(
        ResourcesShortError, match=r"asks for 2 GPU, the machine has 2 of which 1\.9 free \(held: share 0\.1\)"
    ):
        ledger.reserve("both", Resources(gpus=2))
    assert ledger.reserve("one", Resources(gpus=1)).gpus == ("1",)


def test_a_refusal_names_all_that_is_short_and_gives_nothing() -> None:
    ledger = Ledger(4, [])
    for n in range(10):
        ledger.reserve(f"p{n}", Resources(cpus=0.3))
    with pytest.raises(ResourcesShortError) as refused:
        ledger.reserve("new", Resources(cpus=1.5, gpus=1))
    holders = ", ".join(f"p{n} 0.3" for n in range(8))
    assert str(refused.value) == (
        f"new does not fit on this machine: it asks for 1.5 CPU, the machine has 4 of which 1 free "
        f"(held: {holders} and 2 more); it asks for 1 GPU, the machine has 0"
    )
    assert ledger.reserve("new", Resources(cpus=1)).cpus == 1.0


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf"), 1e-9])
@pytest.mark.parametrize("option", ["cpus", "gpus"])
def test_an_amount_that_is_none_is_refused_by_name(option: str, amount: float) -> None:
    with pytest.raises(OptionError, match=rf"num_{option}="):
        Ledger(4, ["0"]).reserve("a", Resources(**{option: amount}))


def test_a_number_of_gpus_that_is_neither_whole_nor_a_share_is_refused() -> None:
    with pytest.raises(OptionError, match=r"num_gpus=1\.5 is neither a whole number nor a share"):
        Ledger(4, ["0", "1", "2"]).reserve("a", Resources(gpus=1.5))


def test_a_holder_holds_once() -> None:
    ledger = Ledger(4, [])
    ledger.reserve("a", Resources(cpus=1))
    with pytest.raises(ValueError, match="a holds resources already"):
        ledger.reserve("a", Resources())
    ledger.release("a")
    ledger.release("a")
    ledger.reserve("a", Resources(cpus=4))


GPU_AMOUNTS = st.one_of(st.integers(0, 3).map(float), st.floats(0.0001, 0.9999))


class LedgerMachine(RuleBasedStateMachine):
    """Against the plainest possible account of the same grants."""

    def __init__(self) -> None:
        super().__init__()
        self.gpus = ("0", "1", "2")
        self.ledger = Ledger(4, self.gpus)
        self.held: dict[str, tuple[float, dict[str, float]]] = {}
        self.next = 0

    def free(self, gpu: str) -> float:
        return 1 - sum(shares.get(gpu, 0.0) for _, shares in self.held.values())

    @rule(cpus=st.floats(0, 5), gpus=GPU_AMOUNTS)
    def reserve(self, cpus: float, gpus: float) -> None:
        holder = f"h{self.next}"
        self.next += 1
        cpus, gpus = round(cpus, 3), round(gpus, 3)
        cpus_fit = cpus <= 4 - sum(amount for amount, _ in self.held.values()) + 1e-6
        if gpus >= 1:
            gpus_fit = sum(1 for gpu in self.gpus if self.free(gpu) > 1 - 1e-6) >= gpus
        else:
            gpus_fit = gpus == 0 or any(self.free(gpu) >= gpus - 1e-6 for gpu in self.gpus)
        wanted = Resources(cpus=cpus, gpus=gpus)
        if not (cpus_fit and gpus_fit):
            with pytest.raises(ResourcesShortError) as refused:
                self.ledger.reserve(holder, wanted)
            assert ("CPU" in str(refused.value)) == (not cpus_fit)
            assert ("GPU" in str(refused.value)) == (not gpus_fit)
            return
        grant = self.ledger.reserve(holder, wanted)
        share = 1.0 if gpus >= 1 else gpus
        assert len(grant.gpus) == (gpus if gpus >= 1 else (gpus > 0))
        self.held[holder] = (cpus, dict.fromkeys(grant.gpus, share))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(sorted(self.held)))
        self.ledger.release(holder)
        del self.held[holder]

    @invariant()
    def never_over_the_capacity(self) -> None:
        assert sum(cpus for cpus, _ in self.held.values()) <= 4 + 1e-6
        assert all(self.free(gpu) >= -1e-6 for gpu in self.gpus)


TestLedgerMachine = LedgerMachine.TestCase


@given(st.lists(st.floats(0.001, 2), max_size=30))
def test_after_all_is_released_all_is_free(amounts: list[float]) -> None:
    ledger = Ledger(3, [])
    for n, amount in enumerate(amounts):
        try:
            ledger.reserve(str(n), Resources(cpus=amount))
        except ResourcesShortError:
            continue
    for n in range(len(amounts)):
        ledger.release(str(n))
    assert ledger.reserve("all", Resources(cpus=3)).cpus == 3.0
