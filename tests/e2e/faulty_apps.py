"""Applications that the end-to-end tests run."""

from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path
from typing import Any

from starlette.requests import Request

from headrace import serve


@serve.deployment(num_replicas=2)
class Model:
    """Echoes the number of a request and tells who answered; `{"segfault": true}` takes its process down."""

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = json.loads(await request.body())
        if body.get("segfault"):
            ctypes.string_at(0)
        if body.get("raise"):
            raise ValueError("the user's own error")
        return {"n": body["n"], "pid": os.getpid()}


app = Model.bind()


@serve.deployment(max_ongoing_requests=1, max_queued_requests=2)
class Narrow:
    """One at a time; a request waits until its file is there."""

    def __call__(self, request: Request) -> str:
        path = Path(request.query_params["until"])
        while not path.exists():
            time.sleep(0.001)
        return "done"


narrow = Narrow.bind()


@serve.deployment
class Broken:
    """Its constructor raises."""

    def __init__(self) -> None:
        raise RuntimeError("no such weights: model.bin")

    async def __call__(self, request: Request) -> str:
        return "never"


broken = Broken.bind()
