"""headrace.spec.snapshot: a difference applied gives the new snapshot, survives the wire, and is as small as can be."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.spec.snapshot import (
    ApplicationEntry,
    DeploymentEntry,
    ReplicaEntry,
    RevisionEntry,
    Snapshot,
    SnapshotDelta,
    apply,
    diff,
)

names = st.sampled_from(["a", "b", "c", "d"])

deployments = st.builds(
    DeploymentEntry,
    key=names,
    app=names,
    name=names,
    max_ongoing_requests=st.integers(1, 3),
    max_queued_requests=st.integers(1, 3),
    failed=st.sampled_from(["", "no room"]),
    replicas=st.lists(st.builds(ReplicaEntry, names, st.just("unix:/r")), max_size=3).map(tuple),
)
applications = st.builds(
    ApplicationEntry,
    name=names,
    route_prefix=st.none() | st.just("/"),
    ingress=names,
    revisions=st.lists(
        st.builds(
            RevisionEntry,
            number=st.integers(1, 3),
            weight=st.floats(0, 1),
            deployments=st.dictionaries(names, names),
        ),
        max_size=2,
    ).map(tuple),
)


def snapshots(versions: st.SearchStrategy[int]) -> st.SearchStrategy[Snapshot]:
    return st.builds(
        Snapshot,
        version=versions,
        applications=st.dictionaries(names, applications),
        deployments=st.dictionaries(names, deployments),
    )


@given(snapshots(st.integers(0, 9)), snapshots(st.integers(10, 19)))
def test_a_difference_applied_gives_the_new_snapshot(old: Snapshot, new: Snapshot) -> None:
    delta = diff(old, new)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(delta), type=SnapshotDelta)

    assert sent == delta
    assert apply(old, sent) == new


@given(snapshots(st.integers(0, 9)), snapshots(st.integers(10, 19)))
def test_a_difference_names_only_what_changed(old: Snapshot, new: Snapshot) -> None:
    delta = diff(old, new)

    for key, entry in delta.deployments.items():
        assert old.deployments.get(key) != entry
    for name, application in delta.applications.items():
        assert old.applications.get(name) != application
    assert set(delta.removed_deployments) == old.deployments.keys() - new.deployments.keys()
    assert set(delta.removed_applications) == old.applications.keys() - new.applications.keys()


@given(snapshots(st.just(4)), snapshots(st.just(5)), snapshots(st.integers(6, 9)))
def test_a_difference_from_another_version_is_refused(old: Snapshot, new: Snapshot, other: Snapshot) -> None:
    with pytest.raises(ValueError, match=f"from version 4 .* to version {other.version}"):
        apply(other, diff(old, new))


@given(snapshots(st.integers(0, 9)))
def test_a_snapshot_survives_the_wire(snapshot: Snapshot) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=Snapshot) == snapshot
