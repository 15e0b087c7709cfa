"""Dynamic dispatch: the request says which of several models is to answer. Handles stand in a dict."""

from starlette.requests import Request
from starlette.responses import JSONResponse

from headrace import serve
from headrace.serve.handle import DeploymentHandle


@serve.deployment
class Polynomial:
    def __init__(self, *coefficients: float):
        self.coefficients = coefficients

    def evaluate(self, x: float) -> float:
        return sum(c * x**power for power, c in enumerate(self.coefficients))

    def degree(self) -> int:
        return len(self.coefficients) - 1


@serve.deployment
class Dispatcher:
    def __init__(self, models: dict[str, DeploymentHandle]):
        self.models = models

    async def __call__(self, request: Request):
        body = await request.json()
        model = self.models.get(body["model"])
        if model is None:
            return JSONResponse({"error": f"no model {body['model']}", "known": sorted(self.models)}, status_code=404)
        method = body.get("method", "evaluate")
        response = getattr(model, method).remote(*body.get("args", []))
        again = model.options(method_name=method).remote(*body.get("args", []))
        return {"model": body["model"], "answer": await response, "again": await again}


app = Dispatcher.bind(
    {
        "line": Polynomial.options(name="line").bind(1.0, 2.0),
        "parabola": Polynomial.options(name="parabola").bind(0.0, 0.0, 1.0),
    }
)
