"""Applications with WebSockets, for the tests of real instances."""

import os

from fastapi import FastAPI, WebSocket

from headrace import serve

app = FastAPI()


@serve.deployment
class Double:
    def __call__(self, number: float) -> float:
        return number * 2


@serve.deployment(num_replicas=2)
@serve.ingress(app)
class Chat:
    def __init__(self, double):
        self.double = double

    @app.websocket("/ws")
    async def ws(self, socket: WebSocket):
        await socket.accept()
        await socket.send_json({"pid": os.getpid(), "scheme": socket.scope["scheme"], "path": socket.url.path})
        async for text in socket.iter_text():
            await socket.send_json(await self.double.remote(float(text)))

    @app.get("/pid")
    def pid(self):
        return os.getpid()


@serve.deployment
class Plain:
    def __call__(self, request):
        return "plain"


chat = Chat.bind(Double.bind())
plain = Plain.bind()
