"""The services that are the ingress's own: health, reflection, and which applications there are.

In: what is ready, as the server learns it. Out: answers to probes and tools (grpcurl, Kubernetes), by the standard
protocols of gRPC. ListApplications and Healthz are also there under the name that clients of Ray Serve call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

API_SERVICE = "headrace.APIService"
_ALIASES = (API_SERVICE, "ray.serve.RayServeAPIService")
_FILE = "headrace/api_service.proto"
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The standard health service: of the server as a whole (the name "") and of each service by name."""

    def __init__(self, services: Sequence[str]) -> None:
        self._services = ("", *services)
        self._servicer = health.aio.HealthServicer()
        self.told: bool | None = None  # whether we serve, as it was last said

    def __repr__(self) -> str:
        return f"<Health {'SERVING' if self.told else 'NOT_SERVING'}>"

    def register(self, server: Any) -> None:
        """Serve it."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def tell(self, serving: bool) -> None:
        """Say so to whoever asks, and to those who watch."""
        if serving != self.told:
            self.told = serving
            for service in self._services:
                await self._servicer.set(service, _SERVING if serving else _NOT_SERVING)

    async def drain(self) -> None:
        """Not serving, whatever is told from now on."""
        self.told = False
        await self._servicer.enter_graceful_shutdown()


def register_api(server: Any, applications: Callable[[], Sequence[str]], healthy: Callable[[], bool]) -> None:
    """Serve ListApplications and Healthz."""
    pool = _described()
    names = {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"headrace.{name}")) for name in _MESSAGES
    }

    async def list_applications(request: Any, context: Any) -> Any:
        return names["ListApplicationsResponse"](application_names=applications())

    async def healthz(request: Any, context: Any) -> Any:
        if healthy():
            return names["HealthzResponse"](message="success")
        context.set_code(grpc.StatusCode.UNAVAILABLE)
        context.set_details("no routes yet, or draining")
        return names["HealthzResponse"]()

    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            function,
            request_deserializer=names[f"{method}Request"].FromString,
            response_serializer=names[f"{method}Response"].SerializeToString,
        )
        for method, function in (("ListApplications", list_applications), ("Healthz", healthz))
    }
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(service, handlers) for service in _ALIASES)
    )


def register_reflection(server: Any, services: Sequence[str]) -> None:
    """Serve the descriptions of these services, and of our own."""
    own = (API_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection((*services, *own), server)


_MESSAGES: dict[str, tuple[str, int] | None] = {
    "ListApplicationsRequest": None,
    "ListApplicationsResponse": ("application_names", descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED),
    "HealthzRequest": None,
    "HealthzResponse": ("message", descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL),
}


def _described() -> Any:
    """The pool of descriptors, with that of our service in it, so that reflection can show it."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_FILE)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto(name=_FILE, package="headrace", syntax="proto3")
        for name, field in _MESSAGES.items():
            message = file.message_type.add(name=name)
            if field is not None:
                kind = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
                message.field.add(name=field[0], number=1, label=field[1], type=kind)
        service = file.service.add(name="APIService")
        for method in ("ListApplications", "Healthz"):
            service.method.add(
                name=method, input_type=f".headrace.{method}Request", output_type=f".headrace.{method}Response"
            )
        pool.Add(file)
    return pool
