"""What handlers of RPCs are given and raise, for `from headrace.serve.grpc_util import ...`."""

from headrace.replica.grpc_context import GrpcContext, gRPCInputStream, gRPCStatusError

RayServegRPCContext = GrpcContext

__all__ = ["GrpcContext", "RayServegRPCContext", "gRPCInputStream", "gRPCStatusError"]
