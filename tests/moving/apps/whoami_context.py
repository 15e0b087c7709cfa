"""What a replica knows of itself."""

from headrace import serve


@serve.deployment(name="me", num_replicas=2)
class WhoAmI:
    def __init__(self):
        context = serve.get_replica_context()
        self.in_constructor = (context.app_name, context.deployment, context.replica_tag)

    def __call__(self, request=None) -> dict:
        context = serve.get_replica_context()
        return {
            "app": context.app_name,
            "deployment": context.deployment,
            "tag": context.replica_tag,
            "same": self.in_constructor == (context.app_name, context.deployment, context.replica_tag),
            "mine": context.servable_object is self,
        }

    async def from_a_coroutine(self) -> str:
        return serve.get_replica_context().replica_tag


app = WhoAmI.bind()
