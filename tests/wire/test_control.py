"""Control messages: what is sent is what arrives, in whatever pieces; what is none is an error and nothing worse."""

from __future__ import annotations

import struct
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.spec.application import ApplicationSpec, DeploymentSpec, Environment, ImportedCode, PickledCode
from headrace.spec.config import HTTPOptions
from headrace.spec.counts import Counted, Mirrored, Signal
from headrace.spec.errors import ProtocolError
from headrace.spec.options import DeploymentOptions
from headrace.spec.rollout import (
    BlueGreen,
    Canary,
    Command,
    Comparison,
    Disagreement,
    ErrorRate,
    Latency,
    Metric,
    ShadowTraffic,
)
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
from headrace.spec.status import History, ReplicaState, RevisionRecord, RolloutStatus, ServeStatus
from headrace.spec.sticky import Sticky
from headrace.wire.control import (
    MAX_CONTROL_BYTES,
    Answer,
    ControlRollout,
    CountsReport,
    Delete,
    DeltaMessage,
    Deploy,
    Deployed,
    DescribeReplica,
    Done,
    DrainReplica,
    EndProcess,
    Failed,
    GetHistory,
    GetNotes,
    GetPack,
    GetRevision,
    GetRollout,
    GetSnapshot,
    GetStatus,
    Hello,
    HostReplica,
    IngressReport,
    KeepNotes,
    Message,
    MessageBuffer,
    NodeReport,
    Notes,
    Operation,
    Pack,
    Past,
    Progress,
    ReconfigureReplica,
    ReplicaReport,
    Request,
    Response,
    Revision,
    Rollback,
    Rollout,
    SetShadow,
    SetTraffic,
    Shutdown,
    Signals,
    SnapshotAck,
    SnapshotMessage,
    StartHTTP,
    Status,
    Subscribe,
    encode,
)

SPEC = DeploymentSpec(
    name="D",
    code=PickledCode(b"\x80\x05" * 100),
    arguments=b"args",
    options=DeploymentOptions(user_config={"a": [1, None, 2.5]}),
    digest="0123456789abcdef",
    max_ongoing_requests=100,
    uses=("E",),
)
APP = ApplicationSpec(
    name="app",
    route_prefix="/x",
    ingress="D",
    deployments=(SPEC, msgspec.structs.replace(SPEC, name="E", code=ImportedCode("m", "E"), uses=())),
    environment=Environment(sys_path=("/a",), cwd="/b", variables={"K": "v"}),
)
SNAPSHOT = Snapshot(
    version=3,
    applications={"app": ApplicationEntry(name="app", route_prefix=None, ingress="D", revisions=())},
    deployments={
        "k": DeploymentEntry(
            key="k",
            app="app",
            name="D",
            max_ongoing_requests=1,
            max_queued_requests=2,
            replicas=(ReplicaEntry("D#1", "unix:/x"),),
        )
    },
)
CANARY = Canary(steps=((0.1, None),), analysis=(ErrorRate(), Latency(), Disagreement(), Metric(name="m", max=1.0)))
MESSAGES: list[Message] = [
    Hello(role="worker", id="D#1@app", pid=3),
    Subscribe(7),
    SnapshotMessage(SNAPSHOT),
    DeltaMessage(diff(Snapshot(), SNAPSHOT)),
    SnapshotAck(9),
    HostReplica(
        replica_id="D#1",
        app="app",
        key="k",
        revision=1,
        spec=SPEC,
        environment=Environment(),
        address="unix:/x",
    ),
    DrainReplica("D#1", 2.5),
    ReconfigureReplica("D#1", SPEC),
    DescribeReplica("D#1"),
    EndProcess(1.5),
    NodeReport(id="n1", host="10.0.0.1"),
    ReplicaReport(
        replica_id="D#1", app="a", key="k", revision=1, state=ReplicaState.FAILED, address="", pid=1, error="é\n"
    ),
    IngressReport(ingress_id="ingress#0", pid=1, host="::1", port=65535, draining=True),
    *(
        Request(number, operation)
        for number, operation in enumerate(
            [
                Deploy(APP),
                Deploy(APP, rollout=CANARY, until="ready", expected=3, by="me", packs={"p": b"\0"}),
                Delete("app"),
                SetTraffic(app="app", weights={1: 0.9, 2: 0.1}, sticky=Sticky(of="cookie", name="uid")),
                SetShadow(app="app", shadows={2: ShadowTraffic(fraction=0.5, compare=Comparison(kind="numeric"))}),
                ControlRollout(app="app", command=Command.ABORT, reason="é"),
                Rollback(app="app", revision=2, rollout=BlueGreen(hold_s=1.0)),
                GetRollout("app"),
                GetHistory("app"),
                KeepNotes({"a": b"1", "b": None}, absent=("a",)),
                GetNotes("a"),
                GetRevision("app", 3),
                GetPack("p"),
                GetStatus(),
                GetSnapshot(),
                StartHTTP(HTTPOptions(port=0)),
                Shutdown(),
            ]
        )
    ),
    *(
        Response(number, answer)
        for number, answer in enumerate(
            [
                Deployed("app", 1, 2),
                Done(),
                Status(ServeStatus()),
                Rollout(RolloutStatus(app="app", revision=2, weights={1: 1.0}, mirrored=Mirrored(sent=3))),
                Notes({"a": b"1"}),
                Pack(b"\0\xff"),
                Past(History(app="app", revisions=(RevisionRecord(number=1, at=0.5, changes=("D: added",)),))),
                Revision(2, APP, {"p": b"\0\xff"}),
                SnapshotMessage(SNAPSHOT),
                Failed("E", "m"),
            ]
        )
    ),
    Progress(1, "line"),
    CountsReport((Counted(app="app", revision=1, deployment="D", requests=3, latency={7: 3}, mirrored=Mirrored()),)),
    Signals((Signal(app="app", name="clicks", value=1.0, key="eve"),)),
]


def test_every_kind_of_message_is_among_them() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(Message))
    assert {type(each.operation) for each in MESSAGES if isinstance(each, Request)} == set(get_args(Operation))
    assert {type(each.answer) for each in MESSAGES if isinstance(each, Response)} == set(get_args(Answer))


@given(st.lists(st.sampled_from(MESSAGES), max_size=8), st.data())
def test_messages_arrive_as_they_were_sent_in_whatever_pieces(messages: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(encode, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    buffer = MessageBuffer()
    got: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += buffer.feed(stream[start:end])
    assert got == messages


@given(st.binary(max_size=300))
def test_bytes_are_messages_or_an_error(data: bytes) -> None:
    buffer = MessageBuffer()
    try:
        got = buffer.feed(data)
    except ProtocolError:
        return
    assert all(isinstance(message, get_args(Message)) for message in got)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_changed_byte_is_a_message_an_error_or_waits_for_more(message: Message, data: st.DataObject) -> None:
    stream = bytearray(encode(message))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] = data.draw(st.integers(0, 255))
    try:
        got = MessageBuffer().feed(bytes(stream))
    except ProtocolError:
        return
    assert len(got) <= len(stream)


@pytest.mark.parametrize("config", [b"\x91" * 100_000, b"\x81\x80\x01", b"\xa1\xff"])
def test_values_that_cannot_be_are_an_error(config: bytes) -> None:
    mark = b"\xa5HERE!"
    spec = msgspec.structs.replace(SPEC, options=DeploymentOptions(user_config="HERE!"))
    body = encode(ReconfigureReplica("D#1", spec))[4:].replace(mark, config)
    with pytest.raises(ProtocolError, match="not a control message"):
        MessageBuffer().feed(struct.pack("<I", len(body)) + body)


def test_a_message_over_the_limit_is_refused_before_it_comes() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        MessageBuffer().feed(struct.pack("<I", MAX_CONTROL_BYTES + 1))


def test_options_that_are_not_allowed_do_not_come_over_the_wire() -> None:
    body = msgspec.msgpack.decode(encode(Request(1, StartHTTP(HTTPOptions())))[4:])
    body["operation"]["options"]["port"] = 10**6
    data = msgspec.msgpack.encode(body)
    with pytest.raises(ProtocolError, match="port"):
        MessageBuffer().feed(struct.pack("<I", len(data)) + data)


names = st.sampled_from(["a", "b", "c"])
applications = st.dictionaries(
    names,
    st.builds(
        ApplicationEntry,
        name=names,
        route_prefix=st.sampled_from([None, "/"]),
        ingress=names,
        revisions=st.lists(
            st.builds(
                RevisionEntry,
                number=st.integers(1, 3),
                weight=st.sampled_from([0.0, 1.0]),
                deployments=st.dictionaries(names, names),
            ),
            max_size=2,
        ).map(tuple),
    ),
)
deployments = st.dictionaries(
    names,
    st.builds(
        DeploymentEntry,
        key=names,
        app=names,
        name=names,
        max_ongoing_requests=st.integers(1, 2),
        max_queued_requests=st.integers(1, 2),
        replicas=st.lists(st.builds(ReplicaEntry, id=names, address=names), max_size=2).map(tuple),
    ),
)


lost = st.lists(names, max_size=2).map(tuple)


@given(applications, deployments, lost, applications, deployments, lost)
def test_a_difference_turns_one_snapshot_into_the_other(
    before_apps: dict[str, ApplicationEntry],
    before_deployments: dict[str, DeploymentEntry],
    before_lost: tuple[str, ...],
    after_apps: dict[str, ApplicationEntry],
    after_deployments: dict[str, DeploymentEntry],
    after_lost: tuple[str, ...],
) -> None:
    before = Snapshot(
        version=4, instance="i", applications=before_apps, deployments=before_deployments, lost=before_lost
    )
    after = Snapshot(version=7, instance="i", applications=after_apps, deployments=after_deployments, lost=after_lost)
    (message,) = MessageBuffer().feed(encode(DeltaMessage(diff(before, after))))
    assert isinstance(message, DeltaMessage)
    assert apply(before, message.delta) == after
    with pytest.raises(ValueError, match="from version 4 cannot be applied to version 7"):
        apply(after, message.delta)


def test_no_difference_is_small() -> None:
    assert diff(SNAPSHOT, SNAPSHOT) == SnapshotDelta(from_version=3, to_version=3)
