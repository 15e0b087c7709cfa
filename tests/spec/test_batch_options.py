"""headrace.spec.batching: valid options or an error that names the one that is not; how much a replica must take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from headrace.spec.batching import MARK, BatchOptions, batch_options, least_ongoing
from headrace.spec.errors import OptionError, OptionTypeError


def marked(function: Callable[..., Any], **given: Any) -> Any:
    setattr(function, MARK, batch_options(given))
    return function


def test_by_default_ten_at_most_leave_at_once() -> None:
    assert batch_options({}) == BatchOptions(
        max_batch_size=10,
        batch_wait_timeout_s=0.0,
        max_concurrent_batches=1,
        target_latency_s=None,
        allowed_batch_sizes=(),
    )


@pytest.mark.parametrize(
    "given",
    [
        {"max_batch_size": 1},
        {"max_batch_size": 1 << 20, "max_concurrent_batches": 1024},
        {"batch_wait_timeout_s": 0},
        {"batch_wait_timeout_s": 3600.0},
        {"target_latency_s": 1e-6},
        {"target_latency_s": 2},
        {"target_latency_s": None},
        {"max_batch_size": 8, "allowed_batch_sizes": (8,)},
        {"max_batch_size": 7, "allowed_batch_sizes": [1, 4, 8]},
        {"allowed_batch_sizes": None},
        {"allowed_batch_sizes": []},
    ],
)
def test_what_is_allowed(given: dict[str, Any]) -> None:
    options = batch_options(given)
    assert isinstance(options.allowed_batch_sizes, tuple)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=BatchOptions) == options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_batch_size": 0}, "batch: max_batch_size=0 must be a whole number from 1 to 1048576"),
        ({"max_batch_size": 10**400}, "must be a whole number from 1 to 1048576"),
        ({"max_concurrent_batches": 0}, "batch: max_concurrent_batches=0 must be a whole number from 1 to 1024"),
        ({"batch_wait_timeout_s": -0.1}, "batch: batch_wait_timeout_s=-0.1 must be a number of seconds, from 0"),
        ({"batch_wait_timeout_s": float("nan")}, "batch_wait_timeout_s=nan must be a number of seconds, from 0"),
        ({"batch_wait_timeout_s": float("inf")}, "batch_wait_timeout_s=inf must be a number of seconds, from 0"),
        ({"batch_wait_timeout_s": 10**400}, "must be a number of seconds, from 0 to 3600"),
        ({"target_latency_s": 0}, "batch: target_latency_s=0 must be a number of seconds above 0"),
        ({"target_latency_s": -1.0}, "batch: target_latency_s=-1.0 must be a number of seconds above 0"),
        ({"target_latency_s": float("nan")}, "target_latency_s=nan must be a number of seconds above 0"),
        ({"allowed_batch_sizes": (4, 8)}, "the last at least max_batch_size=10"),
        ({"allowed_batch_sizes": (0, 16)}, "must be whole numbers that grow"),
        ({"allowed_batch_sizes": (8, 8, 16)}, "must be whole numbers that grow"),
        ({"allowed_batch_sizes": (32, 16)}, "must be whole numbers that grow"),
    ],
)
def test_what_is_not(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        batch_options(given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_batch_size": 1.0}, "batch: max_batch_size=1.0 must be a whole number from 1 to 1048576, not float"),
        ({"max_batch_size": True}, "max_batch_size=True must be a whole number"),
        ({"max_batch_size": "8"}, "max_batch_size='8' must be a whole number"),
        ({"max_batch_size": None}, "max_batch_size=None must be a whole number"),
        ({"max_concurrent_batches": 2.5}, "max_concurrent_batches=2.5 must be a whole number"),
        ({"batch_wait_timeout_s": "1"}, "batch_wait_timeout_s='1' must be a number of seconds"),
        ({"batch_wait_timeout_s": None}, "batch_wait_timeout_s=None must be a number of seconds"),
        ({"target_latency_s": False}, "target_latency_s=False must be a number of seconds above 0"),
        ({"allowed_batch_sizes": 8}, "allowed_batch_sizes=8 must be whole numbers that grow"),
        ({"allowed_batch_sizes": "8"}, "allowed_batch_sizes='8' must be whole numbers that grow"),
        ({"allowed_batch_sizes": (8, 16.0)}, "allowed_batch_sizes=(8, 16.0) must be whole numbers that grow"),
        ({"allowed_batch_sizes": (True, 16)}, "allowed_batch_sizes=(True, 16) must be whole numbers that grow"),
        ({"max_batchsize": 8}, "batch has no 'max_batchsize': did you mean 'max_batch_size'?"),
        ({"target_latency_ms": 8}, "batch has no 'target_latency_ms': did you mean 'target_latency_s'?"),
        ({"zzz": 8}, "batch has no 'zzz': there is max_batch_size, batch_wait_timeout_s"),
    ],
)
def test_what_is_of_a_wrong_type_or_unknown(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionTypeError) as caught:
        batch_options(given)
    assert message in str(caught.value)


class TestLeastOngoing:
    def test_a_function_has_its_own(self) -> None:
        def predict(items: list[int]) -> list[int]:
            return items

        assert least_ongoing(predict) == 0
        assert least_ongoing(marked(predict, max_batch_size=8, max_concurrent_batches=3)) == 48

    def test_a_class_has_that_of_its_largest_method_of_any_kind(self) -> None:
        class Model:
            def plain(self) -> None: ...

            @staticmethod
            def size(items: list[int]) -> int:
                return 1

        assert least_ongoing(Model) == 0

        def batched(self: Model, items: list[int]) -> list[int]:
            return items

        def stream(self: Model, items: list[int]) -> Any:
            yield items

        async def astream(self: Model, items: list[int]) -> Any:
            yield items

        Model.batched = marked(batched, max_batch_size=4)  # type: ignore[attr-defined]
        assert least_ongoing(Model) == 8
        Model.stream = marked(stream, max_batch_size=5)  # type: ignore[attr-defined]
        assert least_ongoing(Model) == 10
        Model.astream = marked(astream, max_batch_size=6)  # type: ignore[attr-defined]
        assert least_ongoing(Model) == 12
        Model.static = staticmethod(marked(lambda items: items, max_batch_size=7))  # type: ignore[attr-defined]
        assert least_ongoing(Model) == 14
        Model.of_class = classmethod(marked(lambda cls, items: items, max_batch_size=8))  # type: ignore[attr-defined]
        assert least_ongoing(Model) == 16

        class Derived(Model):
            pass

        assert least_ongoing(Derived) == 16

    def test_nothing_of_the_class_is_run(self) -> None:
        class Model:
            @property
            def trouble(self) -> int:
                raise AssertionError("looked at")

            def __getattr__(self, name: str) -> int:
                raise AssertionError("looked at")

        assert least_ongoing(Model) == 0
