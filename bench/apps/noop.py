"""The no-op model on Headrace, for the bench: decodes the body, adds, answers a dict."""

import msgspec

from headrace import serve

decode = msgspec.json.Decoder().decode


@serve.deployment
class Total:
    async def __call__(self, request):
        return {"y": sum(decode(await request.body())["x"])}


app = Total.bind()
