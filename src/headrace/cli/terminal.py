"""Text for a terminal: colours where they can be seen, and a prefix for each line that a process printed.

In: lines of our own and of the instance's processes. Out: the same, dressed for the stream that they go to.
"""

from __future__ import annotations

import os
import zlib
from typing import IO

_RESET = "\x1b[0m"
_HUES = (36, 35, 34, 33, 32, 96, 95, 94)  # not red: that is for what is wrong


class Style:
    """How things look on one stream: in colour or not, with other characters than those of ASCII or without."""

    def __init__(self, colour: bool, ascii: bool = False) -> None:
        self._colour = colour
        self.ascii = ascii

    @classmethod
    def of(cls, stream: IO[str]) -> Style:
        """Colour when the stream is a terminal; `NO_COLOR` and `TERM=dumb` are heard."""
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        encoding = (getattr(stream, "encoding", None) or "utf-8").lower()
        return cls(not plain and stream.isatty(), not encoding.startswith("utf"))

    def good(self, text: str) -> str:
        return self._in("32", text)

    def bad(self, text: str) -> str:
        return self._in("31", text)

    def dim(self, text: str) -> str:
        return self._in("2", text)

    def strong(self, text: str) -> str:
        return self._in("1", text)

    def process(self, name: str) -> str:
        """The name of a process in a colour of its deployment, the same in every run."""
        deployment = name.partition("#")[0]
        return self._in(str(_HUES[zlib.crc32(deployment.encode()) % len(_HUES)]), name)

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}{_RESET}" if self._colour else text


def shown_name(process_id: str) -> str:
    """A process's id as a prefix: `Digits#3` for `Digits#3@default`, with the application where that is another."""
    name, _, app = process_id.partition("@")
    return process_id if app and app != "default" else name
