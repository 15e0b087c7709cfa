"""What serve.status() tells while applications come up, run, and fail to start."""

import asyncio
import time
from pathlib import Path

from headrace import serve


@serve.deployment(num_replicas=2)
class Sturdy:
    async def __init__(self, message: str):
        await asyncio.sleep(0.01)
        self.message = message

    def __call__(self, request=None) -> str:
        return self.message


@serve.deployment(max_constructor_retry_count=1)
class Fragile:
    def __init__(self, path: str):
        raise FileNotFoundError(f"no weights at {path}")

    def __call__(self, request=None) -> str:
        return "never"


@serve.deployment
class Held:
    """Not ready before a file is there."""

    def __init__(self, path: str):
        while not Path(path).exists():
            time.sleep(0.01)

    def __call__(self, request=None) -> str:
        return "held"


sturdy = Sturdy.bind("standing")
fragile = Fragile.bind("/nowhere/weights.bin")
