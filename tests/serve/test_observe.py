"""serve.observe: what is refused, and that what is reported reaches the revision that it belongs to."""

from __future__ import annotations

import asyncio
import decimal
import fractions
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace import serve
from headrace.controller.ledger import Ledger
from headrace.core.traffic import Split
from headrace.handle.origin import new_request_id
from headrace.serve.testing import TestInstance
from headrace.spec.counts import Moments
from headrace.spec.errors import InstanceError, OptionError, OptionTypeError


@serve.deployment
class Model:
    def __init__(self, answer: int) -> None:
        self.answer = answer

    async def __call__(self, *_: Any) -> int:
        serve.observe("answer", self.answer)
        return self.answer

    def in_thread(self) -> int:
        serve.observe("in thread", 1, app_name="app")
        return self.answer

    async def of_another(self, request_id: str) -> None:
        serve.observe("other", 1.0, request_id=request_id)

    async def fail(self) -> None:
        raise RuntimeError("broken")


def ledger_of(instance: TestInstance) -> Ledger:
    return instance._instance._begun.controller.ledger


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        (("", 1), {"key": "k"}, OptionError, "must be a text of 1 to 100 characters"),
        (("x" * 101, 1), {"key": "k"}, OptionError, "must be a text of 1 to 100 characters"),
        ((7, 1), {"key": "k"}, OptionError, "name=7"),
        (("sold", math.nan), {"key": "k"}, OptionError, "value=nan must be a finite number"),
        (("sold", math.inf), {"key": "k"}, OptionError, "finite"),
        (("sold", 1e200), {"key": "k"}, OptionError, "squared"),
        (("sold", "1"), {"key": "k"}, OptionError, "value='1' must be a finite number"),
        (("sold", None), {"key": "k"}, OptionTypeError, "value=None must be a finite number"),
        (("sold", 10**400), {"key": "k"}, OptionTypeError, "finite"),
        (("sold", 1), {}, OptionError, "name the request by request_id"),
        (("sold", 1), {"request_id": ""}, OptionError, "request_id='' must be"),
        (("sold", 1), {"key": 7}, OptionError, "key=7 must be"),
        (("sold", 1), {"key": "k" * 2000}, OptionError, "key='kkk"),
        (("sold", 1), {"key": "k", "at": math.nan}, OptionError, "at=nan"),
        (("sold", 1), {"key": "k", "at": 1.8e12}, OptionError, "at=1800000000000.0 must be in seconds since the epoch"),
        (("sold", 1), {"key": "k", "at": -60}, OptionError, "at=-60 must be in seconds since the epoch"),
        (("sold", 1), {"key": "k", "app_name": ""}, OptionError, "app_name=''"),
    ],
)
def test_what_is_no_report_is_refused(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        serve.observe(*arguments, **options)


def test_without_an_instance_there_is_nobody_to_report_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.setenv("HEADRACE_INSTANCE", "none-such")
    monkeypatch.delenv("HEADRACE_RUNTIME_DIR", raising=False)
    with pytest.raises(InstanceError, match="no instance 'none-such' is running"):
        serve.observe("sold", 1, key="k", app_name="app")


def test_a_deployment_reports_of_the_request_that_it_works_for() -> None:
    async def test() -> None:
        async with TestInstance() as instance:
            handle = await instance.run(Model.bind(3), "app")
            assert [await handle.remote() for _ in range(3)] == [3, 3, 3]
            await handle.in_thread.remote()
            ledger = ledger_of(instance)
            await until(lambda: "in thread" in ledger.metrics("app", 1))
            assert ledger.metrics("app", 1) == {"answer": Moments(3, 9.0, 27.0), "in thread": Moments(1, 1.0, 1.0)}

    asyncio.run(test())


def test_later_a_request_is_known_by_its_id_and_users_by_their_key() -> None:
    async def test() -> None:
        async with TestInstance() as instance:
            handle = await instance.run(Model.bind(1), "app")
            await instance.run(Model.bind(2), "app")
            weights = {1: 0.5, 2: 0.5}
            await instance.call(serve.set_traffic, "app", weights)
            controller = instance._instance._begun.controller
            at = controller.timelines.of("app").entries[-1].at + 60  # a minute after the weights changed
            split, ledger = Split(weights.items(), "app"), ledger_of(instance)
            ids = [new_request_id() for _ in range(30)]
            for each in ids:
                await instance.call(serve.observe, "good", split.of(each), request_id=each, at=at)
            for value in (True, decimal.Decimal("0.5"), fractions.Fraction(1, 4)):
                await instance.call(serve.observe, "sold", value, key="user 7", app_name="app", at=at)
            await handle.of_another.remote(ids[0])  # made a moment ago, when the weights had just changed
            await until(lambda: sum(m.count for n in (1, 2) for m in ledger.metrics("app", n).values()) >= 33)
            for number in (1, 2):
                count = sum(split.of(each) == number for each in ids)
                assert ledger.metrics("app", number)["good"] == Moments(count, count * number, count * number**2)
            assert ledger.metrics("app", split.of("user 7"))["sold"] == Moments(3, 1.75, 1.3125)
            await until(lambda: ledger.unattributed)
            assert ledger.unattributed == {"app": 1}

    asyncio.run(test())


def test_requests_are_counted_by_revision_from_the_door_to_the_ledger() -> None:
    async def test() -> None:
        async with TestInstance() as instance, instance.http_client() as http:
            handle = await instance.run(Model.bind(1), "app")
            ledger = ledger_of(instance)
            for _ in range(5):
                assert (await http.get("/")).status_code == 200
            for _ in range(2):
                with pytest.raises(RuntimeError, match="broken"):
                    await handle.fail.remote()
            await until(lambda: ledger.totals("app", 1, "Model").requests == 7)
            total = ledger.totals("app", 1, "Model")
            assert total.errors == 2
            assert sum(total.latency.values()) == 5

    asyncio.run(test())


def test_an_application_must_be_named_where_there_are_several() -> None:
    async def test() -> None:
        async with TestInstance() as instance:
            await instance.run(Model.bind(1), "one", "/one")
            await instance.run(Model.bind(1), "two", "/two")
            with pytest.raises(OptionError, match="which application is meant: one, two"):
                await instance.call(serve.observe, "sold", 1, key="k")

    asyncio.run(test())


def test_reports_from_a_thread_do_not_wait() -> None:
    async def test() -> None:
        async with TestInstance() as instance:
            await instance.run(Model.bind(1), "app")
            ledger = ledger_of(instance)

            def report() -> None:
                for i in range(2500):
                    serve.observe("sold", i % 2, key=f"user {i}", app_name="app")

            before = threading.active_count()
            await instance.call(report)
            await until(lambda: ledger.metrics("app", 1).get("sold", Moments()).count == 2500)
            assert threading.active_count() < before + 50

    asyncio.run(test())


_SCRIPT = """
import subprocess, sys, time
from headrace import serve
from headrace.serve.driver import driver

@serve.deployment
def model():
    return 1

serve.run(model.bind(), name="app", route_prefix=None)
report = "from headrace import serve; serve.observe('sold', 4.5, key='user', at=1.0)"
subprocess.run([sys.executable, "-c", report], check=True)
give_up = time.monotonic() + 30
# That nobody knows whom it belongs to, the controller says in the instance's log.
while not any("sold=4.5" in log.read_text() for log in driver().directory().path.rglob("*.log")):
    assert time.monotonic() < give_up, "the report did not arrive"
    time.sleep(0.01)
serve.shutdown()
"""


def test_what_a_script_reports_last_leaves_before_it_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
