"""Web applications as users write them, for tests/e2e/test_web_applications.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from flask import Flask, Response, jsonify, request
from pydantic import BaseModel

from headrace import serve

DIARY = Path(os.environ.get("WEB_DIARY", "/dev/null"))


def note(line: str) -> None:
    with DIARY.open("a") as file:
        file.write(line + "\n")


class Message(BaseModel):
    text: str
    times: int = 1


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    instance = serve.get_replica_context().servable_object
    note(f"startup of {type(instance).__name__}")
    yield {"began_in": os.getpid()}
    note("shutdown")


app = FastAPI(title="Front", lifespan=lifespan)


def checked(message: Message) -> Message:
    message.text = message.text.strip()
    return message


@serve.deployment
class Echo:
    def __init__(self) -> None:
        self.release = threading.Event()

    async def repeat(self, text: str, times: int) -> str:
        return text * times

    async def for_ever(self) -> None:
        note("for ever")
        try:
            await asyncio.Event().wait()
        finally:
            note("ended")

    def __del__(self) -> None:
        note("del Echo")


@serve.deployment(num_replicas=2)
@serve.ingress(app)
class Front:
    def __init__(self, echo: Any, suffix: str) -> None:
        self.echo = echo
        self.suffix = suffix

    @app.post("/repeat")
    async def repeat(self, message: Annotated[Message, Depends(checked)]) -> dict[str, Any]:
        return {"text": await self.echo.repeat.remote(message.text, message.times) + self.suffix}

    @app.get("/who")
    def who(self, request: Request) -> dict[str, Any]:
        same = request.state.began_in == os.getpid()
        return {"pid": os.getpid(), "same": same, "url": str(request.url_for("who")), "id": request_id()}

    @app.get("/wait")
    def wait(self) -> None:
        self.echo.for_ever.remote().result()

    @app.get("/events")
    async def events(self) -> StreamingResponse:
        async def all_events() -> AsyncIterator[str]:
            for n in range(3):
                yield f"data: {n}\n\n"

        return StreamingResponse(all_events(), media_type="text/event-stream")

    def __del__(self) -> None:
        note("del Front")


def request_id() -> str:
    return serve.get_request_context().request_id


@contextlib.asynccontextmanager
async def broken_lifespan(app: FastAPI) -> AsyncIterator[None]:
    raise LookupError("no model in this house")
    yield


@serve.deployment(max_constructor_retry_count=1)
@serve.ingress(FastAPI(lifespan=broken_lifespan))
class Broken:
    pass


flask = Flask(__name__)


@flask.post("/predict")
def predict() -> Any:
    return jsonify(result=[x * 2 for x in request.get_json()], thread=threading.current_thread().name)


@flask.get("/parts")
def parts() -> Any:
    def produce() -> Iterator[str]:
        for n in range(3):
            yield f"{n} "

    return Response(produce())


@flask.post("/size")
def size() -> Any:
    total = 0
    while part := request.stream.read(100_000):
        total += len(part)
    return str(total)


plain = FastAPI()


@plain.get("/hi")
def hi(name: str = "you") -> dict[str, str]:
    return {"hi": name}


def build() -> FastAPI:
    made = FastAPI()

    @made.get("/made")
    def get() -> dict[str, Any]:
        model: Any = serve.get_replica_context().servable_object
        return {"in": os.getpid(), "factor": model.factor}

    return made


@serve.deployment
@serve.ingress(build)
class Built:
    def __init__(self, factor: int) -> None:
        self.factor = factor
