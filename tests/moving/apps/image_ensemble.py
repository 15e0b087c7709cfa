"""Model composition: a preprocessor, two models that run in parallel on its array, and one that combines them."""

import asyncio

import numpy as np
from starlette.requests import Request

from headrace import serve
from headrace.serve.handle import DeploymentHandle


@serve.deployment
class Preprocess:
    def __call__(self, pixels: list[list[int]]) -> np.ndarray:
        return np.asarray(pixels, dtype=np.float32) / 255


@serve.deployment
class Brightness:
    async def predict(self, image: np.ndarray) -> float:
        return float(image.mean())


@serve.deployment
class Edges:
    def predict(self, image: np.ndarray, threshold: float = 0.5) -> int:
        return int((np.abs(np.diff(image, axis=1)) > threshold).sum())


@serve.deployment
class Ensemble:
    def __init__(self, preprocess: DeploymentHandle, brightness: DeploymentHandle, edges: DeploymentHandle):
        self.preprocess = preprocess
        self.brightness = brightness
        self.edges = edges

    async def __call__(self, request: Request) -> dict:
        image = await self.preprocess.remote((await request.json())["pixels"])
        brightness, edges = await asyncio.gather(
            self.brightness.predict.remote(image),
            self.edges.predict.remote(image, threshold=0.4),
        )
        return {"brightness": round(brightness, 3), "edges": edges, "shape": image.shape}


app = Ensemble.bind(Preprocess.bind(), Brightness.bind(), Edges.bind())
