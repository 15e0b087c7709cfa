"""Options of `@serve.batch`: which are right, what they change, and how they are set while batches run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from batched_models import Model, all_of, doubled, on_loop

from headrace import serve
from headrace.spec.batching import BatchOptions
from headrace.spec.errors import OptionError, OptionTypeError, UserCodeError


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"max_batch_sise": 3}, OptionTypeError, "batch has no 'max_batch_sise': did you mean 'max_batch_size'"),
        ({"bucket": len}, OptionTypeError, "batch has no 'bucket': did you mean 'bucket_fn'"),
        ({"max_batch_size": 0}, OptionError, "max_batch_size=0 must be a whole number from 1"),
        ({"max_batch_size": 2.5}, OptionTypeError, "max_batch_size=2.5 must be a whole number"),
        ({"max_batch_size": True}, OptionTypeError, "max_batch_size=True must be a whole number"),
        ({"batch_wait_timeout_s": -1}, OptionError, "batch_wait_timeout_s=-1 must be a number of seconds"),
        ({"batch_wait_timeout_s": "1"}, OptionTypeError, "batch_wait_timeout_s='1' must be a number of seconds"),
        ({"max_concurrent_batches": 0}, OptionError, "max_concurrent_batches=0 must be"),
        ({"target_latency_s": 0}, OptionError, "target_latency_s=0 must be"),
        ({"allowed_batch_sizes": (4, 2)}, OptionError, r"allowed_batch_sizes=\(4, 2\) must be"),
        ({"allowed_batch_sizes": (4,)}, OptionError, r"the last at least max_batch_size=10"),
        ({"batch_size_fn": 3}, OptionTypeError, "batch_size_fn=3 must be a function, or None"),
        ({"bucket_fn": "len"}, OptionTypeError, "bucket_fn='len' must be a function, or None"),
        ({"pad_fn": len}, OptionError, "pad_fn is called where a batch is padded to one of allowed_batch_sizes"),
        ({"batch_size_fn": sum, "allowed_batch_sizes": (10,)}, OptionError, "allowed_batch_sizes need a pad_fn"),
    ],
)
def test_wrong_options_are_errors_where_they_are_written(options: Any, error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        serve.batch(**options)


@pytest.mark.parametrize("wrong", [Model, 3, serve.deployment(Model), doubled])
def test_what_cannot_be_batched(wrong: Any) -> None:
    with pytest.raises(OptionTypeError, match=r"decorates a function or a method|is batched already"):
        serve.batch(wrong)
    with pytest.raises(OptionTypeError):
        serve.batch(max_batch_size=3)(wrong)


def test_options_are_none_by_default_and_a_list_of_sizes_is_taken() -> None:
    made = serve.batch(
        batch_size_fn=None, pad_fn=None, bucket_fn=None, target_latency_s=None, allowed_batch_sizes=[4, 16]
    )(lambda items: items)
    assert made.batch_options == BatchOptions(allowed_batch_sizes=(4, 16))
    assert serve.batch()(lambda items: items).batch_options == BatchOptions()


def test_settings_are_checked_and_take_effect_while_batches_run() -> None:
    model = Model()
    with pytest.raises(OptionError, match="max_batch_size=0 must be"):
        model.double.set_max_batch_size(0)
    with pytest.raises(OptionTypeError, match="batch_wait_timeout_s='x' must be"):
        model.double.set_batch_wait_timeout_s("x")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="target_latency_s=0 must be"):
        model.double.set_target_latency_s(0)

    async def work() -> None:
        await model.double(0)
        model.double.set_max_batch_size(3)
        await asyncio.gather(*[model.double(i) for i in range(6)])
        await asyncio.to_thread(model.double.set_max_batch_size, 6)
        await asyncio.gather(*[model.double(i) for i in range(6)])
        model.double.set_batch_wait_timeout_s(60.0)
        await asyncio.gather(*[model.double(i) for i in range(6)])  # full: it does not wait
        waiting = asyncio.ensure_future(model.double(7))
        while not (batcher := next(iter(Model.double._state(model).batches.values())).batcher).waiting:
            await asyncio.sleep(0)
        assert batcher.due() is not None
        model.double.set_batch_wait_timeout_s(0.0)  # what waits need not any more
        await waiting

    on_loop(work)
    assert [len(batch) for batch in model.batches] == [1, 3, 3, 6, 6, 1]
    assert model.double.batch_options == BatchOptions(max_batch_size=6)


def test_settings_in_a_constructor_hold_from_the_first_batch() -> None:
    class Small(Model):
        def __init__(self) -> None:
            super().__init__()
            self.double.set_max_batch_size(1)
            self.triple.set_max_concurrent_batches(2)

    small = Small()

    async def work() -> None:
        await asyncio.gather(small.double(1), small.double(2))

    on_loop(work)
    assert small.batches == [[1], [2]]
    assert small.triple.batch_options.max_concurrent_batches == 2


def test_settings_of_the_class_are_those_of_its_instances() -> None:
    class Mine(Model):
        @serve.batch(max_batch_size=5)
        async def double(self, items: list[int]) -> list[int]:
            return items

    before = Mine()
    assert before.double._get_max_batch_size() == 5
    Mine.double.set_max_batch_size(7)
    Mine.double.set_batch_wait_timeout_s(0.5)
    assert before.double.batch_options == Mine().double.batch_options
    assert before.double._get_batch_wait_timeout_s() == 0.5
    assert Mine().double._get_max_batch_size() == 7


def test_more_batches_at_once() -> None:
    class Two:
        def __init__(self) -> None:
            self.together = threading.Barrier(2)

        @serve.batch(max_batch_size=1, max_concurrent_batches=2)
        def meet(self, items: list[int]) -> list[int]:
            self.together.wait(60)
            return items

    async def work() -> Any:
        two = Two()
        return await asyncio.gather(*[two.meet(i) for i in range(4)])

    assert on_loop(work) == [0, 1, 2, 3]


# ---- sizes, padding, buckets


def test_a_batch_is_full_by_what_its_items_count() -> None:
    seen: list[Any] = []

    @serve.batch(max_batch_size=10, batch_size_fn=sum)
    async def take(items: list[int]) -> list[int]:
        seen.append(items)
        return items

    async def work() -> None:
        await asyncio.gather(*[take(i) for i in (4, 4, 4, 30, 1)])

    on_loop(work)
    assert seen == [[4, 4], [4], [30], [1]] or seen == [[4, 4], [4, 1], [30]]


def test_batches_are_padded_to_allowed_sizes() -> None:
    seen: list[Any] = []

    @serve.batch(max_batch_size=8, allowed_batch_sizes=(4, 8))
    async def take(items: list[int]) -> list[int]:
        seen.append(items)
        return [item * 2 for item in items]

    def zeros(items: list[int], size: int) -> list[int]:
        return items + [0] * (size - len(items))

    @serve.batch(max_batch_size=4, allowed_batch_sizes=(2, 4), pad_fn=zeros)
    def take_two(items: list[int], others: list[int]) -> list[int]:
        seen.append((items, others))
        return [a + b for a, b in zip(items, others, strict=True)]

    async def work() -> Any:
        first = await asyncio.gather(*[take(i) for i in (1, 2, 3)])
        second = await asyncio.gather(*[take(i) for i in range(8)])
        third = await asyncio.gather(*[take_two(i, 10 * i) for i in (1, 2, 3)])
        return first, second, third

    assert on_loop(work) == ([2, 4, 6], [0, 2, 4, 6, 8, 10, 12, 14], [11, 22, 33])
    assert seen == [[1, 2, 3, 3], [0, 1, 2, 3, 4, 5, 6, 7], ([1, 2, 3, 0], [10, 20, 30, 0])]


def test_padding_of_generators_is_not_read() -> None:
    @serve.batch(max_batch_size=4, allowed_batch_sizes=(4,))
    async def each(items: list[int]) -> Any:
        assert len(items) == 4
        yield [f"a{item}" for item in items]
        yield [f"b{item}" for item in items]

    async def work() -> Any:
        return await asyncio.gather(all_of(each(1)), all_of(each(2)))

    assert on_loop(work) == [["a1", "b1"], ["a2", "b2"]]


def test_a_pad_fn_that_counts_rows_adds_what_items_it_likes() -> None:
    seen: list[Any] = []

    def pad(items: list[str], rows: int) -> list[str]:
        return [*items, "." * (rows - sum(map(len, items)))]

    @serve.batch(max_batch_size=16, allowed_batch_sizes=(8, 16), batch_size_fn=lambda t: sum(map(len, t)), pad_fn=pad)
    async def take(texts: list[str]) -> list[str]:
        seen.append(texts)
        return [text.upper() for text in texts]

    async def work() -> Any:
        return await asyncio.gather(take("abc"), take("de"))

    assert on_loop(work) == ["ABC", "DE"]
    assert seen == [["abc", "de", "..."]]


def test_items_of_different_buckets_never_share_a_batch() -> None:
    seen: list[Any] = []

    @serve.batch(bucket_fn=len)
    async def take(texts: list[str]) -> list[str]:
        seen.append(texts)
        return texts

    async def work() -> Any:
        return await asyncio.gather(*[take(text) for text in ("a", "bb", "c", "dd", "eee")])

    assert on_loop(work) == ["a", "bb", "c", "dd", "eee"]
    assert seen == [["a", "c"], ["bb", "dd"], ["eee"]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"pad_fn": lambda items, size: items},
        {"pad_fn": lambda items, size: 7},
        {"pad_fn": lambda items, size: 1 / 0},
        {"pad_fn": lambda items, size: exit(3)},
    ],
)
def test_a_wrong_pad_fn_fails_its_batch(wrong: Any) -> None:
    @serve.batch(max_batch_size=4, allowed_batch_sizes=(2, 4), **wrong)
    async def take(items: list[int]) -> list[int]:
        return items

    async def work() -> Any:
        return await asyncio.gather(*[take(i) for i in (1, 2, 3)], return_exceptions=True), await asyncio.gather(
            take(4), take(5)
        )

    failed, well = on_loop(work)
    assert all(isinstance(error, Exception) for error in failed)
    assert well == [4, 5]


def _raises(error: BaseException) -> Callable[[Any], Any]:
    def function(item: Any) -> Any:
        if item in ("bad", ["bad"]) or (isinstance(item, list) and "bad" in item):
            raise error
        return 1 if not isinstance(item, list) else len(item)

    return function


@pytest.mark.parametrize("option", ["bucket_fn", "batch_size_fn"])
@pytest.mark.parametrize("error", [ValueError("of the item"), SystemExit(3), KeyboardInterrupt(), StopIteration()])
def test_what_sorts_items_fails_those_alone_for_which_it_raises(option: str, error: BaseException) -> None:
    @serve.batch(**{option: _raises(error)})
    async def take(items: list[str]) -> list[str]:
        return items

    async def work() -> Any:
        return await asyncio.gather(take("good"), take("bad"), take("better"), return_exceptions=True)

    good, bad, better = on_loop(work)
    assert (good, better) == ("good", "better")
    assert isinstance(bad, ValueError if isinstance(error, ValueError) else UserCodeError)


def test_a_bucket_must_be_hashable() -> None:
    @serve.batch(bucket_fn=lambda item: [item])
    async def take(items: list[str]) -> list[str]:
        return items

    async def work() -> None:
        with pytest.raises(TypeError, match="unhashable"):
            await take("x")

    on_loop(work)
