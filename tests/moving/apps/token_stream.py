"""Streams between deployments: a model yields tokens, a filter passes them on, and HTTP gets them as they come."""

from collections.abc import AsyncGenerator, Generator

from starlette.requests import Request
from starlette.responses import StreamingResponse

from headrace import serve
from headrace.serve.handle import DeploymentHandle, DeploymentResponseGenerator


@serve.deployment
class Model:
    def generate(self, prompt: str, times: int = 1) -> Generator[str, None, None]:
        for _ in range(times):
            yield from prompt.split()

    async def count(self, limit: int) -> AsyncGenerator[int, None]:
        for number in range(limit):
            if number == 7:
                raise ValueError("seven is too many")
            yield number

    def whole(self, prompt: str) -> str:
        return prompt


@serve.deployment
class Filter:
    def __init__(self, model: DeploymentHandle):
        self.model = model.options(stream=True)

    async def tokens(self, prompt: str, times: int) -> AsyncGenerator[str, None]:
        stream: DeploymentResponseGenerator = self.model.generate.remote(prompt, times=times)
        async for token in stream:
            if token != "um":
                yield token


@serve.deployment
class Chat:
    def __init__(self, filter_: DeploymentHandle, model: DeploymentHandle):
        self.filter = filter_.options(stream=True, method_name="tokens")
        self.model = model

    async def lines(self, prompt: str, times: int) -> AsyncGenerator[str, None]:
        async for token in self.filter.remote(prompt, times):
            yield token + "\n"

    async def __call__(self, request: Request) -> StreamingResponse:
        prompt = (await request.body()).decode()
        return StreamingResponse(self.lines(prompt, int(request.query_params.get("times", 1))), media_type="text/plain")


model = Model.bind()
app = Chat.bind(Filter.bind(model), model)
