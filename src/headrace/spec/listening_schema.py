"""What a configuration says of how an instance is reached: over HTTP, and over gRPC.

In: data as `spec.declared` takes it. Out: the schemas that `serve.schema` gives to users. What an option itself says of
a value is asked of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from headrace.spec.config import HTTPOptions, http_options
from headrace.spec.declared import UNSET, Schema, check_with, find_together
from headrace.spec.grpc import grpc_options as parse_grpc
from headrace.spec.grpc import gRPCOptions
from headrace.spec.kinds import Field, Findings, Flag, Items, Kind, Number, Path, Text


def _http(name: str, kind: Kind, text: str, *, nullable: bool = False) -> Field:
    default = next(field.default for field in msgspec.structs.fields(HTTPOptions) if field.name == name)
    check = None if name.startswith("ssl_") else check_with(HTTPOptions, name)
    return Field(kind, text, default, nullable=nullable or default is None, check=check)


class HTTPOptionsSchema(Schema):
    """How HTTP is served. It can be said once, when the instance starts to serve."""

    host: str = UNSET
    port: int = UNSET
    root_path: str = UNSET
    request_timeout_s: float | None = UNSET
    keep_alive_timeout_s: float = UNSET
    ssl_keyfile: str | None = UNSET
    ssl_certfile: str | None = UNSET
    ssl_keyfile_password: str | None = UNSET
    ssl_ca_certs: str | None = UNSET
    ingress_workers: int = UNSET
    header_timeout_s: float = UNSET
    body_timeout_s: float = UNSET
    max_header_bytes: int = UNSET
    max_body_bytes: int = UNSET
    max_connections: int = UNSET
    drain_timeout_s: float = UNSET

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "host": _http("host", Text(), "Address to listen on; 0.0.0.0: all."),
        "port": _http("port", Number(whole=True), "Port to listen on; 0: any that is free."),
        "root_path": _http("root_path", Text(), "Path that a proxy before it strips."),
        "request_timeout_s": _http("request_timeout_s", Number(), "Seconds that a request has; null: no limit."),
        "keep_alive_timeout_s": _http("keep_alive_timeout_s", Number(), "Seconds between requests of a connection."),
        "ssl_keyfile": _http("ssl_keyfile", Text(), "Key of the certificate (PEM)."),
        "ssl_certfile": _http("ssl_certfile", Text(), "Certificate (PEM): HTTPS is served."),
        "ssl_keyfile_password": _http("ssl_keyfile_password", Text(), "Password of the key."),
        "ssl_ca_certs": _http("ssl_ca_certs", Text(), "Clients show certificates signed by these."),
        "ingress_workers": _http("ingress_workers", Number(whole=True), "Processes that accept requests."),
        "header_timeout_s": _http("header_timeout_s", Number(), "Seconds in which the head of a request is there."),
        "body_timeout_s": _http("body_timeout_s", Number(), "Seconds in which a body may make no progress."),
        "max_header_bytes": _http("max_header_bytes", Number(whole=True), "The longest head."),
        "max_body_bytes": _http("max_body_bytes", Number(whole=True), "The longest body."),
        "max_connections": _http("max_connections", Number(whole=True), "Connections at once."),
        "drain_timeout_s": _http("drain_timeout_s", Number(), "Seconds that a stopping ingress has."),
    }

    @classmethod
    def _find_together(cls, given: Mapping[str, Any], path: Path, findings: Findings) -> None:
        find_together(lambda: http_options(given), path, findings)


def _grpc(name: str, kind: Kind, text: str, *, nullable: bool = False) -> Field:
    default = next(field.default for field in msgspec.structs.fields(gRPCOptions) if field.name == name)
    check = None if name.startswith("ssl_") else check_with(gRPCOptions, name)
    default = list(default) if isinstance(default, tuple) else default
    return Field(kind, text, default, nullable=nullable or default is None, check=check)


class gRPCOptionsSchema(Schema):
    """How gRPC is served, where there are servicer functions. It can be said once, when the instance starts."""

    port: int = UNSET
    grpc_servicer_functions: list[str] = UNSET
    request_timeout_s: float | None = UNSET
    enable_reflection: bool = UNSET
    host: str | None = UNSET
    max_message_bytes: int = UNSET
    max_concurrent_rpcs: int = UNSET
    ssl_certfile: str | None = UNSET
    ssl_keyfile: str | None = UNSET
    ssl_ca_certs: str | None = UNSET

    FIELDS: ClassVar[Mapping[str, Field]] = {
        "port": _grpc("port", Number(whole=True), "Port to listen on; 0: any that is free."),
        "grpc_servicer_functions": _grpc(
            "grpc_servicer_functions", Items(Text()), "The functions that protoc made for your services."
        ),
        "request_timeout_s": _grpc("request_timeout_s", Number(), "Seconds that a call has; null: no limit."),
        "enable_reflection": Field(Flag(), "Whether clients may ask which services there are: always so.", True),
        "host": _grpc("host", Text(), "Address to listen on; null: that of HTTP."),
        "max_message_bytes": _grpc("max_message_bytes", Number(whole=True), "The longest message of a client."),
        "max_concurrent_rpcs": _grpc("max_concurrent_rpcs", Number(whole=True), "Calls in work at once."),
        "ssl_certfile": _grpc("ssl_certfile", Text(), "Certificate (PEM)."),
        "ssl_keyfile": _grpc("ssl_keyfile", Text(), "Key of the certificate (PEM)."),
        "ssl_ca_certs": _grpc("ssl_ca_certs", Text(), "Clients show certificates signed by these."),
    }

    @classmethod
    def _find_together(cls, given: Mapping[str, Any], path: Path, findings: Findings) -> None:
        options = {name: value for name, value in given.items() if name != "enable_reflection"}
        find_together(lambda: parse_grpc(options), path, findings)
        if given.get("enable_reflection") is False:
            findings.note(
                (*path, "enable_reflection"), "'enable_reflection' has no effect: reflection is always served"
            )
