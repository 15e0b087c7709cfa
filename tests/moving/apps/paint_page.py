"""A page for people: HTMLResponse with a form that asks the model behind it."""

import html

from starlette.requests import Request
from starlette.responses import HTMLResponse

from headrace import serve
from headrace.serve.handle import DeploymentHandle

PAGE = "<!doctype html><title>Paint</title><form method=post><input name=colour></form><p id=mix>{}</p>"


@serve.deployment
class Mixer:
    def __call__(self, colour: str) -> str:
        return f"{colour} and a little blue"


@serve.deployment
class Page:
    def __init__(self, mixer: DeploymentHandle):
        self.mixer = mixer

    async def __call__(self, request: Request) -> HTMLResponse:
        if request.method == "GET":
            return HTMLResponse(PAGE.format("?"))
        form = await request.form()
        return HTMLResponse(PAGE.format(html.escape(await self.mixer.remote(form["colour"]))))


app = Page.bind(Mixer.bind())
