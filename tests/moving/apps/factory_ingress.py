"""serve.ingress of a function that makes the application in the replica."""

from typing import Annotated

from fastapi import Depends, FastAPI

from headrace import serve
from headrace.serve.handle import DeploymentHandle


@serve.deployment
class Doubler:
    def __call__(self, number: int) -> int:
        return 2 * number


def build_api() -> FastAPI:
    api = FastAPI()

    def doubler():
        return serve.get_deployment_handle("Doubler", app_name="doubling")

    @api.get("/double/{number}")
    async def double(number: int, handle: Annotated[DeploymentHandle, Depends(doubler)]):
        return {"double": await handle.remote(number)}

    return api


@serve.deployment
@serve.ingress(build_api)
class Factory:
    def __init__(self, doubler: DeploymentHandle):
        self.doubler = doubler


app = Factory.bind(Doubler.bind())
