"""A request to open a WebSocket, and once the replica has opened it, the bytes of both ways.

In: the replica's answer, then its bytes; bytes of the client, which its connection hands to the router. Out: an
ordinary response (and the end of the connection), or 101 and then bytes as they come: to read frames and messages in
them is the replica's.

A tunnel has no deadline and no idle limit once it is open. It ends with either end, or when the ingress does: then the
replica is told that no more bytes come, and closes by itself (`headrace.replica.websocket`).
"""

from __future__ import annotations

from headrace.ingress.exchange import Exchange
from headrace.ingress.response import BadResponseError, switching
from headrace.wire.frames import HTTP, MORE, STREAM


class Tunnel(Exchange):
    """`open`: the replica has answered 101. `ended`: no more of the client's bytes go to it."""

    kind = HTTP | STREAM
    more = True
    received = False
    open = False
    ended = False
    accept_by: float | None = None  # when the handshake must have been answered; the call itself has no deadline

    def on_reply(self, flags: int, meta: bytes, payload: bytes) -> None:
        if self.over:
            return
        lines: bytes | None = None
        try:
            if flags & HTTP and flags & MORE:
                lines = switching(meta)
        except BadResponseError as error:
            self._complain(str(error))
            return self.answer(500, "Internal Server Error", drop=True)
        if lines is None:
            return super().on_reply(flags, meta, payload)
        connection = self.connection
        self.open = self.begun = True
        self.persistent = False
        self.until_close = True  # bytes as they are, and a reset when they break off
        self.kept = None  # what has been sent cannot be sent again to another replica
        heads = connection.door.heads
        start = b"%b%b%b\r\n\r\n" % (lines, heads.common, self.request_id.encode())
        connection.transport.write(start + payload)
        if connection.door.draining:
            self.end_input()

    def on_data(self, payload: bytes, more: bool) -> None:
        if not self.over:
            super().on_data(payload, more)
        elif more:
            # The client has left, and the replica does not know yet.
            self.connection.door.router.consumed(self, len(payload))

    def limit(self, deadline: float) -> None:
        self.accept_by = deadline

    def due(self) -> float | None:
        return None if self.begun else self.accept_by

    def end_input(self) -> None:
        """Tell the replica that nothing more will come: it ends the WebSocket, and the application hears of it."""
        if not self.ended:
            self.ended = True
            self.connection.door.router.send_body(self, b"", False)

    def cancel(self) -> None:
        if self.over:
            return
        if not self.open:
            return super().cancel()
        # Not Router.cancel: what the client has sent last, its Close maybe, is still on its way and to be read.
        self.over = True
        owed, self.owed = self.owed, 0
        if owed:
            self.connection.door.router.consumed(self, owed)
        self.end_input()
