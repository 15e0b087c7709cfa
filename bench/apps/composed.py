"""A FastAPI ingress that hands its message to a second deployment. The same file on Headrace and on Ray Serve."""

from fastapi import FastAPI
from pydantic import BaseModel

try:
    from headrace import serve
except ImportError:  # the environment of Ray Serve has no Headrace
    from ray import serve

web = FastAPI()
SHARE = {"num_cpus": 0.5}  # so that both replicas have a place on any machine


class Message(BaseModel):
    text: str


@serve.deployment(max_ongoing_requests=100, ray_actor_options=SHARE)
class Echo:
    async def __call__(self, text):
        return text


@serve.deployment(max_ongoing_requests=100, ray_actor_options=SHARE)
@serve.ingress(web)
class Front:
    def __init__(self, echo):
        self.echo = echo

    @web.post("/")
    async def ask(self, message: Message):
        return {"text": await self.echo.remote(message.text)}


app = Front.bind(Echo.bind())
