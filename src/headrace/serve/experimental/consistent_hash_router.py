"""For `from headrace.serve.experimental.consistent_hash_router import ConsistentHashRouter`."""

from headrace.router.request_router import ConsistentHashRouter

__all__ = ["ConsistentHashRouter"]
