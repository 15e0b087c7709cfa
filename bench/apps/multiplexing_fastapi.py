"""One small model of `ridge.py` on FastAPI: what a process for each model takes."""

from fastapi import FastAPI
from pydantic import BaseModel
from ridge import Ridge

app = FastAPI()
model = Ridge("m0")


class Numbers(BaseModel):
    x: list[float]


@app.post("/")
async def predict(numbers: Numbers):
    return {"y": model.predict(numbers.x)}
