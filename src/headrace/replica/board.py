"""Which models a replica has loaded, told to every router that is connected to it.

In: from the code that loads models, what is ready, being loaded, and gone; from routers, models that they would like to
be loaded. Out: MODELS frames, a first one with all of them to each router that comes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from headrace.wire.frames import MAX_PAYLOAD_BYTES, MODELS, ModelsInfo

if TYPE_CHECKING:
    from headrace.replica.callee import CalleeLink

log = logging.getLogger("headrace.replica")

_encode = msgspec.msgpack.Encoder().encode
_AT_ONCE = 64  # models in a frame; of a name that is longer than a frame has room for, routers are not told


class ModelBoard:
    """The models of one replica. All methods belong to the loop's thread."""

    def __init__(self) -> None:
        self.links: set[CalleeLink] = set()  # to the routers; the server's own set, once there is a server
        self._ready: dict[str, bool] = {}  # model -> whether it is ready, or being loaded
        self.load: Callable[[str], None] | None = None

    def __repr__(self) -> str:
        return f"<ModelBoard {self._ready}>"

    def tell(self, ready: Sequence[str] = (), loading: Sequence[str] = (), gone: Sequence[str] = ()) -> None:
        """These models are ready now, being loaded now, and neither any more: tell the routers."""
        for model in gone:
            self._ready.pop(model, None)
        self._ready |= dict.fromkeys(loading, False) | dict.fromkeys(ready, True)
        for frame in _frames(ready, loading, gone):
            for link in self.links:
                if link.peer:  # the others have not said hello, and will be greeted
                    link.send(0, MODELS, payload=frame)

    def greet(self, link: CalleeLink) -> None:
        """Tell all to a router that has just said hello."""
        ready = [model for model, loaded in self._ready.items() if loaded]
        loading = [model for model, loaded in self._ready.items() if not loaded]
        for frame in _frames(ready, loading, ()):
            link.send(0, MODELS, payload=frame)

    def wanted(self, model: str) -> None:
        """A router would like the model to be loaded."""
        if model not in self._ready and self.load is not None:
            self.load(model)


def _frames(ready: Sequence[str], loading: Sequence[str], gone: Sequence[str]) -> Iterator[bytes]:
    """The payloads of the frames that say so."""
    told = [("ready", model) for model in ready]
    told += [("loading", model) for model in loading]
    told += [("gone", model) for model in gone]
    room = MAX_PAYLOAD_BYTES // _AT_ONCE - 16
    known = [(list_name, model) for list_name, model in told if len(model.encode()) < room]
    for start in range(0, len(known), _AT_ONCE):
        info = ModelsInfo()
        for list_name, model in known[start : start + _AT_ONCE]:
            getattr(info, list_name).append(model)
        yield _encode(info)
