"""Two deployments that tell their version: `Door` answers with its own, that of `Inner`, and the request's revision."""

from __future__ import annotations

import os
from typing import Any

from headrace import serve


@serve.deployment(max_ongoing_requests=100)
class Inner:
    def __init__(self, version: int) -> None:
        self.version = version

    async def tell(self) -> tuple[int, int]:
        return self.version, serve.get_request_context().revision


@serve.deployment(max_ongoing_requests=100)
class Door:
    def __init__(self, inner: Any, version: int) -> None:
        self.inner = inner
        self.version = version

    async def __call__(self, request: Any) -> dict[str, Any]:
        number = (await request.json())["n"]
        inner, revision = await self.inner.tell.remote()
        own = serve.get_request_context().revision
        return {"n": number, "pid": os.getpid(), "versions": [self.version, inner], "revisions": [own, revision]}


def application(version: int, replicas: int = 1) -> serve.Application:
    """Both at this version."""
    inner = Inner.options(num_replicas=replicas).bind(version)
    return Door.options(num_replicas=replicas).bind(inner, version)
