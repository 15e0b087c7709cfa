"""Measures streams between deployments and prints items a second as one line of JSON. argv: the framework, seconds.

The same file runs on Headrace and on Ray Serve: only the import differs. Run by `bench/handle_streams.py` with the
interpreter of the framework's environment. In: nothing. Out: items a second, over streams of a hundred items.
"""

import asyncio
import importlib
import json
import os
import socket
import sys
import time

# As in calls.py: where Ray Serve's throughput mode is on, a script that is no coroutine cannot use a handle.
throughput_flag = os.environ.pop("RAY_SERVE_THROUGHPUT_OPTIMIZED", None)
serve = importlib.import_module({"headrace": "headrace.serve", "ray": "ray.serve"}[sys.argv[1]])
if throughput_flag is not None:
    os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = throughput_flag

ITEMS = 100
SHARE = {"num_cpus": 0.5}  # Ray Serve does not place three replicas of a CPU each on two


@serve.deployment(max_ongoing_requests=100, ray_actor_options=SHARE)
class Maker:
    async def items(self):
        for number in range(ITEMS):
            yield number

    async def awaiting_items(self):
        for number in range(ITEMS):
            await asyncio.sleep(0)
            yield number

    def plain_items(self):
        yield from range(ITEMS)


@serve.deployment(max_ongoing_requests=100, ray_actor_options=SHARE)
class Hop:
    """Hands each item on."""

    def __init__(self, maker):
        self.maker = maker.options(stream=True)

    async def items(self):
        async for item in self.maker.items.remote():
            yield item


@serve.deployment(max_ongoing_requests=100, ray_actor_options=SHARE)
class Reader:
    def __init__(self, maker, hop):
        self.maker = maker.options(stream=True)
        self.hop = hop.options(stream=True)

    async def rate(self, what, seconds, width):
        """Items a second with `width` streams under way at any time."""
        call = {
            "items": self.maker.items,
            "awaiting": self.maker.awaiting_items,
            "plain": self.maker.plain_items,
            "hop": self.hop.items,
        }[what]
        count = 0

        async def read(end):
            nonlocal count
            while time.perf_counter() < end:
                expected = 0
                async for item in call.remote():
                    if item != expected:
                        raise RuntimeError(f"item {expected} arrived as {item!r}")
                    expected += 1
                if expected != ITEMS:
                    raise RuntimeError(f"a stream of {ITEMS} items ended after {expected}")
                count += expected

        await asyncio.gather(*(read(time.perf_counter() + 0.2) for _ in range(width)))
        count, began = 0, time.perf_counter()
        await asyncio.gather(*(read(began + seconds) for _ in range(width)))
        return count / (time.perf_counter() - began)


def from_script(maker, seconds):
    """Items a second that this script reads by plain iteration."""
    call = maker.options(stream=True).items
    count, began = 0, time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        got = list(call.remote())
        if got != list(range(ITEMS)):
            raise RuntimeError(f"a stream of {ITEMS} items arrived as {got!r}")
        count += ITEMS
    return count / (now - began)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main():
    seconds = float(sys.argv[2])
    serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
    maker = Maker.bind()
    reader = serve.run(Reader.bind(maker, Hop.bind(maker)))

    def rate(what, width):
        return reader.rate.remote(what, seconds, width).result()

    figures = {
        "items_1": rate("items", 1),
        "items_16": rate("items", 16),
        "awaiting_1": rate("awaiting", 1),
        "plain_1": rate("plain", 1),
        "hop_1": rate("hop", 1),
        "hop_16": rate("hop", 16),
        "script_1": from_script(serve.get_deployment_handle("Maker", "default"), seconds),
    }
    print("FIGURES " + json.dumps(figures), flush=True)
    serve.shutdown()


if __name__ == "__main__":
    main()
