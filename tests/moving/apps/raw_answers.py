"""What a handler may return: text, bytes, JSON-like values, arrays, nothing, and Starlette's responses."""

import datetime
import decimal
import enum
import uuid

import numpy as np
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from headrace import serve


class Colour(enum.Enum):
    RED = "red"


@serve.deployment
class Answers:
    def __init__(self):
        self.afterwards = []

    async def __call__(self, request: Request):
        match request.url.path.strip("/"):
            case "text":
                return "grüezi"
            case "bytes":
                return b"\x00\x01"
            case "none":
                return None
            case "odd":
                return {
                    "day": datetime.date(2030, 1, 2),
                    "id": uuid.UUID(int=7),
                    "colour": Colour.RED,
                    "price": decimal.Decimal("1.5"),
                    "wait": datetime.timedelta(seconds=5),
                    "raw": b"ab",
                }
            case "number":
                return 4.5
            case "list":
                return [1, "two", None, {"three": 3}]
            case "array":
                return np.arange(6).reshape(2, 3)
            case "scalar":
                return np.float32(0.5)
            case "empty":
                return Response(status_code=204)
            case "png":
                return Response(b"\x89PNG", media_type="image/png", headers={"x-model": "v3"})
            case "cookie":
                response = PlainTextResponse("eat")
                response.set_cookie("session", "abc", httponly=True)
                response.set_cookie("theme", "dark")
                return response
            case "redirect":
                return RedirectResponse("/text")
            case "teapot":
                return JSONResponse({"short": True}, status_code=418)
            case "file":
                return FileResponse(__file__, media_type="text/x-python", filename="self.py")
            case "later":
                return JSONResponse(self.afterwards, background=BackgroundTask(self.afterwards.append, "ran"))
            case "echo":
                return {
                    "method": request.method,
                    "query": request.query_params.multi_items(),
                    "header": request.headers.getlist("x-many"),
                    "cookie": request.cookies.get("a"),
                    "body": (await request.body()).decode(),
                }
        return object()


app = Answers.bind()
