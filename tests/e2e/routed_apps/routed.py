"""Applications whose requests go by sessions and by tenants, for tests/e2e/test_request_routers.py."""

import os

from by_tenant import ByTenant

from headrace import serve
from headrace.serve.config import RequestRouterConfig
from headrace.serve.request_router import ConsistentHashRouter


def who():
    return {"replica": serve.get_replica_context().replica_id, "pid": os.getpid()}


@serve.deployment(
    num_replicas=3,
    request_router_config=RequestRouterConfig(
        request_router_class=ByTenant, request_router_kwargs={"header": "x-tenant"}
    ),
)
class Tenants:
    async def __call__(self, request):
        return who()

    async def who(self, tenant=None):
        return who()


@serve.deployment(num_replicas=3, request_router_config=RequestRouterConfig(request_router_class=ConsistentHashRouter))
class Sessions:
    def __init__(self, tenants):
        self.tenants = tenants

    async def __call__(self, request):
        tenant = request.query_params.get("tenant")
        if tenant:
            return await self.tenants.who.remote(tenant=tenant)
        if request.query_params.get("all"):
            return await self.tenants.broadcast("who")
        return who()


app = Sessions.bind(Tenants.bind())
tenants = Tenants.bind()
