"""TLS at the door: the context that the options ask for, and each connection until it is encrypted.

In: HTTPOptions that name files; plain connections from the listener. Out: encrypted ones, as ClientConnections like any
other. A handshake has `header_timeout_s`; one that fails ends its connection and nothing else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from headrace.spec.config import HTTPOptions
from headrace.spec.errors import OptionError

if TYPE_CHECKING:
    from headrace.ingress.door import Door

SHUTDOWN_S = 5.0  # for a client to answer our close_notify, so that it has read what came before


def context_of(options: HTTPOptions, *, closed_keys: bool = True) -> ssl.SSLContext | None:
    """The context that the options ask for, None for plain HTTP. Raises OptionError naming the option and the file.

    `closed_keys`: whether there is an option for the password of an encrypted key (gRPC has none).
    """
    if options.ssl_certfile is None:
        return None
    certificate, key = options.ssl_certfile, options.ssl_keyfile
    for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):
        _check_readable(name, getattr(options, name))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    asked: list[None] = []

    def password() -> str:
        asked.append(None)  # without this function, OpenSSL would ask at the terminal
        return options.ssl_keyfile_password or ""

    try:
        context.load_cert_chain(certificate, key, password)
    except (ssl.SSLError, ValueError) as error:
        if asked and not closed_keys:
            raise OptionError(f"ssl_keyfile={key!r} is encrypted: give a key that is not") from error
        raise OptionError(_what_is_wrong(options, bool(asked), error)) from error
    if options.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(options.ssl_ca_certs)
        except ssl.SSLError as error:
            raise OptionError(
                f"ssl_ca_certs={options.ssl_ca_certs!r} must be a PEM file of certificates ({error.reason})"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_readable(name: str, path: str | None) -> None:
    if path is None:
        return
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise OptionError(f"{name}={path!r} cannot be read: {error.strerror}") from error


def _what_is_wrong(options: HTTPOptions, encrypted: bool, error: Exception) -> str:
    """In words of the options: OpenSSL's name neither the file nor what would be right."""
    certificate, key = options.ssl_certfile, options.ssl_keyfile
    where = f"ssl_keyfile={key!r}" if key is not None else f"ssl_certfile={certificate!r}"
    reason = getattr(error, "reason", None) or str(error)
    if reason == "KEY_VALUES_MISMATCH":
        return f"the key in {where} does not belong to the certificate in ssl_certfile={certificate!r}"
    if encrypted:
        if options.ssl_keyfile_password is None:
            return f"the key in {where} is encrypted: give its ssl_keyfile_password"
        return f"ssl_keyfile_password does not open the key in {where}"
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_verify_locations(certificate)
    except ssl.SSLError:
        return f"ssl_certfile={certificate!r} must be a PEM file that begins with the server's certificate ({reason})"
    if key is None:
        return f"{where} holds no key: append it to the file, or give the file that has it as ssl_keyfile ({reason})"
    return f"{where} must be a PEM file with the key of ssl_certfile={certificate!r} ({reason})"


class TlsHandshake(asyncio.Protocol):
    """The plain side of one connection until it is encrypted; then what `make` makes takes its place.

    It takes the place itself, for a moment: the first bytes may be there before anybody has been told that TLS stands.
    And uvloop may bring bytes before TLS has begun, although the transport was told to pause.
    """

    def __init__(self, door: Door, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol]) -> None:
        self._door = door
        self._context = context
        self._make = make
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._early: list[bytes] = []
        self._ended = False

    def __repr__(self) -> str:
        return f"<TlsHandshake of {self._transport!r}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # asyncio's and uvloop's share no useful type
        assert self._transport is not None
        door = self._door
        if door.flooded:
            self._transport.abort()
            return
        self._transport.pause_reading()  # what comes is for TLS, from the first byte
        door.handshakes.add(self)
        self._task = door.loop.create_task(self._shake(self._transport), name="tls")

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def eof_received(self) -> None:
        self._ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self.abort()  # TLS that begins on a connection which is gone would wait until its time is over

    def abort(self) -> None:
        """Give the connection up."""
        if self._task is not None:
            self._task.cancel()

    def _hand_over(self) -> None:
        """Give TLS what came before it had begun."""
        transport, data = self._transport, b"".join(self._early)
        self._early.clear()
        if transport is None or transport.is_closing():
            return
        # A BufferedProtocol by its methods, whosever loop it is.
        tls = cast("asyncio.BufferedProtocol", transport.get_protocol())
        while data:
            buffer = memoryview(tls.get_buffer(len(data)))
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            tls.buffer_updated(count)
            data = data[count:]

    async def _shake(self, transport: asyncio.Transport) -> None:
        door = self._door
        try:
            # In a task of its own, whose first step pauses the transport and has TLS begin in the next tick: what has
            # come until then is handed over there, before the transport reads again.
            start = door.loop.start_tls(
                transport,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=door.options.header_timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
            starting = door.loop.create_task(start, name="tls")
            try:
                await asyncio.sleep(0)
                if self._early:
                    door.loop.call_soon(self._hand_over)
                encrypted = await starting
            finally:
                starting.cancel()  # it is not waited for where this was cancelled before
            if encrypted is None or self._ended:
                transport.abort()
                return
            protocol = self._make()
            encrypted.set_protocol(protocol)
            protocol.connection_made(encrypted)
            if self._early:
                protocol.data_received(b"".join(self._early))
        except OSError:  # an ssl.SSLError is one, and so is a TimeoutError: clients of any kind knock here
            transport.abort()
        except asyncio.CancelledError:
            transport.abort()
        finally:
            self._transport = self._task = None
            door.shaken(self)
