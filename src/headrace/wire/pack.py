"""Source packs: the modules of a revision as bytes, by which its replicas import what was deployed, not what is there.

In, at the driver: modules with their sources. Out: a pack, equal for equal modules, whose name is the SHA-256 of its
bytes. In a worker the same, the other way round. A pack that another version or a broken disk made is no pack.
"""

from __future__ import annotations

import hashlib
import re
import sys
import zlib
from collections.abc import Iterable

import msgspec

from headrace.spec.errors import PayloadError, ProtocolError

MAGIC = b"headrace pack 1\n"
MAX_UNPACKED_BYTES = 64 * 1024 * 1024
LEVEL = 3  # of zlib: half the time of the usual 6, and nearly as small for source code

_PACK_NAME = re.compile(r"[0-9a-f]{64}")


class PackedModule(msgspec.Struct, frozen=True, array_like=True):
    """A module: its name, the path of its file when it was packed, the bytes of that file.

    `paths` is where a package looks for its submodules; None: it is no package. A namespace package has no `source`,
    and no `file`.
    """

    name: str
    file: str
    source: bytes | None
    paths: tuple[str, ...] | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[PackedModule, ...]).decode


def pack(modules: Iterable[PackedModule]) -> bytes:
    """The modules as a pack. Raises PayloadError when they are too large for one, ProtocolError for a wrong name."""
    ordered = sorted(modules, key=lambda module: module.name)
    for module in ordered:
        _check(module)
    unpacked = _encode(ordered)
    if len(unpacked) > MAX_UNPACKED_BYTES:
        largest = sorted(ordered, key=lambda module: -len(module.source or b""))[:3]
        named = ", ".join(f"{module.file} ({len(module.source or b''):,} bytes)" for module in largest)
        raise PayloadError(
            f"the sources that the application imports have {len(unpacked):,} bytes, and a revision carries "
            f"{MAX_UNPACKED_BYTES:,} at most; the largest are {named}: keep data in files that are no modules"
        )
    return MAGIC + zlib.compress(unpacked, LEVEL)


def unpack(data: bytes) -> dict[str, PackedModule]:
    """The modules of the pack by name. Raises ProtocolError when it is none."""
    if not data.startswith(MAGIC):
        raise ProtocolError(f"a source pack was expected, not bytes that begin with {data[: len(MAGIC)]!r}")
    reader = zlib.decompressobj()
    try:
        unpacked = reader.decompress(memoryview(data)[len(MAGIC) :], MAX_UNPACKED_BYTES)
        if reader.unconsumed_tail:
            raise ProtocolError(f"a source pack has more than {MAX_UNPACKED_BYTES:,} bytes when it is unpacked")
        if not reader.eof or reader.unused_data:
            raise ProtocolError("a source pack is cut off, or goes on after its end")
        modules = _decode(unpacked)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ProtocolError(f"a source pack is broken: {error}") from error
    for module in modules:
        _check(module)
    found = {module.name: module for module in modules}
    if len(found) != len(modules):
        raise ProtocolError("a source pack has two modules of one name")
    return found


def name_of(pack: bytes) -> str:
    """The name of the pack: the SHA-256 of its bytes, in hex digits."""
    return hashlib.sha256(pack).hexdigest()


def is_pack_name(name: str) -> bool:
    """Whether a pack can be called so."""
    return _PACK_NAME.fullmatch(name) is not None


def may_be_packed(name: str) -> bool:
    """Whether a module of this name can be in a pack: none that is called as one of the standard library."""
    top = name.partition(".")[0]
    return top not in sys.stdlib_module_names and top != "__main__" and all(map(str.isidentifier, name.split(".")))


def _check(module: PackedModule) -> None:
    if not may_be_packed(module.name):
        raise ProtocolError(f"a source pack cannot have a module {module.name!r}")
    if module.source is None and module.paths is None:
        raise ProtocolError(f"a source pack has the module {module.name!r} without its source")
