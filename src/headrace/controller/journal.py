"""Tables in a store of keys and values that knows no transactions: a base, and a log of what changed since.

In: changes, those of one transaction together. Out: one put for each; the tables as they were after some transaction,
to the next controller. Nothing here waits or runs beside anything: see `rows`.

    <prefix>head                        names the generation that counts, its base, and who writes it
    <prefix>log/<generation>/<number>   changes since the base, in their order; an entry is whole or is not
    <prefix>blob/<SHA-256>/<part>       the base itself, and values too large for an entry, each once

Invariant: after any prefix of the puts and deletes made here, what is read is the state after some transaction, and
none earlier than the last whose `append` returned. For an entry is one put; what it names is put before it; a
new generation counts from the put of its head on, which names a whole base; what no head names any more is removed
after that. And a put that comes late, of a writer that was cut off, goes to a generation that does not count any more.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable

import msgspec

from headrace.controller.blobs import PART_BYTES, Blob, BlobBroken, Blobs
from headrace.controller.kept import KeyValues

FORMAT = 1
INLINE_BYTES = 64 * 1024  # of a value in an entry or a base: what is larger is a blob of its own
MOST_ENTRIES = 256  # until a new base: the next controller reads them one by one
_ATTEMPTS = 5

Row = tuple[str, str | int]  # application (or ""), and what it is of it
Tables = dict[str, dict[Row, bytes]]
Change = tuple[str, str, str | int, bytes | None]  # table, row, and its value; None: it is removed
_StoredChange = tuple[str, str, str | int, bytes | Blob | None]


class _Head(msgspec.Struct, array_like=True, kw_only=True):
    format: int
    writer: str
    generation: str
    base: Blob


class JournalBroken(Exception):
    """What is there cannot be read."""


class Superseded(Exception):
    """Another writer has taken the journal over."""


_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(_Head).decode
_decode_changes = msgspec.msgpack.Decoder(list[_StoredChange]).decode


def apply(tables: Tables, changes: Iterable[Change]) -> None:
    """Change the tables so."""
    for table, app, item, value in changes:
        rows = tables.setdefault(table, {})
        if value is None:
            rows.pop((app, item), None)
        else:
            rows[app, item] = value


class Journal:
    """One writer of the journal under a prefix. Methods block; they raise OSError where the store cannot be reached.

    `load`, then `begin`, which takes the journal over; from then on `append`, and `begin` again where `needs_base`.
    """

    def __init__(
        self,
        values: KeyValues,
        prefix: str,
        *,
        part_bytes: int = PART_BYTES,
        inline_bytes: int = INLINE_BYTES,
        most_entries: int = MOST_ENTRIES,
    ) -> None:
        self._values = values
        self._prefix = prefix
        self._inline_bytes = inline_bytes
        self._most_entries = most_entries
        self._blobs = Blobs(values, f"{prefix}blob/", part_bytes)
        self._writer = secrets.token_hex(8)
        self._generations = itertools.count(1)
        self._generation = ""  # "": what is there is not known to be as this writer would have it
        self._entries = 0
        self._begun = False

    def __repr__(self) -> str:
        return f"<Journal {self._prefix} {self._generation or 'without a base'} {self._entries} entries>"

    @property
    def needs_base(self) -> bool:
        """Whether `begin` is due, not `append`."""
        return not self._generation or self._entries >= self._most_entries

    # --- reading ----------------------------------------------------------------------------------------------------

    def load(self) -> Tables:
        """The tables as they were kept last; none where nothing was. Raises JournalBroken."""
        for _ in range(_ATTEMPTS):
            head = self._values.get(f"{self._prefix}head")
            if head is None:
                return {}
            try:
                return self._read(_decode_head(head))
            except (JournalBroken, BlobBroken, msgspec.MsgspecError) as error:
                # An earlier writer that lives may have begun a new generation just now, and removed this one.
                if self._values.get(f"{self._prefix}head") == head:
                    raise JournalBroken(str(error)) from error
        raise OSError(f"{self._prefix}head is written again and again by another controller")

    def _read(self, head: _Head) -> Tables:
        if head.format != FORMAT:
            raise JournalBroken(f"its format is version {head.format}, this is version {FORMAT}")
        tables: Tables = {}
        apply(tables, self._fetched(self._blobs.get(head.base)))
        log = f"{self._prefix}log/{head.generation}/"
        for key in sorted(self._values.keys(log)):
            entry = self._values.get(key)
            if entry is None:
                raise JournalBroken(f"{key} is gone")
            apply(tables, self._fetched(entry))
        return tables

    def _fetched(self, entry: bytes) -> list[Change]:
        return [
            (table, app, item, self._blobs.get(value) if isinstance(value, Blob) else value)
            for table, app, item, value in _decode_changes(entry)
        ]

    # --- writing ----------------------------------------------------------------------------------------------------

    def begin(self, tables: Tables) -> None:
        """Begin a new generation that holds these tables. The first time, the journal is this writer's from then on.

        Raises Superseded where it was this writer's, and is not any more.
        """
        self._generation = ""
        was_there = self._begun and self._head() is not None
        stored = self._stored(
            (table, app, item, value) for table, rows in tables.items() for (app, item), value in rows.items()
        )
        base = self._blobs.put(_encode(stored))
        generation = f"{self._writer}-{next(self._generations)}"
        if self._begun and (self._head() is not None) != was_there:
            raise OSError(f"{self._prefix}head is gone: the store has lost what it kept")
        head = _Head(format=FORMAT, writer=self._writer, generation=generation, base=base)
        self._values.put(f"{self._prefix}head", _encode(head))
        self._begun = True
        self._generation = generation
        self._entries = 0
        self._tidy({base.sha256} | {value.sha256 for *_, value in stored if isinstance(value, Blob)})

    def append(self, changes: Iterable[Change]) -> None:
        """Write these changes, together. Where this raises OSError they may be written or not: append them again, with
        others after them or without. Raises Superseded.
        """
        head = self._head()
        if head is None or head.generation != self._generation:  # it may name one whose put came late
            self._generation = ""
            raise OSError(f"{self._prefix}head is not as it was written: the store has lost what it kept")
        entry = _encode(self._stored(changes))
        # A put that fails may still come, late: its number is never given again, so that it stands before what
        # repeats it.
        number, self._entries = self._entries, self._entries + 1
        self._values.put(f"{self._prefix}log/{self._generation}/{number:08}", entry)

    def _stored(self, changes: Iterable[Change]) -> list[_StoredChange]:
        return [
            (
                table,
                app,
                item,
                self._blobs.put(value) if value is not None and len(value) > self._inline_bytes else value,
            )
            for table, app, item, value in changes
        ]

    def _head(self) -> _Head | None:
        """The head, as long as it is this writer's. Raises Superseded."""
        data = self._values.get(f"{self._prefix}head")
        if data is None:  # a store that does not outlive its own end came back, empty
            self._blobs.forget()
            return None
        try:
            head = _decode_head(data)
        except msgspec.MsgspecError as error:
            raise Superseded(f"a controller of another version writes {self._prefix}head now") from error
        if head.writer != self._writer:
            raise Superseded(f"another controller writes {self._prefix}head now")
        return head

    def _tidy(self, blobs: set[str]) -> None:
        """Remove what no head names. What cannot be removed now is the next time."""
        try:
            mine = f"{self._prefix}log/{self._generation}/"
            for key in self._values.keys(f"{self._prefix}log/"):
                if not key.startswith(mine):
                    self._values.delete(key)
            self._blobs.keep_only(blobs)
        except OSError:
            pass
