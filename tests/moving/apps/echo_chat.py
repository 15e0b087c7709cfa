"""A WebSocket route of a FastAPI ingress: text and bytes, a handle behind it, closing from either side."""

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from headrace import serve
from headrace.serve.handle import DeploymentHandle

api = FastAPI()


@serve.deployment
class Answerer:
    async def __call__(self, text: str) -> str:
        return text[::-1]

    async def stream(self, text: str):
        for letter in text:
            yield letter


@serve.deployment
@serve.ingress(api)
class Chat:
    def __init__(self, answerer: DeploymentHandle):
        self.answerer = answerer
        self.gone: list[int] = []

    @api.websocket("/chat/{room}")
    async def chat(self, socket: WebSocket, room: str, name: str = "guest"):
        if room == "closed":
            await socket.close(code=4403, reason="members only")
            return
        await socket.accept(subprotocol="talk" if "talk" in socket.scope.get("subprotocols", []) else None)
        await socket.send_json({"room": room, "name": name})
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message["code"])
                if message.get("bytes") is not None:
                    await socket.send_bytes(message["bytes"] * 2)
                elif message["text"] == "bye":
                    await socket.close(code=4000, reason="so long")
                    return
                elif message["text"].startswith("spell "):
                    spelling = self.answerer.options(stream=True).stream.remote(message["text"][6:])
                    async for letter in spelling:
                        await socket.send_text(letter)
                else:
                    await socket.send_text(await self.answerer.remote(message["text"]))
        except WebSocketDisconnect as end:
            self.gone.append(end.code)

    @api.get("/gone")
    async def who_is_gone(self) -> list[int]:
        return self.gone


app = Chat.bind(Answerer.bind())
