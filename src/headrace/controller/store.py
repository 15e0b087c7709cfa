"""What must outlive the controller: applications, their revisions, their replicas, what is served; in SQLite.

In: records from the reconciler, each time they change. Out: the records as they were, to the next controller. A file
that cannot be read is set aside under another name, loudly, and a new one begun. A disk that takes nothing (it is full)
stops nobody: what was to be written waits, in its order, and goes along with the next write that succeeds.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace.controller.records import (
    Traffic,
    decode_event,
    decode_grpc,
    decode_http,
    decode_record,
    decode_spec,
    decode_traffic,
    decode_weights,
    encode,
    lacking,
)
from headrace.core.attribution import Weights
from headrace.core.fleet import Application, Replica
from headrace.spec.application import ApplicationSpec
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import InstanceError
from headrace.spec.grpc import GrpcService
from headrace.spec.status import HistoryEvent, RevisionRecord

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 4

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE applications (
    name TEXT PRIMARY KEY, target INTEGER NOT NULL, current INTEGER NOT NULL, failure TEXT NOT NULL,
    deleting INTEGER NOT NULL, deploying INTEGER NOT NULL, next_replica INTEGER NOT NULL, deployed_at REAL NOT NULL,
    traffic BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE revisions (
    app TEXT NOT NULL REFERENCES applications ON DELETE CASCADE, number INTEGER NOT NULL, spec BLOB NOT NULL,
    PRIMARY KEY (app, number)
);
CREATE TABLE befores (
    app TEXT PRIMARY KEY REFERENCES applications ON DELETE CASCADE, spec BLOB NOT NULL
);
CREATE TABLE replicas (
    app TEXT NOT NULL REFERENCES applications ON DELETE CASCADE, id TEXT NOT NULL, key TEXT NOT NULL,
    name TEXT NOT NULL, revision INTEGER NOT NULL, address TEXT NOT NULL, level INTEGER NOT NULL,
    PRIMARY KEY (app, id)
) WITHOUT ROWID;
CREATE TABLE records (
    app TEXT NOT NULL, number INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (app, number)
) WITHOUT ROWID;
CREATE TABLE kept (
    app TEXT NOT NULL, number INTEGER NOT NULL, pack TEXT NOT NULL, spec BLOB NOT NULL, PRIMARY KEY (app, number)
);
CREATE TABLE events (id INTEGER PRIMARY KEY, app TEXT NOT NULL, event BLOB NOT NULL);
CREATE INDEX events_of ON events (app, id);
CREATE TABLE weights (app TEXT NOT NULL, at REAL NOT NULL, entry BLOB NOT NULL);
CREATE INDEX weights_of ON weights (app, at);
"""

# The file is well, but the disk or the system does not let us at it now.
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
    }
)

_Statement = tuple[str, tuple[Any, ...]]


_NOTE = "note:"  # what the names of facts begin with that are notes of clients
_KEEP_SPEC = "INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)"


class Store:
    """The controller's file. All methods are quick and synchronous; each is one transaction.

    `synced` False: nothing waits for the disk, for what need not outlive this process.
    """

    def __init__(self, path: Path, *, synced: bool = True) -> None:
        self._path = path
        self._synced = synced
        self._database: sqlite3.Connection | None = None
        self._behind: list[_Statement] = []  # what the file does not hold yet, for want of room
        self.set_aside: Path | None = None

    def __repr__(self) -> str:
        behind = f" {len(self._behind)} statements behind" if self._behind else ""
        return f"<Store {self._path}{'' if self._database else ' closed'}{behind}>"

    def open(self, superseded: Callable[[str], None] = lambda reason: None) -> None:
        """Open the file, or begin it. Raises InstanceError when neither can be done.

        Nobody else takes the file over while the keeper of the instance lives, and one keeper has one controller.
        """
        try:
            self._database = self._connect()
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING:
                raise InstanceError(f"the controller's state cannot be kept in {self._path}: {error}") from error
            self._put_aside(error)
            try:
                self._database = self._connect()
            except sqlite3.Error as again:
                raise InstanceError(f"the controller's state cannot be kept in {self._path}: {again}") from again

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, isolation_level=None)
        try:
            # Survives the process, which is all that is asked: an instance does not survive its machine.
            database.execute(f"PRAGMA synchronous = {'NORMAL' if self._synced else 'OFF'}")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA foreign_keys = ON")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            elif version != SCHEMA_VERSION:
                raise sqlite3.DatabaseError(f"its schema is version {version}, this is version {SCHEMA_VERSION}")
            ((verdict,),) = database.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            self._read(database)
            self._read_http(database)
            self._read_grpc(database)
            self._read_records(database)
            self._read_events(database)
            self._read_timelines(database)
        except BaseException:
            database.close()
            raise
        return database

    def _put_aside(self, error: Exception) -> None:
        """Keep the unreadable file for a person to look at. Its journal goes along: it belongs to that file alone."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        aside = self._path.with_name(f"{self._path.name}.unreadable-{stamp}")
        try:
            self._path.rename(aside)
            for suffix in ("-wal", "-shm"):
                beside = self._path.with_name(self._path.name + suffix)
                if beside.exists():
                    beside.rename(aside.with_name(aside.name + suffix))
        except OSError as failed:
            raise InstanceError(f"the controller's state in {self._path} cannot be read ({error}) or moved") from failed
        self.set_aside = aside
        logger.error(
            "the controller's state in %s cannot be read (%s): it begins anew without any application, and the old "
            "file is kept as %s",
            self._path,
            error,
            aside,
        )

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    @property
    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            raise InstanceError(f"the controller's state in {self._path} is not open")
        return self._database

    def _write(self, *statements: _Statement) -> None:
        """Write these together, after what is left of earlier ones. What cannot be written now is kept for later."""
        was_behind = bool(self._behind)
        self._behind += statements
        try:
            self._catch_up()
        except sqlite3.Error as error:
            if not was_behind:
                logger.error(
                    "the controller's state cannot be written to %s (%s): what changes from now on is lost if the "
                    "controller dies before there is room again",
                    self._path,
                    error,
                )
        else:
            if was_behind:
                logger.warning("the controller's state is written to %s again, and whole", self._path)

    def _catch_up(self) -> None:
        database = self._open
        try:
            database.execute("BEGIN IMMEDIATE")
            for statement, values in self._behind:
                database.execute(statement, values)
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # some errors have rolled it back already
                with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell of
                    database.execute("ROLLBACK")
            raise
        self._behind.clear()

    def check(self) -> None:
        """Raise InstanceError when the file takes no writes: before something is begun that should outlive us."""
        self._behind.append(("INSERT OR REPLACE INTO facts VALUES ('check', '')", ()))
        try:
            self._catch_up()
        except sqlite3.Error as error:
            self._behind.pop()
            raise InstanceError(
                f"the controller's state cannot be written to {self._path}: {error}; is the disk full?"
            ) from error

    @property
    def settling(self) -> bool:
        """Never: see `settled`."""
        return False

    async def settled(self) -> None:
        """Return at once: each write is done when it returns, or there is no room, which may last."""

    def fact(self, name: str) -> str:
        """A fact that was kept under this name, "" when none was."""
        row = self._open.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return "" if row is None else str(row[0])

    def keep_fact(self, name: str, value: str) -> None:
        """Keep a fact under this name."""
        self._write(("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value)))

    def notes(self, prefix: str) -> dict[str, bytes]:
        """The notes of clients whose names begin so."""
        named = f"{_NOTE}{prefix}"
        rows = self._open.execute(
            "SELECT name, value FROM facts WHERE substr(name, 1, ?) = ? ORDER BY name", (len(named), named)
        )
        return {str(name).removeprefix(_NOTE): bytes(value) for name, value in rows}

    def keep_notes(self, notes: Mapping[str, bytes | None]) -> None:
        """Keep these notes of clients, and no more those that are None here."""
        keep, forget = "INSERT OR REPLACE INTO facts VALUES (?, ?)", "DELETE FROM facts WHERE name = ?"
        self._write(
            *(
                (forget, (_NOTE + name,)) if note is None else (keep, (_NOTE + name, note))
                for name, note in notes.items()
            )
        )

    def http_options(self) -> HTTPOptions | None:
        """How the ingress should listen; None when it was never started."""
        return self._read_http(self._open)

    def grpc_service(self) -> GrpcService | None:
        """The gRPC that the ingress should serve; None for none."""
        return self._read_grpc(self._open)

    def keep_ingress(self, options: HTTPOptions, grpc: GrpcService | None) -> None:
        """Keep how the ingress should listen."""
        statement = "INSERT OR REPLACE INTO facts VALUES (?, ?)"
        self._write((statement, ("http", encode(options))), (statement, ("grpc", encode(grpc))))

    @staticmethod
    def _read_http(database: sqlite3.Connection) -> HTTPOptions | None:
        row = database.execute("SELECT value FROM facts WHERE name = 'http'").fetchone()
        return None if row is None else decode_http(row[0])

    @staticmethod
    def _read_grpc(database: sqlite3.Connection) -> GrpcService | None:
        row = database.execute("SELECT value FROM facts WHERE name = 'grpc'").fetchone()
        return None if row is None else decode_grpc(row[0])

    def applications(self) -> dict[str, Application]:
        """All applications with their revisions and replicas (of which nothing but their names is known yet)."""
        return self._read(self._open)

    @staticmethod
    def _read(database: sqlite3.Connection) -> dict[str, Application]:
        apps = {
            name: Application(
                name=name,
                target=target,
                current=current,
                failure=failure,
                deleting=bool(deleting),
                deploying=bool(deploying),
                next_replica=next_replica,
                deployed_at=deployed_at,
            )
            for name, target, current, failure, deleting, deploying, next_replica, deployed_at in database.execute(
                "SELECT name, target, current, failure, deleting, deploying, next_replica, deployed_at"
                " FROM applications"
            )
        }
        for name, traffic in database.execute("SELECT name, traffic FROM applications"):
            decode_traffic(traffic).give(apps[name])
        for app, number, spec in database.execute("SELECT app, number, spec FROM revisions ORDER BY number"):
            apps[app].revisions[number] = decode_spec(spec)
        for app, spec in database.execute("SELECT app, spec FROM befores"):
            if apps[app].deploying:
                apps[app].before = decode_spec(spec)
        for app, id, key, name, revision, address, level in database.execute(
            "SELECT app, id, key, name, revision, address, level FROM replicas"
        ):
            apps[app].replicas[id] = Replica(
                id=id, app=app, key=key, name=name, revision=revision, address=address, level=level
            )
        if name := lacking(apps.values()):
            raise sqlite3.DatabaseError(f"application {name!r} lacks a revision that it runs")
        for app in apps.values():
            app.replicas = dict(sorted(app.replicas.items(), key=lambda item: item[1].number))
        return apps

    def keep_application(self, app: Application) -> None:
        """Keep what is said of the application itself; not its revisions, not its replicas."""
        self._write(_of_application(app))

    def keep_revision(self, app: Application, number: int) -> None:
        """Keep the application, this revision of it, and what a change in place would go back to, together."""
        revision = (app.name, number, encode(app.revisions[number]))
        statements: list[_Statement] = [_of_application(app), ("DELETE FROM befores WHERE app = ?", (app.name,))]
        if app.before is not None:
            statements.append(("INSERT INTO befores VALUES (?, ?)", (app.name, encode(app.before))))
        self._write(*statements, ("INSERT OR REPLACE INTO revisions VALUES (?, ?, ?)", revision))

    def forget_revision(self, app: str, number: int) -> None:
        """Forget the revision."""
        self._write(("DELETE FROM revisions WHERE app = ? AND number = ?", (app, number)))

    def keep_replica(self, app: Application, replica: Replica) -> None:
        """Keep the replica, and that its number is used."""
        values = (app.name, replica.id, replica.key, replica.name, replica.revision, replica.address, replica.level)
        self._write(_of_application(app), ("INSERT OR REPLACE INTO replicas VALUES (?, ?, ?, ?, ?, ?, ?)", values))

    def forget_replica(self, app: str, id: str) -> None:
        """Forget the replica."""
        self._write(("DELETE FROM replicas WHERE app = ? AND id = ?", (app, id)))

    def forget_application(self, app: str) -> None:
        """Forget the application and all that belongs to it."""
        self._write(("DELETE FROM applications WHERE name = ?", (app,)))

    def forget_all(self) -> None:
        """Forget everything but histories, and the facts that name the instance and count its versions."""
        facts = "DELETE FROM facts WHERE name IN ('http', 'grpc') OR substr(name, 1, ?) = ?"
        notes = (len(_NOTE), _NOTE)
        self._write(("DELETE FROM applications", ()), ("DELETE FROM weights", ()), (facts, notes))

    # --- how traffic was shared -------------------------------------------------------------------------------------

    def timelines(self) -> dict[str, list[Weights]]:
        """The weights that each application had, in order."""
        return self._read_timelines(self._open)

    @staticmethod
    def _read_timelines(database: sqlite3.Connection) -> dict[str, list[Weights]]:
        found: dict[str, list[Weights]] = {}
        for app, entry in database.execute("SELECT app, entry FROM weights ORDER BY at, rowid"):
            found.setdefault(app, []).append(decode_weights(entry))
        return found

    def keep_weights(self, app: str, entry: Weights, begins: float) -> None:
        """Keep from when on the application had these weights, and forget those from before `begins`."""
        self._write(
            ("INSERT INTO weights VALUES (?, ?, ?)", (app, entry.at, encode(entry))),
            ("DELETE FROM weights WHERE app = ? AND at < ?", (app, begins)),
        )

    def forget_weights(self, app: str) -> None:
        """Forget the weights that the application had."""
        self._write(("DELETE FROM weights WHERE app = ?", (app,)))

    # --- histories: of applications that are, and of those that were --------------------------------------------------

    def records(self) -> list[tuple[str, RevisionRecord]]:
        """What is kept of revisions, by application."""
        return self._read_records(self._open)

    @staticmethod
    def _read_records(database: sqlite3.Connection) -> list[tuple[str, RevisionRecord]]:
        rows = database.execute("SELECT app, record FROM records ORDER BY app, number")
        return [(app, decode_record(record)) for app, record in rows]

    def events(self) -> list[tuple[str, HistoryEvent]]:
        """What happened, by application, in order."""
        return self._read_events(self._open)

    @staticmethod
    def _read_events(database: sqlite3.Connection) -> list[tuple[str, HistoryEvent]]:
        return [
            (app, decode_event(event)) for app, event in database.execute("SELECT app, event FROM events ORDER BY id")
        ]

    def kept_specs(self) -> list[tuple[str, int, str]]:
        """Application, number and source pack of each revision whose specification is kept."""
        return [tuple(row) for row in self._open.execute("SELECT app, number, pack FROM kept ORDER BY app, number")]

    def kept_spec(self, app: str, number: int) -> ApplicationSpec | None:
        """The specification of a former revision, None when it is not kept."""
        for statement, values in reversed(self._behind):
            if statement == _KEEP_SPEC and values[:2] == (app, number):
                return decode_spec(values[3])
        row = self._open.execute("SELECT spec FROM kept WHERE app = ? AND number = ?", (app, number)).fetchone()
        try:
            return None if row is None else decode_spec(row[0])
        except msgspec.MsgspecError as error:  # another version of Headrace may have kept it
            logger.error("revision %d of application %r cannot be read any more: %s", number, app, error)
            return None

    def keep_spec(self, app: str, number: int, spec: ApplicationSpec) -> None:
        """Keep the specification of a revision for its history."""
        self._write((_KEEP_SPEC, (app, number, spec.environment.pack, encode(spec))))

    def forget_spec(self, app: str, number: int) -> None:
        """Let go of the specification of a former revision."""
        self._write(("DELETE FROM kept WHERE app = ? AND number = ?", (app, number)))

    def keep_record(self, app: str, record: RevisionRecord) -> None:
        """Keep what became of a revision."""
        self._write(("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (app, record.number, encode(record))))

    def forget_record(self, app: str, number: int) -> None:
        """Forget what became of a revision."""
        self._write(("DELETE FROM records WHERE app = ? AND number = ?", (app, number)))

    def keep_event(self, app: str, event: HistoryEvent, most: int) -> None:
        """Keep what happened, and no more than the last `most` of the application."""
        beyond = "(SELECT id FROM events WHERE app = ? ORDER BY id DESC LIMIT 1 OFFSET ?)"
        self._write(
            ("INSERT INTO events (app, event) VALUES (?, ?)", (app, encode(event))),
            (f"DELETE FROM events WHERE app = ? AND id <= {beyond}", (app, app, most)),
        )

    def forget_history(self, app: str) -> None:
        """Forget all that became of the application."""
        self._write(*((f"DELETE FROM {table} WHERE app = ?", (app,)) for table in ("records", "kept", "events")))


def _of_application(app: Application) -> _Statement:
    return (
        "INSERT INTO applications VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
        " target = excluded.target, current = excluded.current, failure = excluded.failure,"
        " deleting = excluded.deleting, deploying = excluded.deploying,"
        " next_replica = excluded.next_replica, deployed_at = excluded.deployed_at, traffic = excluded.traffic",
        (
            app.name,
            app.target,
            app.current,
            app.failure,
            app.deleting,
            app.deploying,
            app.next_replica,
            app.deployed_at,
            encode(Traffic.of(app)),
        ),
    )
