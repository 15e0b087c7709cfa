"""Certificates of an authority for nodes, in files."""

from __future__ import annotations

from pathlib import Path

import trustme

from headrace.wire.tls import TlsFiles


def node_files(directory: Path, authority: trustme.CA | None = None, name: str = "node") -> TlsFiles:
    """A certificate of the authority (None: a new one), its key, and that of the authority."""
    authority = authority or trustme.CA()
    made = authority.issue_cert("node.cluster")
    files = TlsFiles(*(str(directory / f"{name}.{kind}.pem") for kind in ("cert", "key", "ca")))
    made.cert_chain_pems[0].write_to_path(files.certfile)
    made.private_key_pem.write_to_path(files.keyfile)
    authority.cert_pem.write_to_path(files.cafile)
    return files
