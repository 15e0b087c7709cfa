"""Backpressure: a deployment that takes one call at a time and lets only one more wait."""

import asyncio

from headrace import serve


@serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
class Room:
    async def __call__(self, request) -> str:
        await asyncio.sleep(0.8)
        return "served"


app = Room.bind()
