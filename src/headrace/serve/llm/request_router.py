"""Routers for language models, for `from headrace.serve.llm.request_router import ...`."""

from headrace.router.request_router import PrefixCacheAffinityRouter
from headrace.serve.unsupported import unsupported_class

KVAwareRouter = unsupported_class(
    "llm.request_router", "KVAwareRouter", "PrefixCacheAffinityRouter goes by what a replica has been sent"
)

__all__ = ["KVAwareRouter", "PrefixCacheAffinityRouter"]
