"""When a batch leaves, why, and with whom; who is refused; what errors of a measure do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest

from headrace.core.batch_cost import LEAST_BATCHES
from headrace.core.batching import LATE_SHARE, Batch, Batcher, Reason
from headrace.core.lateness import PROBE_EVERY
from headrace.spec.batching import BatchOptions
from headrace.spec.errors import OptionError, OptionTypeError


def batcher_of(measure: Callable[[Sequence[str]], int] | None = None, **given: Any) -> Batcher[str]:
    return Batcher(BatchOptions(**given), measure)


def add(batcher: Batcher[str], names: str, now: float = 0.0, key: Hashable = None, **more: Any) -> None:
    """An item for each letter."""
    for name in names:
        batcher.add(name, key, now, **more)


def gone(batch: Batch[str] | None) -> str:
    return "nobody" if batch is None else "".join(batch.items)


def taught(fixed_s: float, row_s: float, **given: Any) -> Batcher[str]:
    """A batcher that knows what batches of 1 to 16 cost, at time 0, where nothing waits and nothing runs."""
    batcher = batcher_of(**given)
    for rows in [1, 2, 4, 8, 16] * LEAST_BATCHES:
        batcher.cost.observe(rows, fixed_s + row_s * rows)
    return batcher


class TestIdle:
    def test_what_waits_leaves_at_once_and_what_comes_meanwhile_leaves_together(self) -> None:
        batcher = batcher_of(max_batch_size=4)
        assert batcher.next(0.0) is None
        assert batcher.due() is None
        add(batcher, "a")
        first = batcher.next(0.0)
        assert first is not None
        assert (first.items, first.key, first.size, first.padded_size) == (["a"], None, 1, 1)
        assert (first.reason, first.started_at) == (Reason.IDLE, 0.0)
        add(batcher, "bcd", 0.001)
        assert batcher.next(0.001) is None
        assert batcher.due() is None, "nothing is to be done before the batch ends"
        assert repr(batcher) == "<Batcher 3 waiting, 1 running, <BatchCost not known, 0 seen>>"
        batcher.ended(first, 0.002)
        second = batcher.next(0.002)
        assert gone(second) == "bcd"
        assert second is not None
        assert second.reason is Reason.FREED
        assert repr(second) == "<Batch of 3, 3 rows, key None, freed>"

    def test_a_batch_has_at_most_so_many_and_so_many_run_at_once(self) -> None:
        batcher = batcher_of(max_batch_size=2, max_concurrent_batches=2)
        add(batcher, "abcdefg")
        batches = [batcher.next(0.0) for _ in range(3)]
        assert [gone(batch) for batch in batches] == ["ab", "cd", "nobody"]
        assert batcher.running == 2
        assert batches[1] is not None
        assert batches[1].reason is Reason.FULL
        batcher.ended(batches[1], 0.1)
        assert gone(batcher.next(0.1)) == "ef"
        assert batcher.releases == {**dict.fromkeys(Reason, 0), Reason.FULL: 3}

    def test_it_is_not_freed_when_nobody_waited_for_it(self) -> None:
        batcher = batcher_of()
        add(batcher, "a")
        batch = batcher.next(0.0)
        assert batch is not None
        batcher.ended(batch, 1.0)
        assert batcher.next(1.0) is None
        add(batcher, "b", 1.0)
        second = batcher.next(1.0)
        assert second is not None
        assert second.reason is Reason.IDLE

    def test_an_item_waits_once(self) -> None:
        batcher = batcher_of()
        add(batcher, "a")
        for key in (None, "another"):
            with pytest.raises(ValueError, match="'a' waits already"):
                add(batcher, "a", key=key)
        assert gone(batcher.next(0.0)) == "a"
        assert batcher.due() is None
        assert batcher.next(0.0) is None

    def test_one_that_leaves_is_no_longer_there(self) -> None:
        batcher = batcher_of()
        add(batcher, "abc")
        assert batcher.discard("b")
        assert not batcher.discard("b")
        assert not batcher.discard("z")
        assert gone(batcher.next(0.0)) == "ac"
        assert not batcher.discard("a"), "what runs does not wait"

    def test_when_all_of_a_key_leave_it_is_forgotten(self) -> None:
        batcher = batcher_of()
        add(batcher, "ab", key=1)
        add(batcher, "c", key=2)
        assert batcher.discard("a")
        assert batcher.discard("b")
        assert gone(batcher.next(0.0)) == "c"
        assert batcher.waiting == 0

    def test_cancellations_while_a_batch_hangs_leave_nothing_behind(self) -> None:
        batcher = batcher_of()
        add(batcher, "a")
        assert gone(batcher.next(0.0)) == "a"
        add(batcher, "b", key="first")
        for number in range(10_000):
            add(batcher, "c", key=number)
            batcher.discard("c")
        assert len(batcher._turns) < 1000


class TestWindow:
    def test_the_eldest_waits_so_long(self) -> None:
        batcher = batcher_of(max_batch_size=4, batch_wait_timeout_s=0.01)
        add(batcher, "a", 1.0)
        assert batcher.next(1.0) is None
        assert batcher.due() == 1.01
        add(batcher, "b", 1.009)
        assert batcher.next(1.009) is None
        assert batcher.due() == 1.01
        batch = batcher.next(1.01)
        assert gone(batch) == "ab"
        assert batch is not None
        assert batch.reason is Reason.TIMEOUT

    def test_a_full_batch_leaves_at_once(self) -> None:
        batcher = batcher_of(max_batch_size=2, batch_wait_timeout_s=10.0)
        add(batcher, "abc")
        batch = batcher.next(0.0)
        assert gone(batch) == "ab"
        assert batch is not None
        assert batch.reason is Reason.FULL
        batcher.ended(batch, 0.1)
        assert batcher.next(0.1) is None
        assert batcher.due() == 10.0

    def test_waiting_elsewhere_counts(self) -> None:
        batcher = batcher_of(batch_wait_timeout_s=0.01)
        add(batcher, "a", 1.0, waited_s=0.004)
        assert batcher.due() == pytest.approx(1.006)
        add(batcher, "b", 1.0, waited_s=0.05)
        assert gone(batcher.next(1.0)) == "ba", "whose window was over when it came; the other one goes along"

    def test_when_the_eldest_leaves_the_window_is_that_of_the_next(self) -> None:
        batcher = batcher_of(batch_wait_timeout_s=0.01)
        add(batcher, "a", 1.0)
        add(batcher, "b", 1.005)
        batcher.discard("a")
        assert batcher.due() == pytest.approx(1.015)

    def test_one_of_high_priority_does_not_renew_it(self) -> None:
        batcher = batcher_of(batch_wait_timeout_s=0.01)
        add(batcher, "a", 1.0)
        add(batcher, "b", 1.009, priority=1)
        assert gone(batcher.next(1.01)) == "ba"

    def test_what_was_ready_while_the_model_worked_leaves_because_it_came_free(self) -> None:
        batcher = batcher_of(batch_wait_timeout_s=0.01)
        add(batcher, "a", 1.0)
        first = batcher.next(1.01)
        assert first is not None
        add(batcher, "b", 1.011)
        batcher.ended(first, 1.1)
        second = batcher.next(1.1)
        assert second is not None
        assert second.reason is Reason.FREED

    def test_what_comes_free_early_waits_on(self) -> None:
        batcher = batcher_of(batch_wait_timeout_s=0.01)
        add(batcher, "a", 1.0)
        first = batcher.next(1.01)
        assert first is not None
        add(batcher, "b", 1.011)
        batcher.ended(first, 1.012)
        assert batcher.next(1.012) is None
        second = batcher.next(1.021)
        assert second is not None
        assert second.reason is Reason.TIMEOUT

    def test_a_deadline_cuts_it_short(self) -> None:
        batcher = taught(0.002, 0.0, batch_wait_timeout_s=1.0)
        add(batcher, "a", 10.0)
        add(batcher, "b", 10.0, deadline=10.05)
        due = batcher.due()
        assert due == pytest.approx(10.048, abs=0.001)
        assert batcher.next(10.04) is None
        batch = batcher.next(due)
        assert gone(batch) == "ab"
        assert batch is not None
        assert batch.reason is Reason.DEADLINE

    def test_while_costs_are_not_known_a_deadline_changes_nothing(self) -> None:
        batcher = batcher_of(batch_wait_timeout_s=1.0)
        add(batcher, "a", 10.0, deadline=10.05)
        assert batcher.due() == 11.0

    def test_the_objective_cuts_it_short(self) -> None:
        batcher = taught(0.002, 0.0, batch_wait_timeout_s=1.0, target_latency_s=0.05)
        add(batcher, "a", 10.0)
        assert batcher.due() == pytest.approx(10.048, abs=0.001)


class TestKeys:
    def test_keys_never_share_a_batch(self) -> None:
        batcher = batcher_of(max_concurrent_batches=3)
        add(batcher, "a", key="x")
        add(batcher, "b", key="y")
        add(batcher, "c", key="x")
        batches = [batcher.next(0.0) for _ in range(3)]
        assert [gone(batch) for batch in batches] == ["ac", "b", "nobody"]
        assert [batch.key for batch in batches if batch is not None] == ["x", "y"]

    def test_a_full_batch_goes_before_one_whose_window_is_not_over(self) -> None:
        batcher = batcher_of(max_batch_size=2, batch_wait_timeout_s=0.01)
        add(batcher, "a", 1.0, key="x")
        add(batcher, "bc", 1.001, key="y")
        first = batcher.next(1.001)
        assert gone(first) == "bc"
        assert first is not None
        batcher.ended(first, 1.002)
        assert batcher.next(1.002) is None
        assert gone(batcher.next(1.01)) == "a"

    def test_one_whose_window_is_over_goes_before_a_full_one_that_came_later(self) -> None:
        batcher = batcher_of(max_batch_size=2, batch_wait_timeout_s=0.01)
        add(batcher, "a", 1.0, key="x")
        add(batcher, "bc", 1.001, key="y")
        assert gone(batcher.next(1.02)) == "a"

    def test_priority_goes_across_keys(self) -> None:
        batcher = batcher_of()
        add(batcher, "a", 0.5, key="x")
        add(batcher, "b", 1.0, key="y", priority=1)
        add(batcher, "c", 1.4, key="z", priority=-1)
        order = []
        while (batch := batcher.next(1.4)) is not None:
            order.append(gone(batch))
            batcher.ended(batch, 1.4)
        assert order == ["b", "a", "c"]

    def test_a_busy_key_starves_no_other(self) -> None:
        batcher: Batcher[object] = Batcher(BatchOptions(max_batch_size=4))
        alone = object()
        for _ in range(8):
            batcher.add(object(), "busy", 0.0)
        batcher.add(alone, "quiet", 0.0)
        for turn in range(4):
            batch = batcher.next(turn * 1.0)
            assert batch is not None
            if alone in batch.items:
                break
            for _ in range(8):
                batcher.add(object(), "busy", turn + 0.5)
            batcher.ended(batch, turn + 1.0)
        assert turn == 2


class TestConfigure:
    def test_it_holds_for_what_waits(self) -> None:
        batcher = batcher_of(max_batch_size=10, batch_wait_timeout_s=5.0)
        add(batcher, "abc", 0.0)
        batcher.configure(BatchOptions(max_batch_size=2, batch_wait_timeout_s=5.0))
        first = batcher.next(0.0)
        assert gone(first) == "ab"
        assert first is not None
        batcher.configure(BatchOptions(max_batch_size=2, max_concurrent_batches=2))
        assert gone(batcher.next(0.0)) == "c"
        assert batcher.running == 2

    def test_fewer_at_once_than_run(self) -> None:
        batcher = batcher_of(max_batch_size=1, max_concurrent_batches=3)
        add(batcher, "abcd")
        running = [batcher.next(0.0) for _ in range(3)]
        batcher.configure(BatchOptions(max_batch_size=1, max_concurrent_batches=1))
        for batch in running[:2]:
            assert batch is not None
            batcher.ended(batch, 1.0)
            assert batcher.next(1.0) is None
        assert running[2] is not None
        batcher.ended(running[2], 1.0)
        assert gone(batcher.next(1.0)) == "d"

    def test_an_objective_reorders_and_its_end_restores(self) -> None:
        batcher = batcher_of(batch_wait_timeout_s=1.0)
        add(batcher, "ab", 1.0)
        add(batcher, "c", 1.0, deadline=1.4)
        batcher.configure(BatchOptions(target_latency_s=0.5))
        cold = batcher.next(1.0)
        assert gone(cold) == "c", "alone, as nothing is known of larger batches"
        assert cold is not None
        batcher.ended(cold, 1.0)
        add(batcher, "d", 1.1, deadline=1.3)
        batcher.configure(BatchOptions())
        assert gone(batcher.next(1.2)) == "abd"


class TestObjective:
    def test_large_batches_are_approached_by_doubling(self) -> None:
        batcher = batcher_of(max_batch_size=64, target_latency_s=0.1)
        add(batcher, "abcdefghijklmnopqrstuvwxyz")
        sizes = []
        while (batch := batcher.next(0.0)) is not None:
            sizes.append(batch.size)
            batcher.ended(batch, 0.001)
        assert sizes == [1, 2, 4, 8, 11]

    def test_a_batch_is_as_large_as_the_earliest_deadline_allows(self) -> None:
        batcher = taught(0.002, 0.001, max_batch_size=16, target_latency_s=0.05)
        add(batcher, "a", 0.9605)  # 10.5 ms are left to it at 1.0: enough for 8
        add(batcher, "bcdefghijklm", 1.0)
        first = batcher.next(1.0)
        assert gone(first) == "abcdefgh"
        assert first is not None
        batcher.ended(first, 1.01)
        assert gone(batcher.next(1.01)) == "ijklm"

    def test_one_that_is_late_anyway_makes_no_batch_smaller(self) -> None:
        batcher = taught(0.002, 0.001, max_batch_size=16, target_latency_s=0.05)
        add(batcher, "a", 0.949)
        add(batcher, "bcdefghijklm", 1.0)
        assert gone(batcher.next(1.0)) == "bcdefghijklma", "where there is room it goes along"

    def test_late_ones_alone_go_in_batches_as_large_as_may_be(self) -> None:
        batcher = taught(0.002, 0.001, max_batch_size=16, target_latency_s=0.05)
        add(batcher, "abcdefghijklmnopqrst", 0.9)
        assert gone(batcher.next(1.0)) == "abcdefghijklmnop"

    def test_late_ones_have_their_share_while_others_take_all_room(self) -> None:
        batcher: Batcher[object] = Batcher(BatchOptions(max_batch_size=16, target_latency_s=0.05))
        for rows in [1, 2, 4, 8, 16] * 2:
            batcher.cost.observe(rows, 0.002)
        late = [object() for _ in range(40)]
        for item in late:
            batcher.add(item, None, 0.0)
        now, went = 1.0, 0
        for turn in range(1, 41):
            for _ in range(16):
                batcher.add(object(), None, now)
            batch = batcher.next(now)
            assert batch is not None
            assert batch.size == 16
            went += sum(item in late for item in batch.items)
            assert went <= turn * 16 * LATE_SHARE
            now += 0.002
            batcher.ended(batch, now)
            if went == len(late):
                break
        assert turn * 16 * LATE_SHARE <= len(late) + 16

    def test_late_ones_of_another_key_have_their_share_too(self) -> None:
        batcher: Batcher[object] = Batcher(BatchOptions(max_batch_size=16, target_latency_s=0.05))
        for rows in [1, 2, 4, 8, 16] * 2:
            batcher.cost.observe(rows, 0.002)
        for _ in range(8):
            batcher.add(object(), "quiet", 0.0)
        now, turns = 1.0, []
        for _ in range(6):
            for _ in range(20):
                batcher.add(object(), "busy", now)
            batch = batcher.next(now)
            assert batch is not None
            turns.append((batch.key, batch.size))
            now += 0.002
            batcher.ended(batch, now)
        assert turns.count(("quiet", 8)) == 1
        assert turns[0] == ("busy", 16)

    def test_an_objective_that_cannot_be_met_is_none(self) -> None:
        batcher = taught(0.1, 0.001, max_batch_size=16, target_latency_s=0.05)
        assert not batcher.attainable
        add(batcher, "abcdefghij", 1.0)
        assert gone(batcher.next(1.049)) == "abcdefghij"

    def test_whether_it_can_be_met_is_told_once_costs_are_known(self) -> None:
        batcher = batcher_of(target_latency_s=0.05)
        for _ in range(LEAST_BATCHES):
            assert batcher.attainable
            batcher.cost.observe(1, 0.1)
        assert not batcher.attainable
        assert batcher_of().attainable

    def test_batches_that_failed_teach_nothing(self) -> None:
        batcher = batcher_of()
        add(batcher, "a")
        batch = batcher.next(0.0)
        assert batch is not None
        batcher.ended(batch, 100.0, learn=False)
        assert batcher.cost.batches == 0


class TestShedding:
    def test_what_cannot_meet_its_own_deadline_even_alone_is_refused(self) -> None:
        batcher = taught(0.01, 0.001)
        add(batcher, "a", 1.0, deadline=1.005)
        add(batcher, "b", 1.0, deadline=1.1)
        add(batcher, "c", 1.0)
        assert gone(batcher.next(1.0)) == "bc"
        assert batcher.shed == ["a"]
        assert batcher.waiting == 0

    def test_without_knowledge_only_what_has_expired_is(self) -> None:
        batcher = batcher_of()
        add(batcher, "a", 1.0, deadline=1.001)
        add(batcher, "b", 1.0, deadline=0.999)
        assert gone(batcher.next(1.0)) == "a"
        assert batcher.shed == ["b"]

    def test_of_those_in_a_row_some_are_tried_so_that_a_wrong_belief_ends(self) -> None:
        batcher: Batcher[int] = Batcher(BatchOptions())
        for _ in range(LEAST_BATCHES):
            batcher.cost.observe(1, 1.0)
        tried = 0
        for number in range(10 * PROBE_EVERY):
            batcher.add(number, None, float(number), deadline=number + 0.5)
            batch = batcher.next(float(number))
            if batch is not None:
                tried += 1
                batcher.ended(batch, number + 0.01)  # the model is fast again
        assert len(batcher.shed) < 4 * PROBE_EVERY
        assert tried + len(batcher.shed) == 10 * PROBE_EVERY
        assert batcher.cost.curve(None).of(1) < 0.02

    def test_one_that_has_expired_is_never_tried(self) -> None:
        batcher = taught(0.01, 0.001)
        add(batcher, "abcdefghijklmnopqrstuvwxyz", 1.0, deadline=1.005)
        assert batcher.next(1.01) is None
        assert len(batcher.shed) == 26

    def test_a_batch_is_made_smaller_before_anybody_is_refused(self) -> None:
        batcher = taught(0.002, 0.001, max_batch_size=16)
        add(batcher, "a", 1.0, deadline=1.0045)  # time for 2
        add(batcher, "bcdefgh", 1.0, deadline=1.1)
        assert gone(batcher.next(1.0)) == "ab"
        assert batcher.shed == []

    def test_an_objective_alone_never_refuses(self) -> None:
        batcher = taught(0.01, 0.001, target_latency_s=0.05)
        add(batcher, "ab", 0.0)
        assert gone(batcher.next(10.0)) == "ab"
        assert batcher.shed == []


class TestMeasure:
    def test_it_counts_the_rows_of_a_batch(self) -> None:
        batcher = batcher_of(lambda items: sum(map(int, items)), max_batch_size=10)
        add(batcher, "34125")
        first = batcher.next(0.0)
        assert gone(first) == "3412"
        assert first is not None
        assert (first.size, first.reason) == (10, Reason.FULL)
        batcher.ended(first, 0.1)
        second = batcher.next(0.1)
        assert second is not None
        assert (gone(second), second.size, second.reason) == ("5", 5, Reason.FREED)

    def test_one_that_is_too_large_goes_alone(self) -> None:
        batcher = batcher_of(lambda items: sum(map(int, items)), max_batch_size=4, batch_wait_timeout_s=9.0)
        add(batcher, "91")
        first = batcher.next(0.0)
        assert first is not None
        assert (gone(first), first.size, first.reason) == ("9", 9, Reason.FULL)

    def test_rows_fill_a_window(self) -> None:
        batcher = batcher_of(lambda items: sum(map(int, items)), max_batch_size=4, batch_wait_timeout_s=9.0)
        add(batcher, "12")
        assert batcher.next(0.0) is None
        add(batcher, "3", 0.1)
        assert gone(batcher.next(0.1)) == "12"

    def test_items_of_no_rows_fill_a_batch_without_end(self) -> None:
        batcher = batcher_of(lambda items: sum(item != "a" for item in items), max_batch_size=2)
        batcher.add("b", None, 0.0)
        batcher.add("c", None, 0.0)
        for number in range(50):
            batcher.add(f"{number}", None, 0.0)
        assert gone(batcher.next(0.0)) == "bc"
        other: Batcher[int] = Batcher(BatchOptions(max_batch_size=2), lambda items: 0)
        for number in range(50):
            other.add(number, None, 0.0)
        batch = other.next(0.0)
        assert batch is not None
        assert (len(batch.items), batch.size) == (50, 0)

    def test_those_that_cannot_be_measured_fail_alone(self) -> None:
        def measure(items: Sequence[str]) -> int:
            return sum(map(int, items))

        batcher = batcher_of(measure)
        add(batcher, "1x2y3")
        assert gone(batcher.next(0.0)) == "123"
        assert [item for item, _ in batcher.failed] == ["x", "y"]
        assert all(isinstance(error, ValueError) for _, error in batcher.failed)
        assert batcher.waiting == 0

    def test_when_only_together_they_cannot_be_measured_all_fail(self) -> None:
        def measure(items: Sequence[str]) -> int:
            if len(items) > 1:
                raise ZeroDivisionError("together")
            return 1

        batcher = batcher_of(measure)
        add(batcher, "abc")
        assert batcher.next(0.0) is None
        assert [item for item, _ in batcher.failed] == ["a", "b", "c"]
        add(batcher, "d")
        assert gone(batcher.next(0.0)) == "d", "and the batcher lives"

    def test_in_a_window_too(self) -> None:
        batcher = batcher_of(lambda items: sum(map(int, items)), batch_wait_timeout_s=1.0)
        add(batcher, "1x")
        assert batcher.due() == -float("inf")
        assert batcher.next(0.0) is None
        assert [item for item, _ in batcher.failed] == ["x"]
        assert batcher.due() == 1.0

    @pytest.mark.parametrize("answer", [None, 1.0, float("nan"), "1", True, [1]])
    def test_an_answer_of_a_wrong_type_is_an_error(self, answer: object) -> None:
        batcher = batcher_of(lambda items: answer)  # type: ignore[arg-type,return-value]
        add(batcher, "a")
        assert batcher.next(0.0) is None
        ((item, error),) = batcher.failed
        assert item == "a"
        assert isinstance(error, OptionTypeError)
        assert "batch_size_fn answered" in str(error)

    @pytest.mark.parametrize("answer", [-1, 1 << 60, -(10**400)])
    def test_an_answer_that_is_no_number_of_rows_is_an_error(self, answer: int) -> None:
        batcher = batcher_of(lambda items: answer)
        add(batcher, "a")
        assert batcher.next(0.0) is None
        ((_, error),) = batcher.failed
        assert isinstance(error, OptionError)
        assert "must be a number of rows, 0 or more" in str(error)

    def test_deadlines_are_met_by_rows(self) -> None:
        batcher = Batcher(BatchOptions(max_batch_size=100), lambda items: 10 * len(items))
        for rows in [10, 20, 40, 80] * LEAST_BATCHES:
            batcher.cost.observe(rows, 0.002 + 0.0001 * rows)
        for name in "abcdefghij":
            batcher.add(name, None, 1.0, deadline=1.0065)
        first = batcher.next(1.0)
        assert first is not None
        assert first.size == 40


class TestPadding:
    def test_a_batch_is_padded_to_an_allowed_size(self) -> None:
        batcher = batcher_of(max_batch_size=8, allowed_batch_sizes=(2, 4, 8))
        add(batcher, "abc")
        batch = batcher.next(0.0)
        assert batch is not None
        assert (batch.size, batch.padded_size) == (3, 4)

    def test_one_just_above_a_size_leaves_its_rest_for_another_batch(self) -> None:
        batcher = batcher_of(max_batch_size=32, allowed_batch_sizes=(4, 32))
        add(batcher, "abcdef")
        first = batcher.next(0.0)
        assert first is not None
        assert (first.size, first.padded_size) == (4, 4)
        batcher.ended(first, 0.0)
        second = batcher.next(0.0)
        assert second is not None
        assert (second.size, second.padded_size) == (2, 4)

    def test_one_that_fills_half_of_a_size_stays_whole(self) -> None:
        batcher = batcher_of(max_batch_size=16, allowed_batch_sizes=(4, 16))
        add(batcher, "abcdefgh")
        batch = batcher.next(0.0)
        assert batch is not None
        assert (batch.size, batch.padded_size) == (8, 16)

    def test_what_is_larger_than_all_stays_as_it_is(self) -> None:
        batcher = batcher_of(lambda items: 100, max_batch_size=8, allowed_batch_sizes=(4, 8))
        add(batcher, "ab")
        batch = batcher.next(0.0)
        assert batch is not None
        assert (gone(batch), batch.size, batch.padded_size) == ("a", 100, 100)

    def test_costs_are_those_of_the_padded_size(self) -> None:
        batcher = taught(0.0, 0.001, max_batch_size=16, allowed_batch_sizes=(4, 16), target_latency_s=0.05)
        add(batcher, "a", 0.96)  # 10 ms are left: for 4, not for 16
        add(batcher, "bcdefghijklm", 1.0)
        first = batcher.next(1.0)
        assert gone(first) == "abcd"
