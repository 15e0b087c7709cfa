"""1.2: models that call models by the handles of their endpoints, in backends that await."""

import json
from random import random

import httpx as requests

from headrace import serve

client = serve.start(http_options={"port": 8000})


def model_one(request):
    print("Model 1 called with data ", request.query_params.get("data"))
    return random()


def model_two(request):
    return len(request.args["data"])


class ComposedModel:
    def __init__(self):
        client = serve.connect()
        self.model_one = client.get_handle("model_one")
        self.model_two = client.get_handle("model_two", sync=False)
        self.tag = serve.get_current_backend_tag()

    # This method can be called concurrently!
    async def __call__(self, starlette_request):
        data = await starlette_request.body()
        score = await self.model_one.remote(data=data)
        length = await (await self.model_two.remote(data=data))
        return {"ok": 0 <= score < 1, "length": length, "tag": self.tag, "form": "x" in await starlette_request.form()}


client.create_backend("model_one", model_one)
client.create_endpoint("model_one", backend="model_one")
client.create_backend("model_two", model_two)
client.create_endpoint("model_two", backend="model_two")

# max_concurrent_queries is optional. By default, if you pass in an async
# function, Ray Serve sets the limit to a high number.
client.create_backend("composed_backend", ComposedModel, config={"max_concurrent_queries": 10})
client.create_endpoint("composed", backend="composed_backend", route="/composed", methods=["POST"])

for _ in range(5):
    resp = requests.post("http://127.0.0.1:8000/composed", content="hey!")
print(resp.json())


async def reads(request):
    value = await request.json()
    flask = request.json
    return [value, flask["x"] if isinstance(flask, dict) else bool(flask), flask == value]


client.create_backend("reads", reads)
client.create_endpoint("reads", backend="reads", route="/reads", methods=["post"])
for sent in ({"x": 1}, [1], "text", 3, 2.5, None, False):
    print(requests.post("http://127.0.0.1:8000/reads", content=json.dumps(sent)).json())
print(requests.post("http://127.0.0.1:8000/reads", content="no json").status_code)
print(client.get_handle("reads").remote({"x": "of python"}).result())


class Forwarder:
    def __init__(self):
        self.reads = serve.connect().get_handle("reads")

    async def __call__(self, request):
        return await self.reads.remote(request)


client.create_backend("forwarder", Forwarder)
client.create_endpoint("forwarder", backend="forwarder", route="/forward", methods=["POST"])
print(requests.post("http://127.0.0.1:8000/forward", json={"x": "passed on"}).json())
