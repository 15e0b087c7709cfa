"""One replica's web application with its invoker, without sockets: requests in, what the ingress would get out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fake_incoming import FakeIncoming, head, http_call

from headrace.context import ReplicaContext
from headrace.replica.asgi import WebApplication, open_application
from headrace.replica.invoke import Invoker
from headrace.replica.threads import ThreadPool
from headrace.spec.ingress import ingress_of


class WebReplica:
    """A replica of a class with an ingress. `get` and `post` wait for the end of the response."""

    def __init__(self, invoker: Invoker, application: WebApplication, instance: Any, root_path: str) -> None:
        self.invoker = invoker
        self.application = application
        self.instance = instance
        self.root_path = root_path

    def start(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = (),
        parts: Sequence[bytes] | None = None,
        **fields: Any,
    ) -> FakeIncoming:
        every = [(b"host", b"a.test"), *headers]
        if body and not any(name == b"content-type" for name, _ in every):
            every += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        http = head(method, path.encode(), every, self.root_path)
        call = http_call(body, parts, http, **fields)
        self.invoker.start(call)  # type: ignore[arg-type]
        return call

    async def request(self, method: str, path: str, body: bytes = b"", **more: Any) -> FakeIncoming:
        call = self.start(method, path, body, **more)
        await call.ended.wait()
        return call

    async def get(self, path: str, **more: Any) -> FakeIncoming:
        return await self.request("GET", path, **more)

    async def post(self, path: str, value: Any, **more: Any) -> FakeIncoming:
        return await self.request("POST", path, json.dumps(value).encode(), **more)


def headers_of(call: FakeIncoming) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in call.head.headers}


@contextlib.asynccontextmanager
async def replica_of(cls: type, *args: Any, limit: int = 8, root_path: str = "") -> AsyncIterator[WebReplica]:
    """A replica of the class, whose constructor gets the arguments, until the end of the block."""
    loop = asyncio.get_running_loop()
    ingress = ingress_of(cls)
    assert ingress is not None
    instance = cls(*args)
    replica = ReplicaContext(
        app_name="shop",
        deployment="M",
        replica_id="M#0",
        max_ongoing_requests=limit,
        servable_object=instance,
    )
    threads = ThreadPool(loop, limit)
    application = await open_application(ingress, replica, threads)
    invoker = Invoker(loop, instance, replica, threads, application)
    try:
        yield WebReplica(invoker, application, instance, root_path)
        await invoker.rested()
    finally:
        await application.close(loop.time() + 5)
        application.release()
        threads.close()
