"""Time: results that are waited for only so long, calls that are cancelled, and what the callee sees of it."""

import asyncio

from starlette.requests import Request

from headrace import serve
from headrace.serve.handle import DeploymentHandle


@serve.deployment
class Search:
    def __init__(self):
        self.ended: list[str] = []

    async def __call__(self, name: str, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.ended.append(f"{name} cancelled")
            raise
        self.ended.append(f"{name} done")
        return name

    async def history(self) -> list[str]:
        return self.ended


@serve.deployment
class Front:
    def __init__(self, search: DeploymentHandle):
        self.search = search

    async def __call__(self, request: Request) -> str:
        match request.url.path:
            case "/patient":
                return await self.search.remote("patient", 0.01)
            case "/impatient":
                try:
                    return await asyncio.wait_for(self.search.remote("impatient", 60), 0.1)
                except TimeoutError:
                    return "gave up"
            case "/fastest":
                responses = [self.search.remote("first", 0.01), self.search.remote("second", 60)]
                tasks = [asyncio.ensure_future(wait_for(response)) for response in responses]
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                responses[1].cancel()
                return done.pop().result()
            case "/history":
                return ", ".join(await self.search.history.remote())
        return await self.search.remote("forever", 60)


async def wait_for(response) -> str:
    return await response


app = Front.bind(Search.bind())
