"""A controller's end of the control socket for tests: it records what it is told and says what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from headrace.wire.channel import ControlChannel
from headrace.wire.control import CONTROL_VERSION, Hello, Message, Request


class ControlPeer:
    """Serves `path`; answers Hello by Hello of `version`, and a Request by what `answer` gives for it."""

    def __init__(
        self, path: Path, version: int = CONTROL_VERSION, answer: Callable[[Request], list[Message]] | None = None
    ) -> None:
        self.path = path
        self.version = version
        self.answer = answer
        self.received: list[Message] = []
        self.channels: list[ControlChannel] = []
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: ControlChannel(self._message, self._gone, on_open=self.channels.append, name="a test"),
            str(self.path),
        )

    def _message(self, channel: ControlChannel, message: Message) -> None:
        self.received.append(message)
        if isinstance(message, Hello):
            channel.send(Hello(role="controller", id="controller", pid=1, version=self.version))
        if isinstance(message, Request) and self.answer is not None:
            for reply in self.answer(message):
                channel.send(reply)
        self._changed.set()

    def _gone(self, channel: ControlChannel) -> None:
        self.channels.remove(channel)
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; looked at whenever a message arrives or a connection ends."""
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def of(self, kind: type) -> list[Message]:
        return [message for message in self.received if isinstance(message, kind)]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for channel in list(self.channels):
            channel.abort()
        await self.until(lambda: not self.channels)
        self.path.unlink(missing_ok=True)
