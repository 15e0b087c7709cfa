"""1.8: deployments that deploy themselves, with versions, handles and a FastAPI application."""

import os
import time

import httpx as requests
from fastapi import FastAPI

from headrace import serve

serve.start(http_options={"port": 8000})


@serve.deployment
def hello(request):
    name = request.query_params["name"]
    return f"Hello {name}!"


hello.deploy()
print(requests.get("http://127.0.0.1:8000/hello?name=serve").text, hello.url.rpartition(":")[2].partition("/")[2])


@serve.deployment
class Counter:
    def __init__(self):
        self.count = 0

    def __call__(self, *args):
        self.count += 1
        return {"count": self.count}

    def add(self, number):
        self.count += number
        return self.count


Counter.deploy()
print(requests.get("http://127.0.0.1:8000/Counter").json())
print(serve.get(Counter.get_handle().add.remote(5)), serve.get_deployment("Counter").get_handle().remote().result())
Counter.deploy()  # without a version: always anew
print(requests.get("http://127.0.0.1:8000/Counter").json())

app = FastAPI()


@serve.deployment(name="model", version="v1", route_prefix="/predict", init_args=("one",), user_config={"factor": 2})
@serve.ingress(app)
class Model:
    def __init__(self, name, suffix=""):
        self.name = name + suffix
        self.pid = os.getpid()

    def reconfigure(self, config):
        self.factor = config["factor"]

    @app.get("/{number}")
    def predict(self, number: int):
        return {"name": self.name, "result": number * self.factor, "pid": self.pid}

    def who(self):
        return self.name


def predict(number=3):
    return requests.get(f"http://127.0.0.1:8000/predict/{number}").json()


Model.deploy()
first = predict()
print(first["name"], first["result"])
print(requests.get("http://127.0.0.1:8000/predict/text").status_code, serve.get(Model.get_handle().who.remote()))

Model.options(user_config={"factor": 10}).deploy("same version, other code or arguments: not now")
second = predict()
print(second["name"], second["result"], second["pid"] == first["pid"])

Model.options(version="v2", user_config={"factor": 7}, num_replicas=2).deploy("two", suffix="!")
third = predict()
print(third["name"], third["result"], third["pid"] != first["pid"])

try:
    Model.options(version="v3", prev_version="v1").deploy()
except ValueError as error:
    print(error)
Model.options(version="v3", prev_version="v2").deploy("three")
print(predict()["name"])

found = serve.get_deployment("model")
print(found.version, found.num_replicas, found.init_args, found.route_prefix, found.func_or_class.__name__)
pid = predict()["pid"]
found.options(user_config={"factor": 1}).deploy()
print(predict()["name"], predict()["result"], predict()["pid"] == pid)
found.options(version="v4").deploy("four")
print(predict()["name"], sorted(serve.list_deployments()))

Counter.delete()
deadline = time.monotonic() + 10
while requests.get("http://127.0.0.1:8000/Counter").status_code != 404:
    assert time.monotonic() < deadline
try:
    serve.get_deployment("Counter")
except KeyError as error:
    print(error)
