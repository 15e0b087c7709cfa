"""The source packs of all revisions that are kept, by the SHA-256 of their bytes.

In: packs, from who deploys; which names are in use. Out: files `<instance directory>/packs/<name>`, which replicas
of this machine read, or rows beside the controller's state, which are wherever it is; the bytes, for who asks. Nothing
here looks into a pack: who sends it runs code in the replicas anyway.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterable, Mapping

from headrace.controller.rows import Rows
from headrace.engine.directory import InstanceDirectory, make_private, write_whole
from headrace.spec.errors import DeployFailedError, InstanceError, ProtocolError, RevisionNotFound
from headrace.wire.pack import is_pack_name, name_of

logger = logging.getLogger(__name__)

PACKS = "pack"  # the table of those that are rows


class Packs:
    """The packs of one instance as files. All methods are quick and synchronous."""

    def __init__(self, directory: InstanceDirectory) -> None:
        self._directory = directory
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"<Packs {len(self.names())} in {self._directory.packs}>"

    def names(self) -> set[str]:
        """The names of those that are stored."""
        try:
            return {path.name for path in self._directory.packs.iterdir() if is_pack_name(path.name)}
        except FileNotFoundError:
            return set()

    def keep(self, packs: Mapping[str, bytes], name: str) -> None:
        """See that the pack `name` is stored ("": there is nothing to store), from `packs` if it is not yet.

        Raises ProtocolError for bytes that are not what their name says, DeployFailedError when the pack is neither
        sent nor stored, or cannot be stored.
        """
        check_sent(packs, name)
        if not name:
            return
        path = self._directory.pack(name)
        if name not in packs:
            if not path.exists():
                raise DeployFailedError(
                    f"the application names the source pack {name}, which was neither sent with it nor is stored in "
                    f"{self._directory.packs}"
                )
            return
        try:
            self._hold()
            if not path.exists() or path.read_bytes() != packs[name]:
                write_whole(path, packs[name])
        except (OSError, InstanceError) as error:
            # Never an InstanceError: to a driver it would mean that there is no controller now, and to ask again.
            raise DeployFailedError(
                f"the source pack of the application cannot be stored in {path}: {error}"
            ) from error

    def load(self, names: Iterable[str]) -> dict[str, bytes]:
        """The packs of these names; "" names none. Raises RevisionNotFound when one is gone or broken."""
        return {name: self._read(name) for name in names if name}

    def prune(self, in_use: Iterable[str]) -> None:
        """Remove all but these."""
        if not self._directory.packs.exists():
            return
        for name in self.names() - set(in_use):
            try:
                self._directory.pack(name).unlink(missing_ok=True)
            except OSError as error:
                logger.warning("a source pack that nobody needs stays: %s", error)

    def close(self) -> None:
        """Let go of the directory. Harmless again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _read(self, name: str) -> bytes:
        path = self._directory.pack(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RevisionNotFound(f"the source pack of the revision cannot be read: {error}") from error
        if name_of(data) != name:
            raise RevisionNotFound(f"the source pack of the revision is broken: {path} is not what its name says")
        return data

    def _hold(self) -> None:
        """Make the directory, and lock it: what tidies up temporary folders by age leaves locked ones alone."""
        make_private(self._directory.packs)
        if self._lock is not None:
            return
        descriptor = os.open(self._directory.packs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # it is being tidied up just now: at the next pack, then
            os.close(descriptor)
        else:
            self._lock = descriptor


class RowPacks:
    """The packs of one instance in the same store as its state: a pack is in there before what refers to it.

    Whoever has the state opens and closes `rows`.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __repr__(self) -> str:
        return f"<RowPacks of {self._rows!r}>"

    def names(self) -> set[str]:
        """The names of those that are stored."""
        return {str(name) for _, name in self._rows.table(PACKS)}

    def keep(self, packs: Mapping[str, bytes], name: str) -> None:
        """See that the pack `name` is stored ("": there is nothing to store), from `packs` if it is not yet.

        Raises ProtocolError for bytes that are not what their name says, DeployFailedError when the pack is neither
        sent nor stored, or cannot be stored.
        """
        check_sent(packs, name)
        if not name or ("", name) in self._rows.table(PACKS):
            return
        if name not in packs:
            raise DeployFailedError(
                f"the application names the source pack {name}, which was neither sent with it nor is stored"
            )
        try:
            self._rows.check()
        except InstanceError as error:
            # Never an InstanceError: to a driver it would mean that there is no controller now, and to ask again.
            raise DeployFailedError(f"the source pack of the application cannot be stored: {error}") from error
        self._rows.write((PACKS, "", name, packs[name]))

    def load(self, names: Iterable[str]) -> dict[str, bytes]:
        """The packs of these names; "" names none. Raises RevisionNotFound when one is gone."""
        return {name: self._read(name) for name in names if name}

    def _read(self, name: str) -> bytes:
        data = self._rows.table(PACKS).get(("", name))
        if data is None:
            raise RevisionNotFound(f"the source pack of the revision cannot be read: {name} is not stored")
        return data

    def prune(self, in_use: Iterable[str]) -> None:
        """Remove all but these."""
        gone = self.names() - set(in_use)
        if gone:
            self._rows.write(*((PACKS, "", name, None) for name in sorted(gone)))

    def close(self) -> None:
        """Nothing is held here."""


def check_sent(packs: Mapping[str, bytes], name: str) -> None:
    """Raise ProtocolError for a pack that is not what its name says, or a `name` that is none and not ""."""
    for sent, data in packs.items():
        if name_of(data) != sent:
            raise ProtocolError(
                f"the source pack {sent!r} came as {len(data):,} bytes whose name is {name_of(data)!r}: "
                "it was changed on its way"
            )
    if name and not is_pack_name(name):
        raise ProtocolError(f"pack={name!r} is no name of a source pack: 64 hex digits, the SHA-256 of its bytes")
