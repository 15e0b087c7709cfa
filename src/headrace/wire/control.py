"""The control protocol: what the controller, the ingress, workers and drivers say to each other, off the request path.

In: bytes of the private control socket. Out: the structs below. Each message is `u32 length | msgpack`, a tagged union.
Who says what:
  anyone      -> controller: Hello first, then Subscribe (to be sent snapshots), SnapshotAck
  controller  -> anyone subscribed: SnapshotMessage once, then DeltaMessage for each change
  worker      -> controller: ReplicaReport whenever its replica's state changes, after each (re)connect, when asked
  ingress     -> controller: IngressReport likewise
  anyone      -> controller: CountsReport now and then, while requests end; Signals
  controller  -> worker: HostReplica, DrainReplica, ReconfigureReplica, DescribeReplica (it is stopped by the engine)
  controller  -> worker, ingress: EndProcess, where the engine could not reach it
  node        -> controller: NodeReport every NODE_REPORT_S, from the agent of each node of an engine with several;
                             sent back, so that the agent knows that it was heard
  driver, CLI -> controller: Request (answered by one Response of the same id)
"""

from __future__ import annotations

import msgspec

from headrace.spec.application import ApplicationSpec, DeploymentSpec, Environment
from headrace.spec.config import HTTPOptions
from headrace.spec.counts import Counted, Signal
from headrace.spec.grpc import GrpcService
from headrace.spec.rollout import Command, ShadowTraffic, Strategy
from headrace.spec.snapshot import Snapshot, SnapshotDelta
from headrace.spec.status import History, ReplicaState, RolloutStatus, ServeStatus
from headrace.spec.sticky import Sticky
from headrace.wire.prefixed import PrefixedBuffer, prefixed

CONTROL_VERSION = 3
NODE_REPORT_S = 0.5
CONTROL_PURPOSE = "control"  # of the handshake, where the controller is reached over TCP
MAX_CONTROL_BYTES = 512 * 1024 * 1024  # a pickled model may be a constructor argument


class Hello(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The first message each way. `role` is `controller`, `ingress`, `worker`, `node`, `driver` or `cli`.

    `id` is unique. `node` is where the process runs, "" where there is but one.
    """

    role: str
    id: str
    pid: int
    node: str = ""
    version: int = CONTROL_VERSION


class Subscribe(msgspec.Struct, frozen=True, tag=True):
    """Send me snapshots. `have` is the version that the sender holds already (0 for none)."""

    have: int = 0


class SnapshotMessage(msgspec.Struct, frozen=True, tag=True):
    snapshot: Snapshot


class DeltaMessage(msgspec.Struct, frozen=True, tag=True):
    delta: SnapshotDelta


class SnapshotAck(msgspec.Struct, frozen=True, tag=True):
    """The sender routes by this version from now on."""

    version: int


class HostReplica(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Host this replica: load its code, construct it, listen on `address`, and report. On an engine with several nodes,
    the worker listens at a socket of that name in its own node's directory, and at an address for other nodes.

    Said to a worker at each hello until the controller has its first report: one that hosts the replica already only
    reports. `last_error` is what the last replica of this deployment failed with: the same again is told briefly.
    """

    replica_id: str
    app: str
    key: str
    revision: int
    spec: DeploymentSpec
    environment: Environment
    address: str
    last_error: str = ""


class EndProcess(msgspec.Struct, frozen=True, tag=True):
    """The place of this process was given to another while it could not be reached: drain for `grace_s`, and exit."""

    grace_s: float = 0.0


class NodeReport(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The node can be reached, and reaches the controller. `id` as in NodeInfo of the engine."""

    id: str
    host: str


class DrainReplica(msgspec.Struct, frozen=True, tag=True):
    """Take no new calls, finish those in work, then report STOPPED and exit; after `deadline_s` exit regardless."""

    replica_id: str
    deadline_s: float


class ReconfigureReplica(msgspec.Struct, frozen=True, tag=True):
    """Options of the replica changed in place: call `reconfigure` if `user_config` changed, then report.

    `told_at` is unique for the replica; the reports from then on repeat it.
    """

    replica_id: str
    spec: DeploymentSpec
    told_at: float = 0.0


class DescribeReplica(msgspec.Struct, frozen=True, tag=True):
    """Report now: somebody wants to know how many calls are in work."""

    replica_id: str


class ReplicaReport(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The state of a replica as its worker knows it. `error` carries the traceback of a failed start.

    `told_at` is that of the last ReconfigureReplica which is done (0: none was). `node` and `near` as in ReplicaEntry.
    """

    replica_id: str
    app: str
    key: str
    revision: int
    state: ReplicaState
    address: str
    pid: int
    ongoing: int = 0
    told_at: float = 0.0
    error: str = ""
    node: str = ""
    near: str = ""


class IngressReport(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """An ingress listens on host:port (`draining` once it has stopped to accept). `grpc_port` 0: it serves no gRPC."""

    ingress_id: str
    pid: int
    host: str
    port: int
    draining: bool = False
    grpc_port: int = 0
    node: str = ""


class CountsReport(msgspec.Struct, frozen=True, tag=True):
    """What the sender has counted since it began, as far as it changed since its last report. It began at `since`, in
    seconds since the epoch.
    """

    counted: tuple[Counted, ...]
    since: float = 0.0


class Signals(msgspec.Struct, frozen=True, tag=True):
    """Values that users report of requests."""

    signals: tuple[Signal, ...]


class Deploy(msgspec.Struct, frozen=True, tag=True):
    """Make the application so. `wait` False answers at once.

    Else answered when its rollout has ended (Deployed, with its outcome, or the error of why it was not promoted), or
    with `until` "ready" once the revision has its first traffic. `expected` is the newest revision that the deployer
    knows of (0: there is no such application; None: any): RevisionConflictError where it is another. `packs` are the
    source packs that `spec` names, by name. `parked`: keep the revision, and start nothing. `by` is who asks.
    """

    spec: ApplicationSpec
    wait: bool = True
    rollout: Strategy | None = None
    until: str = "end"
    expected: int | None = None
    by: str = ""
    packs: dict[str, bytes] = {}
    parked: bool = False


class Delete(msgspec.Struct, frozen=True, tag=True):
    """Delete the application; answered when its last replica is gone. `expected` is as for Deploy."""

    app: str
    expected: int | None = None


class SetTraffic(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Share the application's traffic so among these of its revisions, until it is changed. Answered when routers know.

    `sticky` None leaves what requests keep to a revision by as it is, `keyless` True does away with it.
    """

    app: str
    weights: dict[int, float]
    sticky: Sticky | None = None
    keyless: bool = False
    expected: int | None = None
    by: str = ""


class SetShadow(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Mirror these shares of the application's requests to these of its revisions, and to no other."""

    app: str
    shadows: dict[int, ShadowTraffic]
    by: str = ""


class ControlRollout(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Tell the rollout of the application. `revision` guards against another one's (0: whichever is under way)."""

    app: str
    command: Command
    revision: int = 0
    reason: str = ""
    by: str = ""
    wait: bool = True


class Rollback(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Go back: abort the rollout under way; else, or where `revision` is named, give the traffic to that revision (0:
    the last one before the present that was promoted). Answered as Deploy is.
    """

    app: str
    revision: int = 0
    rollout: Strategy | None = None
    by: str = ""
    reason: str = ""
    wait: bool = True


class GetRollout(msgspec.Struct, frozen=True, tag=True):
    """Answered by a Rollout: the one under way, or the last."""

    app: str


class GetHistory(msgspec.Struct, frozen=True, tag=True):
    """Answered by a Past."""

    app: str


class GetRevision(msgspec.Struct, frozen=True, tag=True):
    """Answered by a Revision: all that another instance needs to run it. 0: the one with the traffic."""

    app: str
    number: int = 0


class GetPack(msgspec.Struct, frozen=True, tag=True):
    """Answered by a Pack: the source pack of this name, for a node that does not have it yet."""

    name: str


class KeepNotes(msgspec.Struct, frozen=True, tag=True):
    """Keep these notes of a client's own for all clients, by name, and no more those that are None here.

    Refused (RevisionConflictError), all of it, where there is one of the names `absent` already.
    """

    notes: dict[str, bytes | None]
    absent: tuple[str, ...] = ()


class GetNotes(msgspec.Struct, frozen=True, tag=True):
    """Answered by the Notes whose names begin so."""

    prefix: str


class GetStatus(msgspec.Struct, frozen=True, tag=True):
    """Answered by a ServeStatus."""


class GetSnapshot(msgspec.Struct, frozen=True, tag=True):
    """Answered by the current Snapshot."""


class StartHTTP(msgspec.Struct, frozen=True, tag=True):
    """Have this many ingress processes with these options, which serve gRPC too if `grpc` is given. Answered when they
    listen.
    """

    options: HTTPOptions
    grpc: GrpcService | None = None


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Drain and stop all, the keeper last. Answered at once; the keeper's exit is the end."""


Operation = (
    Deploy
    | Delete
    | SetTraffic
    | SetShadow
    | ControlRollout
    | Rollback
    | GetRollout
    | GetHistory
    | GetRevision
    | GetPack
    | KeepNotes
    | GetNotes
    | GetStatus
    | GetSnapshot
    | StartHTTP
    | Shutdown
)


class Request(msgspec.Struct, frozen=True, tag=True):
    id: int
    operation: Operation


class Deployed(msgspec.Struct, frozen=True, tag=True):
    """The application runs at this revision; routers that know `version` of the snapshot know it. `outcome` is "" while
    its rollout is under way.
    """

    app: str
    revision: int
    version: int
    outcome: str = ""
    reason: str = ""


class Done(msgspec.Struct, frozen=True, tag=True):
    """It is done, and there is nothing to tell."""


class Status(msgspec.Struct, frozen=True, tag=True):
    status: ServeStatus


class Rollout(msgspec.Struct, frozen=True, tag=True):
    status: RolloutStatus


class Past(msgspec.Struct, frozen=True, tag=True):
    history: History


class Revision(msgspec.Struct, frozen=True, tag=True):
    """A revision as it was deployed, with its source packs."""

    number: int
    spec: ApplicationSpec
    packs: dict[str, bytes] = {}


class Pack(msgspec.Struct, frozen=True, tag=True):
    """The bytes of a source pack."""

    data: bytes


class Notes(msgspec.Struct, frozen=True, tag=True):
    """Notes that clients keep, by name."""

    notes: dict[str, bytes]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The operation failed: `error` names a class of `headrace.spec.errors`, `message` is its message."""

    error: str
    message: str


Answer = Deployed | Done | Status | Rollout | Past | Revision | Pack | Notes | SnapshotMessage | Failed


class Response(msgspec.Struct, frozen=True, tag=True):
    id: int
    answer: Answer


class Progress(msgspec.Struct, frozen=True, tag=True):
    """What is going on with the operation of this id, for a person to read."""

    id: int
    line: str


Message = (
    Hello
    | Subscribe
    | SnapshotMessage
    | DeltaMessage
    | SnapshotAck
    | HostReplica
    | DrainReplica
    | ReconfigureReplica
    | DescribeReplica
    | EndProcess
    | NodeReport
    | ReplicaReport
    | IngressReport
    | CountsReport
    | Signals
    | Request
    | Response
    | Progress
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The message with its length before it."""
    return prefixed(_encoder.encode(message))


class MessageBuffer(PrefixedBuffer[Message]):
    """Bytes in, whole messages out. Raises ProtocolError for what is too long or no message."""

    def __init__(self) -> None:
        super().__init__(_decoder.decode, MAX_CONTROL_BYTES, "control message")
