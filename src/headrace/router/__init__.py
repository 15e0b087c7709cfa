"""The caller's side of the data plane: calls in, from the ingress and handles; frames out, to replicas."""

from headrace.router.call import Call
from headrace.router.router import Router

__all__ = ["Call", "Router"]
