"""A router of a user's own, in a module that imports little: it runs in every process that calls the deployment."""

from headrace.serve.request_router import RequestRouter


class ByTenant(RequestRouter):
    """Tenants by the number in their name, over the replicas in the order of their ids."""

    def initialize_state(self, *, header):
        self.header = header

    async def choose_replicas(self, candidate_replicas, pending_request=None):
        tenant = pending_request.headers.get(self.header) or pending_request.kwargs.get("tenant")
        if tenant is None:
            return []
        replicas = sorted(self.curr_replicas.values(), key=lambda replica: replica.replica_id)
        return [[replicas[int(tenant) % len(replicas)]], candidate_replicas]
