"""For `from headrace.serve.experimental.round_robin_router import RoundRobinRouter`."""

from headrace.router.request_router import RoundRobinRouter

__all__ = ["RoundRobinRouter"]
