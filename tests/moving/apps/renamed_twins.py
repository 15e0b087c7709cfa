"""serve.deployment as a function, names by argument and by options, one class deployed twice, options that add up."""

from headrace import serve


class Model:
    def __init__(self, version: str):
        self.version = version

    def __call__(self, request=None) -> str:
        return self.version


class Pair:
    def __init__(self, left, right=None):
        self.left = left
        self.right = right

    async def __call__(self, request) -> dict:
        right = self.right["inner"][0]
        return {
            "left": await self.left.remote(),
            "right": await right.remote(),
            "names": [self.left.deployment_name, right.deployment_name, right.app_name],
        }


Left = serve.deployment(name="left-model", num_replicas=1)(Model)
Right = serve.deployment(Model).options(name="right_model", max_ongoing_requests=3)

app = serve.deployment(Pair).bind(Left.bind("v1"), right={"inner": [Right.bind("v2")]})

Unnamed = serve.deployment(Model)
unnamed = serve.deployment(Pair).bind(Unnamed.bind("v1"), right={"inner": [Unnamed.bind("v2")]})
