"""Streams over HTTP: a StreamingResponse from an async generator, from a plain one, and server-sent events."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Generator

from starlette.requests import Request
from starlette.responses import StreamingResponse

from headrace import serve


@serve.deployment
class Countdown:
    def __init__(self):
        self.closed = 0

    async def words(self, start: int) -> AsyncGenerator[str, None]:
        for number in range(start, 0, -1):
            yield f"{number} "
            await asyncio.sleep(0.001)
        yield "go"

    def slowly(self, start: int) -> Generator[bytes, None, None]:
        for number in range(start, 0, -1):
            yield str(number).encode()
            time.sleep(0.001)

    async def events(self, start: int) -> AsyncGenerator[str, None]:
        for number in range(start, 0, -1):
            yield f"event: tick\ndata: {json.dumps({'left': number})}\n\n"
        yield "data: [DONE]\n\n"

    async def endless(self) -> AsyncGenerator[str, None]:
        try:
            while True:
                yield "more\n"
                await asyncio.sleep(0.01)
        finally:
            self.closed += 1

    async def __call__(self, request: Request) -> StreamingResponse:
        start = int(request.query_params.get("from", 3))
        match request.url.path:
            case "/plain":
                return StreamingResponse(self.slowly(start), media_type="application/octet-stream")
            case "/events":
                headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
                return StreamingResponse(self.events(start), media_type="text/event-stream", headers=headers)
            case "/endless":
                return StreamingResponse(self.endless(), media_type="text/plain")
            case "/broken":
                return StreamingResponse(self.broken(), media_type="text/plain")
        return StreamingResponse(self.words(start), status_code=202, media_type="text/plain")

    async def broken(self) -> AsyncGenerator[str, None]:
        yield "begun"
        await asyncio.sleep(0.05)
        raise RuntimeError("the model broke down")

    def how_many_closed(self) -> int:
        return self.closed


app = Countdown.bind()
