"""What must outlive the controller and its machine, in a store of keys and values: as `store`, and with its meaning.

In: records from the reconciler, each time they change. Out: the records as they were, to the next controller. Each call
is one transaction; when it returns, it is kept here in memory, and in the store soon after.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from headrace.controller import records
from headrace.controller.journal import Change, JournalBroken, Row, Tables
from headrace.controller.rows import Rows
from headrace.core.attribution import Weights
from headrace.core.fleet import Application, Replica
from headrace.spec.application import ApplicationSpec
from headrace.spec.config import HTTPOptions
from headrace.spec.grpc import GrpcService
from headrace.spec.status import HistoryEvent, RevisionRecord

logger = logging.getLogger(__name__)

FACTS, NOTES, APPS, SPECS, BEFORES, REPLICAS = "fact", "note", "app", "spec", "before", "replica"
RECORDS, EVENTS, WEIGHTS = "record", "event", "weights"
KEPT, KEPT_PACKS = "kept", "kept pack"  # apart, so that a large specification is the same value here as in SPECS
_OF_APPLICATIONS = (SPECS, BEFORES, REPLICAS)
_OF_HISTORIES = (RECORDS, KEPT, KEPT_PACKS, EVENTS)


class _App(msgspec.Struct, kw_only=True):
    target: int
    current: int
    failure: str
    deleting: bool
    deploying: bool
    next_replica: int
    deployed_at: float
    traffic: records.Traffic


class _Replica(msgspec.Struct, kw_only=True):
    key: str
    name: str
    revision: int
    address: str
    level: int


_decode_app = msgspec.msgpack.Decoder(_App).decode
_decode_replica = msgspec.msgpack.Decoder(_Replica).decode
_DECODERS: dict[str, Callable[[bytes], object]] = {
    RECORDS: records.decode_record,
    EVENTS: records.decode_event,
    WEIGHTS: records.decode_weights,
    KEPT_PACKS: bytes.decode,
}


class KeyValueStore:
    """The controller's state over `rows`, which it opens and closes."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._events: dict[str, deque[int]] = {}  # the numbers of those that are kept
        self._weights: dict[str, deque[tuple[int, float]]] = {}  # likewise, with their times

    def __repr__(self) -> str:
        return f"<KeyValueStore {self._rows!r}>"

    @property
    def set_aside(self) -> str | None:
        """Under which prefix that lies which could not be read."""
        return self._rows.set_aside

    def open(self, superseded: Callable[[str], None] = lambda reason: None) -> None:
        """Read what is there, and take it over. Raises InstanceError when the store cannot be reached."""
        self._rows.open(_check, superseded)
        for app, number in sorted(self._rows.table(EVENTS)):
            self._events.setdefault(app, deque()).append(int(number))
        for (app, number), entry in sorted(self._rows.table(WEIGHTS).items()):
            self._weights.setdefault(app, deque()).append((int(number), records.decode_weights(entry).at))

    def close(self) -> None:
        """Write what is left, for some seconds."""
        self._rows.close()

    def check(self) -> None:
        """Raise InstanceError when the store has taken nothing for seconds."""
        self._rows.check()

    @property
    def settling(self) -> bool:
        """Whether something is on its way to the store still, which answers."""
        return self._rows.settling

    async def settled(self) -> None:
        """Wait until all that was said so far is in the store."""
        await self._rows.settled()

    # --- facts --------------------------------------------------------------------------------------------------------

    def fact(self, name: str) -> str:
        """A fact that was kept under this name, "" when none was."""
        return self._rows.table(FACTS).get(("", name), b"").decode()

    def keep_fact(self, name: str, value: str) -> None:
        """Keep a fact under this name."""
        self._rows.write((FACTS, "", name, value.encode()))

    def notes(self, prefix: str) -> dict[str, bytes]:
        """The notes of clients whose names begin so."""
        notes = self._rows.table(NOTES).items()
        return dict(sorted((str(name), note) for (_, name), note in notes if str(name).startswith(prefix)))

    def keep_notes(self, notes: Mapping[str, bytes | None]) -> None:
        """Keep these notes of clients, and no more those that are None here."""
        self._rows.write(*((NOTES, "", name, note) for name, note in notes.items()))

    def http_options(self) -> HTTPOptions | None:
        """How the ingress should listen; None when it was never started."""
        return _http_options(self._rows.table(FACTS))

    def grpc_service(self) -> GrpcService | None:
        """The gRPC that the ingress should serve; None for none."""
        return _grpc_service(self._rows.table(FACTS))

    def keep_ingress(self, options: HTTPOptions, grpc: GrpcService | None) -> None:
        """Keep how the ingress should listen."""
        self._rows.write((FACTS, "", "http", records.encode(options)), (FACTS, "", "grpc", records.encode(grpc)))

    # --- applications -------------------------------------------------------------------------------------------------

    def applications(self) -> dict[str, Application]:
        """All applications with their revisions and replicas (of which nothing but their names is known yet)."""
        return _applications({table: self._rows.table(table) for table in (APPS, *_OF_APPLICATIONS)})

    def keep_application(self, app: Application) -> None:
        """Keep what is said of the application itself; not its revisions, not its replicas."""
        self._rows.write(_of_application(app))

    def keep_revision(self, app: Application, number: int) -> None:
        """Keep the application, this revision of it, and what a change in place would go back to, together."""
        before = None if app.before is None else records.encode(app.before)
        self._rows.write(
            _of_application(app),
            (SPECS, app.name, number, records.encode(app.revisions[number])),
            (BEFORES, app.name, "", before),
        )

    def forget_revision(self, app: str, number: int) -> None:
        """Forget the revision."""
        self._rows.write((SPECS, app, number, None))

    def keep_replica(self, app: Application, replica: Replica) -> None:
        """Keep the replica, and that its number is used."""
        kept = _Replica(
            key=replica.key,
            name=replica.name,
            revision=replica.revision,
            address=replica.address,
            level=replica.level,
        )
        self._rows.write(_of_application(app), (REPLICAS, app.name, replica.id, records.encode(kept)))

    def forget_replica(self, app: str, id: str) -> None:
        """Forget the replica."""
        self._rows.write((REPLICAS, app, id, None))

    def forget_application(self, app: str) -> None:
        """Forget the application and all that belongs to it."""
        self._rows.write((APPS, app, "", None), *self._all_of(app, *_OF_APPLICATIONS))

    def forget_all(self) -> None:
        """Forget everything but histories, and the facts that name the instance and count its versions."""
        self._weights.clear()
        gone = [
            (table, app, item, None)
            for table in (APPS, *_OF_APPLICATIONS, WEIGHTS, NOTES)
            for app, item in self._rows.table(table)
        ]
        self._rows.write(*gone, (FACTS, "", "http", None), (FACTS, "", "grpc", None))

    def _all_of(self, app: str, *tables: str) -> list[Change]:
        return [(table, app, item, None) for table in tables for name, item in self._rows.table(table) if name == app]

    # --- how traffic was shared ---------------------------------------------------------------------------------------

    def timelines(self) -> dict[str, list[Weights]]:
        """The weights that each application had, in order."""
        found: dict[str, list[Weights]] = {}
        for (app, _), entry in sorted(self._rows.table(WEIGHTS).items()):
            found.setdefault(app, []).append(records.decode_weights(entry))
        return {app: sorted(entries, key=lambda entry: entry.at) for app, entries in found.items()}

    def keep_weights(self, app: str, entry: Weights, begins: float) -> None:
        """Keep from when on the application had these weights, and forget those from before `begins`."""
        kept = self._weights.setdefault(app, deque())
        number = kept[-1][0] + 1 if kept else 1
        kept.append((number, entry.at))
        past = [(WEIGHTS, app, old, None) for old, at in kept if at < begins]
        self._weights[app] = deque(each for each in kept if each[1] >= begins)
        self._rows.write((WEIGHTS, app, number, records.encode(entry)), *past)

    def forget_weights(self, app: str) -> None:
        """Forget the weights that the application had."""
        self._rows.write(*((WEIGHTS, app, number, None) for number, _ in self._weights.pop(app, ())))

    # --- histories ----------------------------------------------------------------------------------------------------

    def records(self) -> list[tuple[str, RevisionRecord]]:
        """What is kept of revisions, by application."""
        rows = sorted(self._rows.table(RECORDS).items())
        return [(app, records.decode_record(record)) for (app, _), record in rows]

    def events(self) -> list[tuple[str, HistoryEvent]]:
        """What happened, by application; of each in order."""
        return [(app, records.decode_event(event)) for (app, _), event in sorted(self._rows.table(EVENTS).items())]

    def kept_specs(self) -> list[tuple[str, int, str]]:
        """Application, number and source pack of each revision whose specification is kept."""
        rows = sorted(self._rows.table(KEPT_PACKS).items())
        return [(app, int(number), pack.decode()) for (app, number), pack in rows]

    def kept_spec(self, app: str, number: int) -> ApplicationSpec | None:
        """The specification of a former revision, None when it is not kept."""
        kept = self._rows.table(KEPT).get((app, number))
        try:
            return None if kept is None else records.decode_spec(kept)
        except msgspec.MsgspecError as error:  # another version of Headrace may have kept it
            logger.error("revision %d of application %r cannot be read any more: %s", number, app, error)
            return None

    def keep_spec(self, app: str, number: int, spec: ApplicationSpec) -> None:
        """Keep the specification of a revision for its history."""
        pack = spec.environment.pack.encode()
        self._rows.write((KEPT, app, number, records.encode(spec)), (KEPT_PACKS, app, number, pack))

    def forget_spec(self, app: str, number: int) -> None:
        """Let go of the specification of a former revision."""
        self._rows.write((KEPT, app, number, None), (KEPT_PACKS, app, number, None))

    def keep_record(self, app: str, record: RevisionRecord) -> None:
        """Keep what became of a revision."""
        self._rows.write((RECORDS, app, record.number, records.encode(record)))

    def forget_record(self, app: str, number: int) -> None:
        """Forget what became of a revision."""
        self._rows.write((RECORDS, app, number, None))

    def keep_event(self, app: str, event: HistoryEvent, most: int) -> None:
        """Keep what happened, and no more than the last `most` of the application."""
        kept = self._events.setdefault(app, deque())
        number = kept[-1] + 1 if kept else 1
        kept.append(number)
        past = [(EVENTS, app, kept.popleft(), None) for _ in range(len(kept) - most)]
        self._rows.write((EVENTS, app, number, records.encode(event)), *past)

    def forget_history(self, app: str) -> None:
        """Forget all that became of the application."""
        self._events.pop(app, None)
        self._rows.write(*self._all_of(app, *_OF_HISTORIES))


def _of_application(app: Application) -> Change:
    kept = _App(
        target=app.target,
        current=app.current,
        failure=app.failure,
        deleting=app.deleting,
        deploying=app.deploying,
        next_replica=app.next_replica,
        deployed_at=app.deployed_at,
        traffic=records.Traffic.of(app),
    )
    return (APPS, app.name, "", records.encode(kept))


def _http_options(facts: Mapping[Row, bytes]) -> HTTPOptions | None:
    kept = facts.get(("", "http"))
    return None if kept is None else records.decode_http(kept)


def _grpc_service(facts: Mapping[Row, bytes]) -> GrpcService | None:
    kept = facts.get(("", "grpc"))
    return None if kept is None else records.decode_grpc(kept)


def _applications(tables: Mapping[str, Mapping[Row, bytes]]) -> dict[str, Application]:
    apps: dict[str, Application] = {}
    for (name, _), row in sorted(tables.get(APPS, {}).items()):
        kept = _decode_app(row)
        apps[name] = app = Application(
            name=name,
            target=kept.target,
            current=kept.current,
            failure=kept.failure,
            deleting=kept.deleting,
            deploying=kept.deploying,
            next_replica=kept.next_replica,
            deployed_at=kept.deployed_at,
        )
        kept.traffic.give(app)
    for table in _OF_APPLICATIONS:
        for name, item in tables.get(table, {}):
            if name not in apps:
                raise JournalBroken(f"{table} {item!r} is of application {name!r}, which is not there")
    for (name, number), spec in sorted(tables.get(SPECS, {}).items()):
        apps[name].revisions[int(number)] = records.decode_spec(spec)
    for (name, _), spec in tables.get(BEFORES, {}).items():
        if apps[name].deploying:
            apps[name].before = records.decode_spec(spec)
    for (name, item), row in tables.get(REPLICAS, {}).items():
        found, id = _decode_replica(row), str(item)
        apps[name].replicas[id] = Replica(
            id=id,
            app=name,
            key=found.key,
            name=found.name,
            revision=found.revision,
            address=found.address,
            level=found.level,
        )
    if lacking := records.lacking(apps.values()):
        raise JournalBroken(f"application {lacking!r} lacks a revision that it runs")
    for app in apps.values():
        app.replicas = dict(sorted(app.replicas.items(), key=lambda item: item[1].number))
    return apps


def _check(tables: Tables) -> None:
    """Read all that the controller will read without a word of what cannot be read."""
    try:
        _applications(tables)
        _http_options(tables.get(FACTS, {}))
        _grpc_service(tables.get(FACTS, {}))
        for table, decode in _DECODERS.items():
            for row in tables.get(table, {}).values():
                decode(row)
    except (msgspec.MsgspecError, ValueError) as error:  # ValueError: of a number, or of bytes that are no text
        raise JournalBroken(str(error)) from error
