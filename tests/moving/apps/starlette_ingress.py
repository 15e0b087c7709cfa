"""Any ASGI application as ingress: a Starlette one with routes, a mount and middleware."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route

from headrace import serve


async def home(request: Request) -> PlainTextResponse:
    return PlainTextResponse("home " * 300)


async def item(request: Request) -> JSONResponse:
    url = str(request.url_for("inner:item", number=7).path)
    return JSONResponse({"number": request.path_params["number"], "path": request.url.path, "url": url})


async def raw(scope, receive, send) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-raw", b"yes")]})
    await send({"type": "http.response.body", "body": body.upper()})


inner = Starlette(routes=[Route("/item/{number:int}", item, name="item")])
web = Starlette(
    routes=[Route("/", home), Mount("/inner", inner, name="inner"), Mount("/raw", raw)],
    middleware=[Middleware(GZipMiddleware, minimum_size=500)],
)


@serve.deployment
@serve.ingress(web)
class Web:
    pass


app = Web.bind()
