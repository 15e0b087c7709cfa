"""What the controller asks of those who keep its state: the seams, and nothing that keeps anything.

In: nothing. Out: the protocols that `store` and `packs` (files of one machine) and `kv_store` and `packs` (a store of
keys and values that outlives the machine) meet. By role, so that each part of the controller names what it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from headrace.core.attribution import Weights
from headrace.core.fleet import Application, Replica
from headrace.spec.application import ApplicationSpec
from headrace.spec.config import HTTPOptions
from headrace.spec.grpc import GrpcService
from headrace.spec.status import HistoryEvent, RevisionRecord


class KeyValues(Protocol):
    """A store of bytes by key that outlives its clients' machines. Keys are ASCII, values at most `PART_BYTES` long.

    All methods may block, and raise OSError when the store cannot be reached, or not within some seconds. A put or a
    delete that raised may have been carried out all the same, or may be later.
    """

    def get(self, key: str) -> bytes | None:
        """The value; None where there is none."""

    def put(self, key: str, value: bytes) -> None:
        """Put the value in the place of what is there. It is there, whole and for good, when this returns."""

    def delete(self, key: str) -> None:
        """Remove the key, if it is there."""

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin so."""


class KeptFacts(Protocol):
    """Facts of the instance, notes of its clients, and how the ingress should listen."""

    def fact(self, name: str) -> str:
        """A fact that was kept under this name, "" when none was."""

    def keep_fact(self, name: str, value: str) -> None:
        """Keep a fact under this name."""

    def notes(self, prefix: str) -> dict[str, bytes]:
        """The notes of clients whose names begin so, by name, in the order of their names."""

    def keep_notes(self, notes: Mapping[str, bytes | None]) -> None:
        """Keep these notes of clients, and no more those that are None here."""

    def http_options(self) -> HTTPOptions | None:
        """How the ingress should listen; None when it was never started."""

    def grpc_service(self) -> GrpcService | None:
        """The gRPC that the ingress should serve; None for none."""

    def keep_ingress(self, options: HTTPOptions, grpc: GrpcService | None) -> None:
        """Keep how the ingress should listen."""


class KeptApplications(Protocol):
    """Applications with their revisions and replicas."""

    def applications(self) -> dict[str, Application]:
        """All applications with their revisions and replicas (of which nothing but their names is known yet)."""

    def keep_application(self, app: Application) -> None:
        """Keep what is said of the application itself; not its revisions, not its replicas."""

    def keep_revision(self, app: Application, number: int) -> None:
        """Keep the application, this revision of it, and what a change in place would go back to, together."""

    def forget_revision(self, app: str, number: int) -> None:
        """Forget the revision."""

    def keep_replica(self, app: Application, replica: Replica) -> None:
        """Keep the replica, and that its number is used."""

    def forget_replica(self, app: str, id: str) -> None:
        """Forget the replica."""

    def forget_application(self, app: str) -> None:
        """Forget the application and all that belongs to it, but for its history."""


class KeptTimelines(Protocol):
    """The weights that applications had."""

    def timelines(self) -> dict[str, list[Weights]]:
        """The weights that each application had, in order."""

    def keep_weights(self, app: str, entry: Weights, begins: float) -> None:
        """Keep from when on the application had these weights, and forget those from before `begins`."""

    def forget_weights(self, app: str) -> None:
        """Forget the weights that the application had."""


class KeptHistory(Protocol):
    """What became of revisions: of applications that are, and of those that were."""

    def records(self) -> list[tuple[str, RevisionRecord]]:
        """What is kept of revisions, by application and number."""

    def events(self) -> list[tuple[str, HistoryEvent]]:
        """What happened, by application; of each in order."""

    def kept_specs(self) -> list[tuple[str, int, str]]:
        """Application, number and source pack of each revision whose specification is kept."""

    def kept_spec(self, app: str, number: int) -> ApplicationSpec | None:
        """The specification of a former revision, None when it is not kept."""

    def keep_spec(self, app: str, number: int, spec: ApplicationSpec) -> None:
        """Keep the specification of a revision for its history."""

    def forget_spec(self, app: str, number: int) -> None:
        """Let go of the specification of a former revision."""

    def keep_record(self, app: str, record: RevisionRecord) -> None:
        """Keep what became of a revision."""

    def forget_record(self, app: str, number: int) -> None:
        """Forget what became of a revision."""

    def keep_event(self, app: str, event: HistoryEvent, most: int) -> None:
        """Keep what happened, and no more than the last `most` of the application."""

    def forget_history(self, app: str) -> None:
        """Forget all that became of the application."""


class StateStore(KeptFacts, KeptApplications, KeptTimelines, KeptHistory, Protocol):
    """All that must outlive the controller. Methods are quick and synchronous, and none but `open` and `check` fails:
    what cannot be written now is written later, in its order. What is kept by one call is kept whole or not at all.
    """

    @property
    def set_aside(self) -> object | None:
        """Where that lies which could not be read, so that this began empty; None: all was read."""

    def open(self, superseded: Callable[[str], None]) -> None:
        """Read what is there, or begin. Raises InstanceError when neither can be done.

        `superseded` is called, from any thread, when another controller has taken over the state: this one had better
        leave all as it is and end. Nothing that it keeps from then on is kept.
        """

    def check(self) -> None:
        """Raise InstanceError when nothing can be written: before something is begun that should outlive us."""

    @property
    def settling(self) -> bool:
        """Whether something is on its way still, and as far as is known will be kept soon."""

    async def settled(self) -> None:
        """Wait until what was to be kept so far is. Returns at once where what stands behind cannot be waited for."""

    def forget_all(self) -> None:
        """Forget everything but histories, and the facts that name the instance and count its versions."""

    def close(self) -> None:
        """Write what is left, and let go."""


class PackStore(Protocol):
    """The source packs of all revisions that are kept. Methods are quick and synchronous."""

    def names(self) -> set[str]:
        """The names of those that are stored."""

    def keep(self, packs: Mapping[str, bytes], name: str) -> None:
        """See that the pack `name` is stored ("": there is nothing to store), from `packs` if it is not yet.

        Raises ProtocolError for bytes that are not what their name says, DeployFailedError when the pack is neither
        sent nor stored, or cannot be stored.
        """

    def load(self, names: Iterable[str]) -> dict[str, bytes]:
        """The packs of these names; "" names none. Raises RevisionNotFound when one is gone or broken."""

    def prune(self, in_use: Iterable[str]) -> None:
        """Remove all but these."""

    def close(self) -> None:
        """Let go. Harmless again."""
