"""All sections beside the no-op model and handle calls, in the order of the tables.

In: the sections' modules. Out: `SECTIONS` by name.
"""

from __future__ import annotations

from bench.batching import BATCHING
from bench.fastapi_apps import ASGI, COMPOSED, HTTP_STREAMS
from bench.grpc_calls import GRPC
from bench.handle_streams import HANDLE_STREAMS
from bench.hedging import HEDGING
from bench.multiplexing import HOT_MODEL, MULTIPLEXING
from bench.objective import OBJECTIVE
from bench.overload import OVERLOAD
from bench.section import Section
from bench.shadow import SHADOW
from bench.slow_reader import SLOW_READER

SECTIONS: dict[str, Section] = {
    section.name: section
    for section in (
        ASGI,
        COMPOSED,
        HANDLE_STREAMS,
        HTTP_STREAMS,
        GRPC,
        OVERLOAD,
        SLOW_READER,
        BATCHING,
        OBJECTIVE,
        HEDGING,
        MULTIPLEXING,
        HOT_MODEL,
        SHADOW,
    )
}
