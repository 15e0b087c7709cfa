"""headrace.core.changes: what changed between two revisions, in lines that a person reads and that tell no secret."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.changes import LONGEST_VALUE, MOST_LINES, changes
from headrace.spec.application import ApplicationSpec, DeploymentSpec, ImportedCode
from headrace.spec.options import DeploymentOptions
from headrace.spec.sticky import Sticky

PARTS = {"code": "c1", "arguments": "a1", "resources": "r1"}


def deployment(name: str = "Digits", digest: str = "1", parts: dict[str, str] | None = None, **options: Any) -> Any:
    return DeploymentSpec(
        name=name,
        code=ImportedCode("module", name),
        arguments=b"",
        options=DeploymentOptions(**options),
        digest=digest,
        max_ongoing_requests=1,
        parts=PARTS if parts is None else parts,
    )


def application(*deployments: DeploymentSpec, **fields: Any) -> ApplicationSpec:
    fields = {"name": "app", "route_prefix": "/", "ingress": "Digits", "deployments": deployments} | fields
    return ApplicationSpec(**fields)


ONE = application(deployment())


def test_of_the_first_revision_everything_is_new() -> None:
    assert changes(None, application(deployment("A"), deployment("B"))) == ("A: added", "B: added")


def test_nothing_changed() -> None:
    assert changes(ONE, ONE) == ()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"code": "c2"}, "Digits: code changed"),
        ({"arguments": "a2"}, "Digits: arguments changed"),
        ({"code": "c2", "arguments": "a2"}, "Digits: code and arguments changed"),
    ],
)
def test_code_and_arguments_are_told_apart(changed: dict[str, str], line: str) -> None:
    assert changes(ONE, application(deployment(digest="2", parts=PARTS | changed))) == (line,)


def test_what_could_not_be_taken_apart_counts_as_changed() -> None:
    assert changes(ONE, application(deployment(digest="2", parts={}))) == (
        "Digits: code, arguments or resources changed",
    )


def test_resources_are_told_as_the_options_that_they_are() -> None:
    after = deployment(digest="2", parts=PARTS | {"resources": "r2"}, num_cpus=0.5)
    assert changes(ONE, application(after)) == ("Digits: num_cpus None → 0.5",)


def test_options() -> None:
    after = deployment(num_replicas=4, graceful_shutdown_timeout_s=2.0, hedge=True)
    lines = changes(ONE, application(after))
    assert lines[0] == "Digits: num_replicas 1 → 4"
    assert lines[1].startswith("Digits: hedge None → ")
    assert lines[2:] == ("Digits: graceful_shutdown_timeout_s 20 → 2",)


def test_deployments_that_come_and_go() -> None:
    after = application(deployment("Ranker"), deployment("Digits"))
    assert changes(ONE, after) == ("Ranker: added",)
    assert changes(after, ONE) == ("Ranker: removed",)


def test_the_application_itself() -> None:
    after = msgspec.structs.replace(
        ONE,
        route_prefix="/v2",
        request_timeout_s=2.0,
        sticky=Sticky(of="cookie", name="uid"),
        history=3,
        labels={"commit": "1f00ba2"},
    )
    assert changes(ONE, after) == (
        "route_prefix / → /v2",
        "request_timeout_s None → 2",
        "sticky None → of=cookie, name=uid",
        "revision_history_limit 10 → 3",
        "labels: commit added",
    )


def test_secrets_stay_secret() -> None:
    before = application(deployment(environment={"KEY": "s3cret", "GONE": "s3cret"}, user_config={"token": "s3cret"}))
    after = application(deployment(environment={"KEY": "t0psecret", "NEW": "s3cret"}, user_config={"token": "x"}))
    lines = changes(before, after)
    assert lines == (
        "Digits: environment: KEY changed, NEW added, GONE removed",
        "Digits: user_config: token changed",
    )
    assert changes(before, application(deployment(environment=before.deployments[0].options.environment))) == (
        "Digits: user_config changed",
    )


def test_a_thousand_changes_are_not_all_told() -> None:
    lines = changes(None, application(*(deployment(f"D{number}") for number in range(1000))))
    assert len(lines) == MOST_LINES + 1
    assert lines[-1] == "900 more changes"
    config = {str(number): 0 for number in range(1000)}
    (line,) = changes(application(deployment(user_config={})), application(deployment(user_config=config)))
    assert line.endswith("7 added, 992 more")


@given(st.text(min_size=1), st.text(min_size=1))
def test_every_change_is_one_short_line(one: str, other: str) -> None:
    before, after = (msgspec.structs.replace(ONE, route_prefix=prefix, labels={prefix: "1"}) for prefix in (one, other))
    lines = changes(before, after)
    assert bool(lines) == (one != other)
    assert all(line.isprintable() and len(line) < 3 * LONGEST_VALUE + 50 for line in lines)
    assert changes(before, before) == ()
