"""The FastAPI application that Headrace and uvicorn both serve: a pydantic body, streams of a hundred small chunks."""

import asyncio

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

CHUNKS = [b"chunk %02d of a hundred\n" % number for number in range(100)]

app = FastAPI()


class Numbers(BaseModel):
    x: list[float]


@app.post("/")
async def total(numbers: Numbers):
    return {"y": sum(numbers.x)}


@app.post("/plain")
def plain_total(numbers: Numbers):
    return {"y": sum(numbers.x)}


async def chunks():
    for chunk in CHUNKS:
        yield chunk


async def awaiting_chunks():
    for chunk in CHUNKS:
        await asyncio.sleep(0)
        yield chunk


@app.get("/chunks")
async def stream():
    return StreamingResponse(chunks(), media_type="text/plain")


@app.get("/chunks-awaiting")
async def awaiting_stream():
    return StreamingResponse(awaiting_chunks(), media_type="text/plain")
