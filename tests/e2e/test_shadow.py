"""Shadows in real processes: whatever they do, every request is answered by the primary, and rightly."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import shadow_apps
from shadow_apps import Model, Shared

from bench.instance import Instance, alive, wait_for
from headrace import runtime as runtimes
from headrace import serve
from headrace.serve import Shadow
from headrace.spec.counts import Mirrored

HERE = Path(__file__).parent
REQUESTS = 40


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("shadow")
    instance = Instance(folder / "home", "shadow_apps:app", HERE)
    instance.env["SHADOW_HANGS"] = str(folder / "hangs")
    with pytest.MonkeyPatch.context() as patch, instance:
        instance.ready()
        patch.setenv("HEADRACE_HOME", instance.env["HEADRACE_HOME"])
        patch.setenv("HEADRACE_INSTANCE", instance.name)
        yield instance
        runtimes.close_own()


def mirror(app: Any, **fields: Any) -> None:
    """The application's next revision is the shadow of the present one, and stays that."""
    serve.run(app, rollout=Shadow(promote=False, duration_s=3600, analysis=(), **fields))
    wait_for(lambda: serve.rollout_status("default").shadow > 0, "it is mirrored")


def mirrored() -> Mirrored:
    return serve.rollout_status("default").mirrored or Mirrored()


def ask(instance: Instance, requests: int = REQUESTS) -> None:
    """Requests at once, each of which is answered as the primary does."""

    def one(number: int) -> None:
        status, body, _ = instance.ask(f"/?n={number}")
        assert (status, json.loads(body)) == (200, {"number": number, "score": 0.5})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(requests)))


def until(count: str, least: int) -> Mirrored:
    wait_for(lambda: getattr(mirrored(), count) >= least, f"{count} of {mirrored()}")
    return mirrored()


@pytest.fixture(autouse=True)
def _end(instance: Instance) -> Iterator[None]:
    yield
    serve.abort_rollout("default")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", "the shadow failed: ValueError: not"),
        ("is killed", "the shadow failed: ReplicaDiedError: replica Model#"),
        ("answers hugely", "the shadow failed: its answer is longer than 1048576 bytes"),
    ],
)
def test_a_shadow_that_fails_fails_nobody(instance: Instance, how: str, said: str) -> None:
    mirror(Model.bind(how))
    ask(instance)
    seen = until("failed", 1)
    assert seen.compared == seen.differed == seen.failed
    assert {example.reason[: len(said)] for example in seen.examples} == {said}
    ask(instance)


@pytest.mark.parametrize("how", ["hangs", "blocks its loop"])
def test_a_shadow_that_hangs_delays_nobody(instance: Instance, how: str) -> None:
    mirror(Model.options(max_ongoing_requests=5).bind(how))
    for _ in range(3):
        ask(instance)
    seen = until("skipped", 3 * REQUESTS - 20)  # all but those that hang there
    assert 1 <= seen.sent <= 20


def test_answers_are_compared_and_differences_shown(instance: Instance) -> None:
    mirror(Model.bind("is wrong"))
    ask(instance)
    seen = until("differed", 1)
    assert seen.failed == 0
    for example in seen.examples:
        number = json.loads(example.primary)["number"]
        assert json.loads(example.shadow)["number"] == number + 1
        assert example.reason == f"$.number: {number} against {number + 1}"


def test_numbers_are_compared_with_a_tolerance_and_by_functions(instance: Instance) -> None:
    mirror(Model.bind("is near"), compare=serve.numeric(rtol=0.01))
    ask(instance)
    assert (until("compared", 1).differed, mirrored().failed) == (0, 0)
    serve.abort_rollout("default")
    mirror(Model.bind("is near"), compare=shadow_apps.same_number)
    ask(instance)
    assert (until("compared", 1).differed, mirrored().failed) == (0, 0)


def test_a_comparison_that_hangs_delays_nobody(instance: Instance) -> None:
    hangs = Path(instance.env["SHADOW_HANGS"])
    hangs.touch()
    try:
        mirror(Model.options(max_ongoing_requests=5).bind("is near"), compare=shadow_apps.hanging)
        for _ in range(3):
            ask(instance)
        until("skipped", 1)
        assert mirrored().compared == 0
    finally:
        hangs.unlink()
    until("compared", 1)


def test_what_a_shadow_calls_knows_that_it_is_mirrored(instance: Instance) -> None:
    mirror(Model.bind("asks", Shared.bind()))
    ask(instance, 5)
    seen = until("differed", 1)
    answers = [json.loads(example.shadow) for example in seen.examples]
    revision = serve.rollout_status("default").revision
    assert all((a["mirrored"], a["priority"], a["revision"]) == (True, -10, revision) for a in answers)


def test_an_ingress_that_is_killed_is_followed_by_one_that_mirrors(instance: Instance) -> None:
    mirror(Model.bind("is wrong"))
    ask(instance, 5)
    before = until("compared", 5)
    pids = [pid for name, pid in instance.children().items() if name.startswith("ingress")]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), "it has gone")
    instance.ready()
    ask(instance, 5)
    assert until("compared", before.compared + 1).failed == 0
