"""A deployment that uses Ray itself."""

from __future__ import annotations

import os

import ray

from headrace import serve


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def address() -> str:
    return str(ray.get_runtime_context().gcs_address)


@serve.deployment
class Inside:
    def told(self) -> str:
        return os.environ["RAY_ADDRESS"]

    async def asked(self) -> str:
        """The cluster on which its tasks run."""
        return str(await address.remote())

    def add(self, amount: int) -> int:
        return int(ray.get(ray.get_actor("memory", namespace="users").add.remote(amount)))


app = Inside.bind()
