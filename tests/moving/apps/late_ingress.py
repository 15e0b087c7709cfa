"""Applications for serve.ingress that need no class, and one that its class makes once it is constructed."""

from typing import Annotated

from fastapi import Depends, FastAPI

from headrace import serve
from headrace.serve.handle import DeploymentHandle

plain_api = FastAPI()


@plain_api.get("/hi")
def say_hi() -> str:
    return "hi"


@serve.deployment
class Tripler:
    def __call__(self, number: int) -> int:
        return 3 * number


def build_api() -> FastAPI:
    api = FastAPI()

    def tripler():
        return serve.get_deployment_handle("Tripler", app_name="default")

    @api.get("/triple/{number}")
    async def triple(number: int, handle: Annotated[DeploymentHandle, Depends(tripler)]):
        return await handle.remote(number)

    return api


@serve.deployment
@serve.ingress()
class Late:
    def __init__(self, word: str):
        self.word = word

    def __serve_build_asgi_app__(self) -> FastAPI:
        api = FastAPI()
        api.get("/word")(lambda: self.word)
        return api


plain = serve.deployment(serve.ingress(plain_api)()).bind()
built = serve.deployment(serve.ingress(build_api)(), name="Built").bind(Tripler.bind())
late = Late.bind("made late")
