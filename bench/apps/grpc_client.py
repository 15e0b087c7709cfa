"""Asks the gRPC service of `echo.proto` as Python users do, by grpcio. argv: `check` or `measure`, port, seconds.

`check` waits for a right answer and prints the bytes of one request and of one reply as they go over the wire (prefix
and message, in hexadecimal); `measure` prints figures as one line of JSON.
"""

import asyncio
import json
import statistics
import sys
import time

import echo_pb2
import echo_pb2_grpc
import grpc

REQUEST = echo_pb2.Text(text="a short message", number=41)
REPLY = echo_pb2.Text(text="a short message", number=42)
ITEMS = 100
CHANNELS, CALLS = 4, 8


def on_the_wire(message):
    """As gRPC frames it: not compressed, its length, its bytes."""
    data = message.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


async def say(stub):
    reply = await stub.Say(REQUEST)
    if reply != REPLY:
        raise RuntimeError(f"answers {reply!r}, where {REPLY!r} is right")


async def count(stub):
    numbers = [reply.number async for reply in stub.Count(echo_pb2.Text(text="item", number=ITEMS))]
    if numbers != list(range(ITEMS)):
        raise RuntimeError(f"a stream of {ITEMS} replies arrived as {numbers}")


async def check(address):
    async with grpc.aio.insecure_channel(address) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        for _ in range(400):
            try:
                await say(stub)
                break
            except grpc.aio.AioRpcError as error:
                last = f"{error.code().name}: {error.details()}"
                await asyncio.sleep(0.05)
        else:
            raise RuntimeError(f"did not answer within 20 s ({last})")
        await count(stub)
    print("FIGURES " + json.dumps({"request": on_the_wire(REQUEST).hex(), "reply": on_the_wire(REPLY).hex()}))


async def rate(stubs, call, seconds):
    """Calls a second, with CALLS under way on each channel."""
    done = 0

    async def ask(stub, end):
        nonlocal done
        while time.perf_counter() < end:
            await call(stub)
            done += 1

    async def ask_all(end):
        await asyncio.gather(*(ask(stub, end) for stub in stubs for _ in range(CALLS)))

    await ask_all(time.perf_counter() + 0.2)
    done, began = 0, time.perf_counter()
    await ask_all(began + seconds)
    return done / (time.perf_counter() - began)


async def median_us(stub, seconds):
    times = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        await say(stub)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


async def measure(address, seconds):
    # Channels with the same options share a connection unless they are told not to.
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]
    stubs = [echo_pb2_grpc.EchoStub(channel) for channel in channels]
    figures = {
        "p50_us": await median_us(stubs[0], seconds),
        "python_32": await rate(stubs, say, seconds),
        "stream_items": await rate(stubs, count, seconds) * ITEMS,
    }
    for channel in channels:
        await channel.close()
    print("FIGURES " + json.dumps(figures), flush=True)


if __name__ == "__main__":
    address = f"127.0.0.1:{sys.argv[2]}"
    asyncio.run(check(address) if sys.argv[1] == "check" else measure(address, float(sys.argv[3])))
