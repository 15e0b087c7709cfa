"""The application of `web_app.py` behind Headrace, and the same streams from a handler that is a generator."""

import web_app

from headrace import serve


@serve.deployment(max_ongoing_requests=100)
@serve.ingress(web_app.app)
class Web:
    pass


@serve.deployment(max_ongoing_requests=100)
class Chunks:
    async def __call__(self, request):
        awaiting = request.url.path.endswith("awaiting")
        async for chunk in web_app.awaiting_chunks() if awaiting else web_app.chunks():
            yield chunk


app = Web.bind()
generator = Chunks.bind()
