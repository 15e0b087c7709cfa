"""Applications that tests declare in configurations."""

import os

from headrace import serve


@serve.deployment(num_replicas=1, user_config={"greeting": "hello"})
class Greeter:
    def __init__(self, name: str = "world"):
        self.name = name
        self.greeting = ""

    def reconfigure(self, config):
        self.greeting = config["greeting"]

    async def __call__(self, request):
        return {"says": f"{self.greeting} {self.name}", "pid": os.getpid(), "variable": os.environ.get("DECLARED", "")}


@serve.deployment(max_ongoing_requests=7, hedge=True, retry_budget=0.2, ray_actor_options={"num_cpus": 0.5})
class Model:
    def __call__(self, x):
        return x


@serve.deployment(request_router_config="ConsistentHashRouter", backpressure_config={"status_code": 429})
class Door:
    def __init__(self, first, second):
        self.models = [first, second]

    async def __call__(self, request):
        return "open"


def build(arguments: dict):
    return Greeter.bind(arguments.get("name", "builder"))


def broken(arguments: dict):
    raise ZeroDivisionError("the builder is broken")


app = Greeter.bind()
graph = Door.bind(Model.bind(), Model.bind())
