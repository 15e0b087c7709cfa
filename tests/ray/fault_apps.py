"""What the tests of faults serve: two deployments on three nodes; an answer tells who gave it.

`Inner` has fewer replicas than there are nodes: so calls go from node to node, for the nearest is always preferred.
"""

from __future__ import annotations

import json
import os
from typing import Any

from starlette.requests import Request

from headrace import serve


@serve.deployment(num_replicas=2, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.5})
class Inner:
    async def tell(self) -> list[Any]:
        return [serve.get_replica_context().replica_id, os.getpid()]


@serve.deployment(num_replicas=2, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.5})
class Door:
    def __init__(self, inner: Any, version: int = 1) -> None:
        self.inner = inner
        self.version = version

    async def __call__(self, request: Request) -> dict[str, Any]:
        number = json.loads(await request.body())["n"]
        own = [serve.get_replica_context().replica_id, os.getpid()]
        return {"n": number, "pid": own[1], "by": [own, await self.inner.tell.remote()]}


app = Door.bind(Inner.bind())
second = Door.bind(Inner.bind(), 2)
