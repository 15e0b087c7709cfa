"""A constructor that leaves a task on the running loop, which keeps what the calls read fresh."""

import asyncio

from fastapi import FastAPI

from headrace import serve

api = FastAPI()


@serve.deployment
@serve.ingress(api)
class Prices:
    def __init__(self, base: int):
        self.base = base
        self.rounds = 0
        self.refreshing = asyncio.create_task(self.refresh())

    async def refresh(self) -> None:
        while True:
            self.rounds += 1
            await asyncio.sleep(0.01)

    @api.get("/rounds")
    def read(self) -> int:
        return self.base + self.rounds


app = Prices.bind(100)
