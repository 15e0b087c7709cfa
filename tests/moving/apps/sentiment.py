"""A class that loads its model once, takes arguments of its constructor, and reads JSON."""

from starlette.requests import Request

from headrace import serve


@serve.deployment
class Sentiment:
    def __init__(self, positive: list[str], *, neutral: str = "so so"):
        self.positive = set(positive)
        self.neutral = neutral

    def classify(self, text: str) -> dict:
        hits = sum(word in self.positive for word in text.lower().split())
        return {"label": "good" if hits else self.neutral, "hits": hits}

    async def __call__(self, request: Request) -> dict:
        body = await request.json()
        return self.classify(body["text"])


app = Sentiment.bind(["fine", "lovely"], neutral="meh")
