"""Plain methods run in threads, and async ones hand heavy work to threads. The loop is there in the constructor."""

import asyncio
import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from headrace import serve


@serve.deployment(max_ongoing_requests=8)
class Checksum:
    def __init__(self, rounds: int):
        self.rounds = rounds
        self.main = threading.get_ident()
        self.barrier = threading.Barrier(4)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2, thread_name_prefix="own"))

    def digest(self, text: str) -> str:
        for _ in range(self.rounds):
            text = hashlib.sha256(text.encode()).hexdigest()
        return text

    def together(self) -> bool:
        """Returns when four calls are in work at once."""
        self.barrier.wait(20)
        return True

    def where(self) -> bool:
        time.sleep(0)
        return threading.get_ident() == self.main

    async def name_of_thread(self) -> str:
        return await asyncio.to_thread(lambda: threading.current_thread().name)

    async def __call__(self, request) -> dict:
        text = (await request.body()).decode()
        loop = asyncio.get_running_loop()
        by_to_thread, by_executor = await asyncio.gather(
            asyncio.to_thread(self.digest, text), loop.run_in_executor(None, self.digest, text)
        )
        return {"same": by_to_thread == by_executor, "digest": by_to_thread[:8]}


app = Checksum.bind(rounds=100)
