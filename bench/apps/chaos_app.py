"""The application of `bench/chaos.py`: two deployments, and an answer by which each mistake of the path would show."""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

from starlette.requests import Request

from headrace import serve

VERSION = 0  # a deploy of the bench puts another number here, and with it other code


@serve.deployment
class Back:
    """Answers with its version; a request belongs to one revision, so it is that of the caller."""

    async def __call__(self, number: int) -> list[int]:
        return [number, VERSION]


@serve.deployment
class Front:
    """Sums up what came, and what the deployment behind it says."""

    def __init__(self, back: Any) -> None:
        self.back = back

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.body()
        number = json.loads(body[: body.index(b"}") + 1])["n"]
        echoed, version = await self.back.remote(number)
        return {"n": echoed, "crc": zlib.crc32(body), "pid": os.getpid(), "versions": [VERSION, version]}


def application(front: int = 2, back: int = 2) -> serve.Application:
    """The application with these many replicas."""
    return Front.options(num_replicas=front).bind(Back.options(num_replicas=back).bind())


app = application()
