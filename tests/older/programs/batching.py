"""0.8 and 1.2: a model that is called with many requests at once."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import httpx as requests

from headrace import serve
from headrace.serve import BackendConfig

client = serve.start(http_port=8000)


class Adder:
    def __init__(self, increment):
        self.increment = increment
        self.sizes = []

    @serve.accept_batch
    def __call__(self, flask_request_list, base_number=None):
        time.sleep(0.01)  # while it works, others gather
        self.sizes.append(serve.context.batch_size)
        if serve.context.web:
            base_number = [int(request.args.get("base_number", "0")) for request in flask_request_list]
        return [number + self.increment for number in base_number]

    def largest(self, flask_request):
        return max(self.sizes)


client.create_backend("adder", Adder, 1, config={"max_batch_size": 4, "batch_wait_timeout": 0.2})
client.create_endpoint("adder", backend="adder", route="/add")
handle = client.get_handle("adder")
print([each.result() for each in [handle.remote(base_number=i) for i in range(10)]])
with ThreadPoolExecutor(8) as pool:
    urls = [f"http://127.0.0.1:8000/add?base_number={i}" for i in range(8)]
    print([int(answer.text) for answer in pool.map(requests.get, urls)])
print(handle.largest.remote().result())

client.update_backend_config("adder", {"max_batch_size": 2})
print(client.get_backend_config("adder").max_batch_size)


@serve.accept_batch
async def lengths(requests):
    await asyncio.sleep(0.01)
    return [{"length": len(await request.body()), "of": len(requests)} for request in requests]


client.create_backend("lengths", lengths, config=BackendConfig(max_batch_size=3, batch_wait_timeout=0.5))
client.create_endpoint("lengths", backend="lengths")
handle = client.get_handle("lengths")
print(serve.get([handle.remote("x" * i) for i in range(3)]))


@serve.accept_batch
def wrong(requests):
    return [1, 2, 3]


client.create_backend("wrong", wrong)
client.create_endpoint("wrong", backend="wrong")
try:
    client.get_handle("wrong").remote().result()
except ValueError as error:
    print(error)
