"""An application with many models, for tests/e2e/test_multiplexing.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from headrace import serve

FOLDER = Path(os.environ.get("MODELS_FOLDER", "/nonexistent"))


class Model:
    def __init__(self, name: str) -> None:
        self.name = name
        self.replica = serve.get_replica_context().replica_id
        self.open = True
        self.note("loaded")

    def note(self, what: str) -> None:
        with (FOLDER / "diary").open("a") as file:
            file.write(f"{self.replica} {self.name} {what}\n")

    def close(self) -> None:
        self.open = False
        self.note("closed")


@serve.deployment(num_replicas=2, max_ongoing_requests=4)
class Models:
    @serve.multiplexed(max_num_models_per_replica=4)
    async def get_model(self, model_id: str) -> Model:
        while (FOLDER / f"{model_id} is slow").exists():
            await asyncio.sleep(0.005)
        return Model(model_id)

    async def __call__(self, request: Any) -> dict[str, Any]:
        return await self.use()

    async def use(self, seconds: float = 0.0) -> dict[str, Any]:
        model = await self.get_model(serve.get_multiplexed_model_id())
        await asyncio.sleep(seconds)
        return {"model": model.name, "open": model.open, "pid": os.getpid()}

    async def Use(self, message: StringValue) -> StringValue:
        model = await self.get_model(serve.get_multiplexed_model_id())
        return StringValue(value=f"{message.value} {model.name}")


app = Models.bind()


def add_models_to_server(servicer: Any, server: Any) -> None:
    """What protoc makes of a service with one method."""
    coders: tuple[Callable[..., Any], ...] = (StringValue.FromString, StringValue.SerializeToString)
    handlers = {"Use": grpc.unary_unary_rpc_method_handler(servicer.Use, *coders)}
    server.add_registered_method_handlers("models.Models", handlers)
