"""Applications of the tests of `serve`, importable by replicas."""

import asyncio
import os
import signal
import threading

from headrace import serve


@serve.deployment
class Adder:
    def __init__(self, base=0):
        self.base = base

    async def __call__(self, a, b=0):
        return self.base + a + b

    def where(self):
        """In a thread."""
        return os.getpid(), threading.current_thread() is threading.main_thread()

    def fail(self, message):
        raise LookupError(message)


@serve.deployment
class Front:
    def __init__(self, adder):
        self.adder = adder

    async def __call__(self, request):
        return {"sum": await self.adder.remote(int(request.query_params.get("n", "0")), 1)}

    async def chain(self, n):
        once = self.adder.remote(n, 1)
        return await self.adder.remote(once, once)

    def plain(self, n):
        return self.adder.remote(n, 1).result(30)

    async def fail(self, message):
        return await self.adder.fail.remote(message)

    async def adder_handle(self):
        return self.adder

    async def by_name(self, n):
        return await serve.get_deployment_handle("Adder").remote(n)

    async def other_application(self, name, n):
        return await serve.get_app_handle(name).remote(n)

    def context(self):
        context = serve.get_replica_context()
        return context.app_name, context.deployment, context.replica_id, type(context.servable_object).__name__

    def run_another(self, name, base):
        """Deploy from inside of a replica, and call what was deployed."""
        return serve.run(Adder.bind(base), name=name, route_prefix=None).remote(1).result(30)

    async def run_on_the_loop(self):
        serve.run(Adder.bind(), name="blocked", route_prefix=None)

    async def give_back(self, value):
        return value


@serve.deployment
class Broken:
    def __init__(self):
        self.load("model.bin")

    def load(self, path):
        raise FileNotFoundError(f"no {path}")


@serve.deployment
class Endless:
    """Answers nobody but those who do not ask for work."""

    async def __call__(self, request):
        if "work" in request.query_params:
            await asyncio.Event().wait()
        return os.getpid()

    @serve.method(repeatable=False)
    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_once(self):
        if serve.get_request_context().attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return serve.get_request_context().attempt


@serve.deployment
def hello(request):
    return "hello"
