"""What users say of deployments and applications comes to every router as they said it: built, sent, stored by the
controller, published, taken up as a difference.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import serve
from headrace.controller.store import Store
from headrace.core.fleet import Application
from headrace.core.publication import build_snapshot
from headrace.serve.graph import build
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.snapshot import Snapshot, SnapshotDelta, apply, diff
from headrace.wire.control import Deploy, MessageBuffer, Request, encode

counts = st.integers(1, 10_000)
seconds = st.floats(0.001, 86_400) | st.integers(1, 86_400)
given_options = st.fixed_dictionaries(
    {},
    optional={
        "num_replicas": st.integers(1, 50),
        "max_ongoing_requests": st.none() | counts,
        "max_queued_requests": st.just(-1) | counts,
        "repeatable": st.booleans(),
        "backpressure_config": st.none()
        | st.fixed_dictionaries(
            {}, optional={"status_code": st.sampled_from([503, 429]), "retry_after_s": st.none() | seconds}
        ),
        "retry_budget": st.none()
        | st.floats(0, 1)
        | st.integers(0, 1)
        | st.fixed_dictionaries({}, optional={"ratio": st.floats(0, 1), "per_second": st.floats(0, 1e6)}),
        "user_config": st.none() | st.dictionaries(st.text(), st.integers(-9, 9)),
    },
)
marked = st.dictionaries(st.sampled_from(["pay", "look", "__call__"]), st.sampled_from([None, False]))


def model(marks):
    """A class whose methods are marked so."""

    class Model:
        def __call__(self, request):
            return 1

        def pay(self):
            return 2

        def look(self):
            return 3

    for name, repeatable in marks.items():
        setattr(Model, name, serve.method(repeatable=repeatable)(getattr(Model, name)))
    return Model


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store") / "state.db")
    store.open()
    yield store
    store.close()


@settings(max_examples=60, deadline=None)
@given(options=given_options, marks=marked, timeout_s=st.none() | seconds)
def test_what_is_said_is_what_routers_know(store, options, marks, timeout_s):
    spec = build(serve.deployment(**options)(model(marks)).bind(), "app", "/", timeout_s)
    (sent,) = MessageBuffer().feed(encode(Request(1, Deploy(spec))))
    store.keep_revision(Application(name="app", target=1, current=1, revisions={1: sent.operation.spec}), 1)
    kept = store.applications()["app"]
    published = build_snapshot([kept], "default", 7, ingress_workers=1)
    news = msgspec.msgpack.decode(msgspec.msgpack.encode(diff(Snapshot(version=6), published)), type=SnapshotDelta)
    known = apply(Snapshot(version=6), news)

    assert kept.spec == spec
    assert known == published
    assert known.applications["app"].request_timeout_s == timeout_s
    (entry,) = known.deployments.values()
    said = serve.deployment(**options)(model({}))._options
    assert entry.repeatable is options.get("repeatable", True)
    assert set(entry.unrepeatable) == {name for name, repeatable in marks.items() if repeatable is False}
    assert (entry.retry_ratio, entry.retry_per_second) == (said.retry_budget.ratio, said.retry_budget.per_second)
    backpressure = options.get("backpressure_config") or {}
    assert entry.busy_status == backpressure.get("status_code", 503)
    assert entry.retry_after_s == backpressure.get("retry_after_s")
    assert entry.max_queued_requests == options.get("max_queued_requests", 1000)
    assert spec.deployments[0].digest == build(serve.deployment(model(marks)).bind()).deployments[0].digest


HOSTILE = [
    *(None, True, False, 0, -1, 2, 1.5, float("nan"), float("inf"), -0.0, 10**30, 1e308, 10**400),
    *("", "503", "\0", "x" * 10_000, b"\xff", [], {}, {"a": 1}, {1: 2}, {"ratio": "x"}, {"status_code": [503]}),
    *(object(), int, lambda: 0, {"retry_after_s": {}}, {"per_second": -0.1}),
]


@pytest.mark.parametrize("name", ["backpressure_config", "retry_budget", "repeatable", "max_queued_requests"])
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:30])
def test_a_hostile_value_is_taken_as_it_is_or_named_with_its_option(name, value):
    wrong = None
    try:
        msgspec.msgpack.encode(build(serve.deployment(**{name: value})(model({})).bind()))
    except (OptionError, OptionTypeError) as error:
        wrong = str(error)
    assert wrong is None or (name in wrong and ("must be" in wrong or "has no" in wrong))


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:30])
def test_a_hostile_time_is_taken_as_it_is_or_named(value):
    wrong = None
    try:
        msgspec.msgpack.encode(build(serve.deployment(model({})).bind(), request_timeout_s=value))
    except (OptionError, OptionTypeError) as error:
        wrong = str(error)
    assert wrong is None or ("request_timeout_s=" in wrong and "must be a number of seconds above 0" in wrong)
