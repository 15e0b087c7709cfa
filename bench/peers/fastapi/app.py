"""The no-op model as FastAPI's documentation writes it: a pydantic body, a dict back."""

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Numbers(BaseModel):
    x: list[float]


@app.post("/")
async def total(numbers: Numbers):
    return {"y": sum(numbers.x)}
