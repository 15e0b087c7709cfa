"""Streams between deployments: a hundred items each, by handles. `bench/apps/handle_streams.py` measures, in a replica.

In: the section's entrants. Out: `HANDLE_STREAMS`, items a second.
"""

from __future__ import annotations

import msgspec

from bench.calls import run_script
from bench.peers import RAY_FAST_ENV, WEB, Peer
from bench.results import Measured
from bench.section import Column, Section


def measure(peer: Peer, seconds: float) -> Measured:
    """Run the script in the entrant's environment."""
    figures = run_script(peer, "handle_streams.py", peer.calls, str(min(seconds, 1.0)))
    return Measured(msgspec.json.decode(figures, type=dict[str, float]))


HANDLE_STREAMS = Section(
    "streams",
    "Streams of a hundred items, handle to handle",
    "Items a second that a coroutine in a replica reads from a generator in another by `options(stream=True)`; hop: "
    "by way of a third deployment that hands each item on. The same file on both.",
    (
        Peer("headrace", "Headrace", (), WEB, calls="headrace"),
        Peer(
            "ray-fast",
            "Ray Serve, throughput flags and HAProxy",
            (),
            "ray",
            env=RAY_FAST_ENV,
            calls="ray",
        ),
    ),
    (
        Column("items_1", "one stream"),
        Column("items_16", "16 streams"),
        Column("awaiting_1", "awaiting, one"),
        Column("plain_1", "plain generator, one"),
        Column("hop_1", "hop, one"),
        Column("hop_16", "hop, 16"),
        Column("script_1", "from a script, one"),
    ),
    measure,
    picture=frozenset({"ray-fast"}),
    compare="items_1",
)
