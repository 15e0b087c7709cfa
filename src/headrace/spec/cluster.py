"""How the processes of an instance on several nodes reach each other: options, validated once.

In: what users write (`serve.start(engine="ray", cluster_options=...)`, `--cluster-...`). Out: a ClusterOptions that is
valid, or an error that names the option, the value, and what would be right.
"""

from __future__ import annotations

import msgspec


class ClusterOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`ports` (first, last) are those that processes listen on for each other, None: any. `node_address` is the address
    under which a node is reached by the others ("": the one that Ray has for it).

    With `tls_certfile`, `tls_keyfile` and `tls_cafile` (PEM files, at the same path on every node) connections between
    nodes are TLS in which both ends show a certificate of that authority; without, they are authenticated by the
    instance's secret alone, and not encrypted.
    """

    ports: tuple[int, int] | None = None
    node_address: str = ""
    tls_certfile: str = ""
    tls_keyfile: str = ""
    tls_cafile: str = ""
