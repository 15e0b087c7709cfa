"""Several applications on one instance: names, route prefixes, one that is not on HTTP, calls from one to another."""

from starlette.requests import Request

from headrace import serve
from headrace.serve.handle import DeploymentHandle


@serve.deployment
class Prices:
    def __init__(self, prices: dict[str, int]):
        self.prices = prices

    def __call__(self, item: str) -> int:
        return self.prices[item]


@serve.deployment
class Basket:
    def __init__(self):
        self.prices: DeploymentHandle = serve.get_app_handle("prices")

    async def __call__(self, request: Request) -> dict:
        items = (await request.json())["items"]
        prices = [await self.prices.remote(item) for item in items]
        return {"total": sum(prices), "path": request.url.path, "root_path": request.scope["root_path"]}


@serve.deployment
class Till:
    async def __call__(self, request: Request) -> dict:
        own = serve.get_deployment_handle("Drawer")
        other = serve.get_deployment_handle("Prices", app_name="prices")
        return {"drawer": await own.remote(), "pear": await other.remote("pear")}


@serve.deployment
class Drawer:
    def __call__(self) -> str:
        return "empty"


@serve.deployment
class TillWithDrawer(Till.func_or_class):
    def __init__(self, drawer: DeploymentHandle):
        self.drawer = drawer


prices = Prices.bind({"apple": 3, "pear": 4})
basket = Basket.bind()
till = TillWithDrawer.options(name="Till").bind(Drawer.bind())
