"""The gRPC service of `bench/chaos.py`, as protoc would generate it."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import Int64Value

SERVICE = "chaos.Numbers"


def add_NumbersServicer_to_server(servicer: Any, server: Any) -> None:
    """Say: number to number + 1. Count: a number to as many, from 0."""
    coders = {"request_deserializer": Int64Value.FromString, "response_serializer": Int64Value.SerializeToString}
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(servicer.Say, **coders),
        "Count": grpc.unary_stream_rpc_method_handler(servicer.Count, **coders),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
