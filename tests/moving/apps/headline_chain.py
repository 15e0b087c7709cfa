"""Chained calls: the response of one call is an argument of the next, and nobody in between waits for it."""

from starlette.requests import Request

from headrace import serve
from headrace.serve.handle import DeploymentHandle, DeploymentResponse


@serve.deployment
class Summarize:
    def __call__(self, text: str) -> str:
        return text.split(".")[0]


@serve.deployment
class Translate:
    WORDS = {"hello": "bonjour", "world": "monde"}

    async def __call__(self, text: str, *, shout: bool = False) -> str:
        translated = " ".join(self.WORDS.get(word.lower(), word) for word in text.split())
        return translated.upper() if shout else translated


@serve.deployment
class Join:
    def __call__(self, first: str, second: str, *, separator: str) -> str:
        return f"{first}{separator}{second}"


@serve.deployment
class Headline:
    def __init__(self, summarize: DeploymentHandle, translate: DeploymentHandle, join: DeploymentHandle):
        self.summarize = summarize
        self.translate = translate
        self.join = join

    async def __call__(self, request: Request) -> str:
        text = (await request.body()).decode()
        summary: DeploymentResponse = self.summarize.remote(text)
        translated: DeploymentResponse = self.translate.remote(summary, shout=True)
        return await self.join.remote(summary, second=translated, separator=" / ")


app = Headline.bind(Summarize.bind(), Translate.bind(), Join.bind())
