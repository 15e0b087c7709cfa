"""TLS between hosts: who may speak at all, by certificates of one authority on both ends.

In: the PEM files that users made for the nodes. Out: contexts, and sockets under TLS that a Connection can own.

TLS 1.3 at least, and both ends show a certificate of the authority in `cafile`. Host names are not checked: nodes are
found by their address, which Ray hands out, so the authority has to be one that signs nothing but nodes of the cluster.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from headrace.spec.errors import InstanceError, OptionError

VARIABLES = {"certfile": "HEADRACE_TLS_CERT", "keyfile": "HEADRACE_TLS_KEY", "cafile": "HEADRACE_TLS_CA"}


class TlsFiles(msgspec.Struct, frozen=True):
    """PEM files: this node's certificate (with what leads to the authority), its key, the authority's certificate."""

    certfile: str
    keyfile: str
    cafile: str

    def variables(self) -> dict[str, str]:
        """What `tls_files` finds them by, for the environment of a process."""
        return {variable: getattr(self, name) for name, variable in VARIABLES.items()}


def tls_files(environ: Mapping[str, str]) -> TlsFiles | None:
    """The files that HEADRACE_TLS_CERT, _KEY and _CA name, None where none is set. Raises OptionError for a part."""
    found = {name: environ.get(variable, "") for name, variable in VARIABLES.items()}
    missing = [VARIABLES[name] for name, path in found.items() if not path]
    if len(missing) == len(found):
        return None
    if missing:
        given = [variable for variable in VARIABLES.values() if variable not in missing]
        raise OptionError(
            f"{' and '.join(given)} without {' and '.join(missing)}: TLS between nodes needs a certificate, its key "
            "and the authority's certificate"
        )
    return TlsFiles(**found)


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """For the end that connects. Raises InstanceError naming the file that cannot be used."""
    return _context(files, ssl.PROTOCOL_TLS_CLIENT)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For the end that is connected to. Raises InstanceError naming the file that cannot be used."""
    return _context(files, ssl.PROTOCOL_TLS_SERVER)


def _context(files: TlsFiles, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # no session is ever resumed
    for path in (files.certfile, files.keyfile, files.cafile):
        if not os.access(path, os.R_OK):
            raise InstanceError(f"the file {path!r} for TLS between nodes is not there, or not readable")
    try:
        context.load_verify_locations(files.cafile)
    except (ssl.SSLError, OSError) as error:
        raise InstanceError(f"{files.cafile!r} holds no certificate of an authority in PEM: {error}") from error
    try:
        # Without a password of ours OpenSSL would ask for one at the terminal.
        context.load_cert_chain(files.certfile, files.keyfile, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise InstanceError(
            f"{files.certfile!r} and {files.keyfile!r} are no certificate and its key (in PEM, the key without a "
            f"password): {error}"
        ) from error
    context.sslsocket_class = TlsSocket
    return context


class TlsSocket(ssl.SSLSocket):
    """A socket under TLS that behaves as a plain, non-blocking one does: it raises BlockingIOError when it has to wait.

    What `send` and `sendmsg` were given when they raised has to be given again as it was. While `pending()`, there is
    more to receive than the readiness of the descriptor tells.
    """

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None

    def sendmsg(self, buffers: Iterable[Any], *_: Any) -> int:  # type: ignore[override]
        return self.send(b"".join(buffers))

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None

    def recvmsg(self, bufsize: int, *_: Any) -> tuple[bytes, list[Any], int, Any]:  # type: ignore[override]
        return self.recv(bufsize), [], 0, None

    def recvmsg_into(self, buffers: Iterable[Any], *_: Any) -> tuple[int, list[Any], int, Any]:  # type: ignore[override]
        """Into the first of the buffers alone: a record is read no further than there is room for it."""
        try:
            return super().recv_into(next(iter(buffers))), [], 0, None
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None


def secured(sock: socket.socket, context: ssl.SSLContext, *, server: bool) -> TlsSocket:
    """The connected socket under TLS; its handshake has not begun. Takes `sock` over."""
    wrapped = context.wrap_socket(sock, server_side=server, do_handshake_on_connect=False)
    assert isinstance(wrapped, TlsSocket)
    return wrapped
