"""Large values in a store of keys and values: put once each under the name that their bytes have, in parts.

In: bytes. Out: `<prefix><SHA-256>/<part>`, and the bytes again. A value is there when all its parts are; whoever names
one does so afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set

import msgspec

from headrace.controller.kept import KeyValues

# Ray's own limit of a message to its GCS is 512 MiB (`max_grpc_message_size`), and may be set lower; and one that
# large would hold up all that the cluster asks of it meanwhile.
PART_BYTES = 16 * 1024 * 1024


class Blob(msgspec.Struct, frozen=True, array_like=True):
    """The name of a value: the SHA-256 of its bytes, and how many they are."""

    sha256: str
    size: int


class BlobBroken(Exception):
    """A value is not there whole, or is not what its name says."""


class Blobs:
    """Values under one prefix. Methods block; they raise OSError where the store cannot be reached."""

    def __init__(self, values: KeyValues, prefix: str, part_bytes: int = PART_BYTES) -> None:
        self._values = values
        self._prefix = prefix
        self._part_bytes = part_bytes
        self._there: set[str] = set()  # those known to be there whole

    def __repr__(self) -> str:
        return f"<Blobs {self._prefix} {len(self._there)} known>"

    def put(self, data: bytes) -> Blob:
        """See that the value is there."""
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        if blob.sha256 not in self._there:
            for part, start in enumerate(range(0, len(data), self._part_bytes)):
                self._values.put(f"{self._prefix}{blob.sha256}/{part}", data[start : start + self._part_bytes])
            self._there.add(blob.sha256)
        return blob

    def get(self, blob: Blob) -> bytes:
        """The value. Raises BlobBroken."""
        parts: list[bytes] = []
        size = 0
        while size < blob.size:
            part = self._values.get(f"{self._prefix}{blob.sha256}/{len(parts)}")
            if not part:
                raise BlobBroken(f"{self._prefix}{blob.sha256} has {size:,} of its {blob.size:,} bytes")
            parts.append(part)
            size += len(part)
        data = b"".join(parts)
        if hashlib.sha256(data).hexdigest() != blob.sha256:
            raise BlobBroken(f"{self._prefix}{blob.sha256} is not what its name says")
        self._there.add(blob.sha256)
        return data

    def forget(self) -> None:
        """Take none for there: the store has lost what it had."""
        self._there.clear()

    def keep_only(self, names: Set[str]) -> None:
        """Remove all values but these."""
        self._there &= names
        for key in self._values.keys(self._prefix):
            if key.removeprefix(self._prefix).partition("/")[0] not in names:
                self._values.delete(key)
