"""Serves on a Ray cluster, measures its own handle calls there, and ends. argv: framework, address, port, seconds.

The same file runs on Headrace and on Ray Serve: only the start differs. Run by `bench/ray_cluster.py` in the
environment that holds both. Out: SERVING once all is up, whereupon somebody else loads it over HTTP; after a line on
standard input the figures as one line of JSON: medians in microseconds, and calls a second with 64 at once. `far` is to
the other node.
"""

import asyncio
import importlib
import json
import os
import statistics
import sys
import time

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

# Where Ray Serve's throughput mode is on, a script that is no coroutine cannot use a handle. So the script itself reads
# its flags without it, and everything that it starts has it.
FLAGS = {name: value for name, value in os.environ.items() if name.startswith("RAY_SERVE_")}
os.environ.pop("RAY_SERVE_THROUGHPUT_OPTIMIZED", None)
serve = importlib.import_module({"headrace": "headrace.serve", "ray": "ray.serve"}[sys.argv[1]])
ADDRESS, PORT, SECONDS = sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
FIRST = {"num_cpus": 0.1, "resources": {"first": 1}}
SECOND = {"num_cpus": 0.1, "resources": {"second": 1}}


@serve.deployment(max_ongoing_requests=100, ray_actor_options=FIRST)
class Total:
    async def __call__(self, request):
        return {"y": sum(json.loads(await request.body())["x"])}


@serve.deployment(max_ongoing_requests=100, ray_actor_options=FIRST)
class Echo:
    async def __call__(self, value):
        return value

    async def last(self, array):
        return float(array[-1])


class Message(BaseModel):
    text: str


web = FastAPI()


@serve.deployment(max_ongoing_requests=100, ray_actor_options=FIRST)
@serve.ingress(web)
class Front:
    def __init__(self, echo):
        self.echo = echo

    @web.post("/")
    async def ask(self, message: Message):
        return {"text": await self.echo.remote(message.text)}


@serve.deployment(max_ongoing_requests=100, ray_actor_options=FIRST)
class Caller:
    def __init__(self, near, far):
        self.echoes = {"near": near, "far": far}

    async def flags(self):
        """Which of Ray Serve's flags have come here."""
        return {name: value for name, value in os.environ.items() if name in FLAGS}

    async def sequence(self, which):
        """Median of calls made one after the other."""
        return await self.median_us(lambda: self.echoes[which].remote(1), 1)

    async def arrays(self, which):
        """Median of calls with an array of 10 MB as the argument and a float back."""
        array = np.arange(1_250_000, dtype=np.float64)
        return await self.median_us(lambda: self.echoes[which].last.remote(array), float(array[-1]))

    async def median_us(self, call, expected):
        times = []
        for _ in range(20):
            assert await call() == expected
        end = time.perf_counter() + SECONDS
        while (began := time.perf_counter()) < end:
            await call()
            times.append(time.perf_counter() - began)
        return statistics.median(times) * 1e6

    async def at_once(self, which, width):
        """Calls a second with `width` of them under way at any time."""
        done = 0

        async def work(end):
            nonlocal done
            while time.perf_counter() < end:
                answer = await self.echoes[which].remote(1)  # before `done` is read: others add to it meanwhile
                done += answer

        await asyncio.gather(*(work(time.perf_counter() + 0.2) for _ in range(width)))
        done, began = 0, time.perf_counter()
        await asyncio.gather(*(work(began + SECONDS) for _ in range(width)))
        return done / (time.perf_counter() - began)


def start():
    """The instance, with an ingress on the head node alone: all have one address here."""
    http = {"host": "127.0.0.1", "port": PORT}
    if sys.argv[1] == "headrace":
        serve.start(engine="ray", address=ADDRESS, http_options=http, proxy_location="HeadOnly")
        return
    ray = importlib.import_module("ray")
    ray.init(ADDRESS, runtime_env={"env_vars": FLAGS}, log_to_driver=False)
    serve.start(http_options=http, proxy_location="HeadOnly")


def main():
    start()
    serve.run(Total.bind(), name="noop", route_prefix="/noop")
    far = Echo.options(name="Far", ray_actor_options=SECOND)
    serve.run(Front.bind(far.bind()), name="composed", route_prefix="/composed")
    caller = serve.run(Caller.bind(Echo.bind(), far.bind()), name="calls", route_prefix=None)
    flags = caller.flags.remote().result()
    assert flags == FLAGS, f"the replicas have the flags {flags}, and were to have {FLAGS}"
    print("SERVING", flush=True)
    sys.stdin.readline()
    figures = {
        "call_us": caller.sequence.remote("near").result(),
        "calls": caller.at_once.remote("near", 64).result(),
        "far_call_us": caller.sequence.remote("far").result(),
        "far_calls": caller.at_once.remote("far", 64).result(),
        "array_us": caller.arrays.remote("near").result(),
        "far_array_us": caller.arrays.remote("far").result(),
    }
    print("FIGURES " + json.dumps(figures), flush=True)
    serve.shutdown()


if __name__ == "__main__":
    main()
