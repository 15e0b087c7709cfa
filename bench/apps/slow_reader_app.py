"""Endless streams of every kind, each of which counts what it makes; and a reader that stops reading when it is told.

HTTP: GET /small and /large are streams of numbered chunks; /start, /made and /more steer the streams between
deployments, and answer JSON. argv: port. Clients that stop reading are cut off after an hour, not after a minute as by
default.
"""

import itertools
import sys

import numpy as np
from starlette.responses import StreamingResponse

from headrace import serve

LARGE_BYTES = 1_000_000
WIDTH = 12  # digits of a chunk's number
TAKEN = 10  # items that the reader takes before it stops


@serve.deployment(max_ongoing_requests=20)
class Maker:
    def __init__(self):
        self.made = {"items": 0, "arrays": 0, "plain": 0, "hop": 0}

    async def items(self, kind):
        for number in itertools.count():
            self.made[kind] += 1
            yield number

    async def arrays(self, kind):
        for number in itertools.count():
            self.made[kind] += 1
            yield np.full(LARGE_BYTES // 8, number, dtype=np.float64)

    def plain(self, kind):
        for number in itertools.count():
            self.made[kind] += 1
            yield number

    async def counts(self):
        return self.made


@serve.deployment(max_ongoing_requests=20)
class Hop:
    def __init__(self, maker):
        self.maker = maker.options(stream=True)

    async def items(self, kind):
        async for item in self.maker.items.remote(kind):
            yield item


@serve.deployment(max_ongoing_requests=20)
class Reader:
    """Takes a few items of each stream, and no more until `more`."""

    def __init__(self, maker, hop):
        maker, hop = maker.options(stream=True), hop.options(stream=True)
        self.calls = {"items": maker.items, "arrays": maker.arrays, "plain": maker.plain, "hop": hop.items}
        self.streams = {}
        self.taken = dict.fromkeys(self.calls, 0)

    async def start(self):
        for kind, call in self.calls.items():
            self.streams[kind] = call.remote(kind)
            await self.take(kind, TAKEN)

    async def more(self, count):
        for kind in self.calls:
            await self.take(kind, count)

    async def take(self, kind, count):
        for _ in range(count):
            item = await anext(self.streams[kind])
            number = int(item[-1]) if kind == "arrays" else item
            if number != self.taken[kind]:
                raise RuntimeError(f"{kind}: item {self.taken[kind]} arrived as {number}")
            self.taken[kind] += 1


@serve.deployment(max_ongoing_requests=20)
class Web:
    def __init__(self, maker, reader):
        self.maker, self.reader = maker, reader
        self.made = {"http small": 0, "http large": 0}

    async def chunks(self, kind, padding):
        for number in itertools.count():
            self.made[kind] += 1
            yield b"%0*d\n" % (WIDTH, number) + padding

    async def __call__(self, request):
        path = request.url.path
        if path == "/small":
            return StreamingResponse(self.chunks("http small", b""))
        if path == "/large":
            return StreamingResponse(self.chunks("http large", b"x" * (LARGE_BYTES - WIDTH - 1)))
        if path == "/start":
            return await self.reader.start.remote()
        if path == "/more":
            return await self.reader.more.remote(int(request.query_params["count"]))
        return {**await self.maker.counts.remote(), **self.made}


maker = Maker.bind()
app = Web.bind(maker, Reader.bind(maker, Hop.bind(maker)))

if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1]), "body_timeout_s": 3600})
    serve.run(app, blocking=True)
