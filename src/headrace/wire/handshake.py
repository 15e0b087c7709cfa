"""The mutual proof, at the start of a connection between hosts, that both ends hold the instance's secret.

In: the secret, the bytes that the other end sent. Out: bytes to send, then `done`. No socket and no clock here.

Three passes, by HMAC-SHA256 over fresh nonces of both ends (ISO/IEC 9798-4, three-pass mutual authentication; the same
as SKID3 in Menezes, van Oorschot and Vanstone, Handbook of Applied Cryptography, 10.3.3):

    initiator -> acceptor: GREETING | nonce_i
    acceptor -> initiator: GREETING | nonce_a | mac(ACCEPTOR, purpose, nonce_i, nonce_a)
    initiator -> acceptor: mac(INITIATOR, purpose, nonce_i, nonce_a)

What holds here:
- Nothing that was recorded or is echoed proves anything: each proof covers a nonce that its verifier has just drawn,
  and the role of who gives it.
- Each message has one length, and nothing may come before its turn: an end keeps at most MAX_BYTES of a stranger.
- It proves who is there at the start. Who can change what is on its way later is kept out by TLS alone.
"""

from __future__ import annotations

import hmac
import os
import struct

from headrace.spec.errors import ProtocolError

SECRET_BYTES = 32
NONCE_BYTES = 32
MAC_BYTES = 32
GREETING = b"headrace\x01"  # with the version of this handshake
MAX_BYTES = len(GREETING) + NONCE_BYTES + MAC_BYTES  # of one message

_LABEL = b"headrace handshake 1"
_INITIATOR, _ACCEPTOR = b"initiator", b"acceptor"
_U16 = struct.Struct("<H")


class HandshakeError(ProtocolError):
    """The other end did not prove that it holds the instance's secret, or says that it speaks something else."""


class Handshake:
    """One end of the handshake of one connection: `begin`, then `feed` what comes until it is `done`.

    `purpose` says what the connection is for and with whom (a replica's id, say), and is part of both proofs: both ends
    have to mean the same. `rest` is what came after the handshake. Each end may send at once when it is `done`.
    """

    def __init__(self, secret: bytes, *, initiator: bool, purpose: str = "") -> None:
        if len(secret) < SECRET_BYTES:
            raise ValueError(f"the secret of an instance has {SECRET_BYTES} bytes, not {len(secret)}")
        self.done = False
        self.rest = b""
        self._secret = secret
        self._initiator = initiator
        self._purpose = purpose.encode()
        self._nonce = os.urandom(NONCE_BYTES)
        self._theirs = b""
        self._expected = MAX_BYTES if initiator else len(GREETING) + NONCE_BYTES
        self._buffer = b""
        self._error = ""

    def __repr__(self) -> str:
        state = self._error or ("done" if self.done else f"waits for {self.wanted} bytes")
        return f"<Handshake of the {'initiator' if self._initiator else 'acceptor'}, {state}>"

    @property
    def wanted(self) -> int:
        """How many bytes more it takes until `feed` has something to answer, or it is done."""
        return 0 if self.done else self._expected - len(self._buffer)

    def begin(self) -> bytes:
        """What to send before anything has come."""
        return GREETING + self._nonce if self._initiator else b""

    def feed(self, data: bytes) -> bytes:
        """What to send in answer to `data`. Raises HandshakeError: the connection is then to be closed unanswered."""
        if self._error:
            raise HandshakeError(self._error)
        if self.done:
            self.rest += data
            return b""
        wanted = self._expected - len(self._buffer)
        self._buffer += data[:wanted]
        behind = data[wanted:]
        greeted = self._buffer[: len(GREETING)]
        if not self._theirs and greeted != GREETING[: len(greeted)]:
            raise self._fail("it does not begin as a handshake does")
        if len(self._buffer) < self._expected:
            return b""
        message, self._buffer = self._buffer, b""
        answer = self._take(message)
        if behind and (self._initiator or not self.done):
            raise self._fail("it said more than was its turn")
        self.rest = behind
        return answer

    def _take(self, message: bytes) -> bytes:
        """A whole message of the other end."""
        if not self._theirs:
            self._theirs = message[len(GREETING) : len(GREETING) + NONCE_BYTES]
            if not self._initiator:
                self._expected = MAC_BYTES
                return GREETING + self._nonce + self._mac(_ACCEPTOR)
        theirs, ours = (_ACCEPTOR, _INITIATOR) if self._initiator else (_INITIATOR, _ACCEPTOR)
        if not hmac.compare_digest(message[-MAC_BYTES:], self._mac(theirs)):
            raise self._fail("its proof does not fit: it holds another secret, or means another process than this one")
        self.done = True
        return self._mac(ours) if self._initiator else b""

    def _mac(self, role: bytes) -> bytes:
        first, second = (self._nonce, self._theirs) if self._initiator else (self._theirs, self._nonce)
        text = b"".join((_LABEL, _counted(role), _counted(self._purpose), first, second))
        return hmac.digest(self._secret, text, "sha256")

    def _fail(self, reason: str) -> HandshakeError:
        self._error = reason
        self._buffer = b""
        return HandshakeError(reason)


def _counted(text: bytes) -> bytes:
    return _U16.pack(len(text)) + text
