"""Models whose revisions misbehave as their shadows do, and a graph whose inner deployment is shared."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from starlette.requests import Request

from headrace import serve
from headrace.handle import DeploymentHandle


@serve.deployment
class Shared:
    """Says whether what it works for is mirrored, and notes it."""

    async def who(self) -> dict[str, Any]:
        request = serve.get_request_context()
        return {"mirrored": request.mirrored, "priority": request.priority, "revision": request.revision}


@serve.deployment(max_ongoing_requests=50)
class Model:
    """Answers with the number it is asked for, unless it is told to do otherwise."""

    def __init__(self, how: str = "", shared: DeploymentHandle | None = None) -> None:
        self.how = how
        self.shared = shared

    async def __call__(self, request: Request) -> Any:
        number = int(request.query_params["n"])
        if self.how == "raises":
            raise ValueError(f"not {number}")
        if self.how == "hangs":
            await asyncio.sleep(3600)
        if self.how == "blocks its loop":
            time.sleep(1)  # noqa: ASYNC251 - for everything in this replica
        if self.how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "answers hugely":
            return "x" * 2_000_000
        if self.how == "is wrong":
            return {"number": number + 1, "score": 0.5}
        if self.how == "is near":
            return {"number": number, "score": 0.5001}
        if self.how == "asks":
            assert self.shared is not None
            return {"number": number, **await self.shared.who.remote()}
        return {"number": number, "score": 0.5}


def hanging(primary: Any, shadow: Any) -> bool:
    """A comparison that does not end while the file is there."""
    while Path(os.environ["SHADOW_HANGS"]).exists():
        time.sleep(0.05)
    return True


def same_number(primary: Any, shadow: Any) -> bool:
    return bool(primary["number"] == shadow["number"])


app = Model.bind()
