"""What goes wrong: errors of the user's own, HTTPException, handlers for exceptions, errors from deployments below."""

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from headrace import serve
from headrace.serve.handle import DeploymentHandle

api = FastAPI()


class OutOfStock(Exception):
    def __init__(self, item: str, left: int):
        super().__init__(item, left)
        self.item = item
        self.left = left


@api.exception_handler(OutOfStock)
async def out_of_stock(request: Request, error: OutOfStock) -> JSONResponse:
    return JSONResponse({"item": error.item, "left": error.left, "path": request.url.path}, status_code=409)


@serve.deployment
class Stock:
    def take(self, item: str, number: int) -> int:
        if item == "ghost":
            raise KeyError(item)
        if number > 3:
            raise OutOfStock(item, 3)
        return 3 - number

    async def divide(self, by: int) -> float:
        return 1 / by


@serve.deployment
@serve.ingress(api)
class Orders:
    def __init__(self, stock: DeploymentHandle):
        self.stock = stock

    @api.get("/own/{number}")
    async def own(self, number: int):
        if number > 3:
            raise OutOfStock("own", 3)
        return number

    @api.get("/order/{item}/{number}")
    async def order(self, item: str, number: int):
        try:
            return {"left": await self.stock.take.remote(item, number)}
        except OutOfStock as error:
            raise HTTPException(409, {"item": error.item, "left": error.left}) from None
        except KeyError:
            raise HTTPException(404, "no such item") from None

    @api.get("/divide/{by}")
    async def divide(self, by: int):
        return await self.stock.divide.remote(by)

    def passes_on(self, item: str, number: int) -> int:
        return self.stock.take.remote(item, number).result()


@serve.deployment
class Unguarded:
    async def __call__(self, request):
        if "teapot" in request.query_params:
            raise HTTPException(418, "short and stout")
        raise ValueError("a secret detail")


app = Orders.bind(Stock.bind())
unguarded = Unguarded.bind()
