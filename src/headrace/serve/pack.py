"""The source pack of an application: what its digests were made of, for its replicas to import.

In: the sources that were read for the digests. Out: the pack by its name. Each file is read once for both, so a file
that changes in the middle of a build cannot be one thing in the digest and another in the pack.
"""

from __future__ import annotations

from headrace.serve.sources import Sources
from headrace.wire.pack import name_of, pack


def packs_of(sources: Sources) -> dict[str, bytes]:
    """The pack of all modules that were reached, by its name; none when there are none. Raises PayloadError."""
    modules = list(sources.reached())
    if not modules:
        return {}
    packed = pack(modules)
    return {name_of(packed): packed}
