"""A model that takes 10 ms, four at a time, on FastAPI: its pool of threads has four."""

import time
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI


@asynccontextmanager
async def lifespan(app):
    anyio.to_thread.current_default_thread_limiter().total_tokens = 4
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/")
def slow():
    time.sleep(0.010)
    return {"done": True}
