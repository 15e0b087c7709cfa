"""Measures handle calls and prints the figures as one line of JSON. argv: the framework (headrace or ray), seconds.

The same file runs on both: only the import differs. Run by `bench/calls.py` with the interpreter of the framework's
environment. In: nothing. Out: medians in microseconds, and calls a second with 64 at once.
"""

import asyncio
import importlib
import json
import os
import socket
import statistics
import sys
import time

import numpy as np

# Where Ray Serve's throughput mode is on, a script that is no coroutine cannot use a handle. So the script itself reads
# its flags without it, and everything that it starts has it.
throughput_flag = os.environ.pop("RAY_SERVE_THROUGHPUT_OPTIMIZED", None)
serve = importlib.import_module({"headrace": "headrace.serve", "ray": "ray.serve"}[sys.argv[1]])
if throughput_flag is not None:
    os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = throughput_flag


@serve.deployment(max_ongoing_requests=100)
class Echo:
    async def __call__(self, value):
        return value

    async def last(self, array):
        return float(array[-1])


@serve.deployment(max_ongoing_requests=100)
class Caller:
    def __init__(self, echo):
        self.echo = echo

    async def sequence(self, seconds):
        """Median of calls made one after the other, in microseconds."""
        return await self.median_us(seconds, lambda: self.echo.remote(1), 1)

    async def arrays(self, seconds, megabytes):
        """Median of calls with an array of float64 as the argument and a float back, in microseconds."""
        array = np.arange(megabytes * 125_000, dtype=np.float64)
        return await self.median_us(seconds, lambda: self.echo.last.remote(array), float(array[-1]))

    async def median_us(self, seconds, call, expected):
        times = []
        for _ in range(20):
            assert await call() == expected
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            await call()
            times.append(time.perf_counter() - began)
        return statistics.median(times) * 1e6

    async def at_once(self, seconds, width):
        """Calls a second with `width` of them under way at any time."""
        done = 0

        async def work(end):
            nonlocal done
            while time.perf_counter() < end:
                answer = await self.echo.remote(1)  # before `done` is read: others add to it meanwhile
                done += answer

        await asyncio.gather(*(work(time.perf_counter() + 0.2) for _ in range(width)))
        done, began = 0, time.perf_counter()
        await asyncio.gather(*(work(began + seconds) for _ in range(width)))
        return done / (time.perf_counter() - began)


def from_driver(seconds, call, expected):
    """Median of `.result()` calls of this script, one after the other, in microseconds."""
    times = []
    for _ in range(20):
        assert call().result() == expected
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        call().result()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main():
    seconds = float(sys.argv[2])
    serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
    caller = serve.run(Caller.bind(Echo.bind()))
    echo = serve.get_deployment_handle("Echo", "default")
    array = np.arange(1_250_000, dtype=np.float64)
    figures = {
        "sequence_us": caller.sequence.remote(seconds).result(),
        "result_us": from_driver(seconds, lambda: echo.remote(1), 1),
        "at_once_per_s": caller.at_once.remote(seconds, 64).result(),
        "array_1mb_us": caller.arrays.remote(seconds, 1).result(),
        "array_10mb_us": caller.arrays.remote(seconds, 10).result(),
        "driver_array_10mb_us": from_driver(seconds, lambda: echo.last.remote(array), float(array[-1])),
    }
    print("FIGURES " + json.dumps(figures), flush=True)
    serve.shutdown()


if __name__ == "__main__":
    main()
