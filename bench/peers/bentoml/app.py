"""The no-op model on BentoML: one worker."""

import bentoml


@bentoml.service(workers=1)
class Total:
    @bentoml.api
    async def total(self, x: list[float]) -> dict:
        return {"y": sum(x)}
