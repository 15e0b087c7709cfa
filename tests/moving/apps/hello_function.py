"""Functions as deployments: one takes the request, one is plain and takes nothing."""

from starlette.requests import Request

from headrace import serve


@serve.deployment
async def greet(request: Request) -> str:
    return f"Hello {request.query_params.get('name', 'stranger')}!"


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.1})
def tick() -> dict:
    return {"tick": "tock"}


app = greet.bind()
without_arguments = tick.bind()
