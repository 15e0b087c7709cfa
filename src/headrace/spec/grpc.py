"""Options of gRPC on the instance. Validated once, here; Python, the CLI and the ingress derive from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from headrace.spec.application import Environment
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint
from headrace.spec.values import MOST

LEAST_MESSAGE_BYTES = 1024
MOST_MESSAGE_BYTES = (1 << 30) - 1  # what an item of a stream may have


class gRPCOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the ingress serves gRPC. Times in seconds, sizes in bytes; names are Ray Serve's where it has the thing.

    `grpc_servicer_functions` are the functions that protoc's plugin generates for services,
    `package.module_pb2_grpc.add_XServicer_to_server`, by import path (or the functions themselves, from a module that
    can be imported); without any there is no gRPC. `host` None: that of HTTP. `port` 0: any that is free.
    `request_timeout_s` None: no limit but the client's deadline. `max_message_bytes` bounds a message of a client,
    `max_concurrent_rpcs` what one ingress process has in work at once. `ssl_ca_certs` has clients show a
    certificate. Raises OptionError, or OptionTypeError for a value of a wrong type.
    """

    port: int = 9000
    grpc_servicer_functions: tuple[str, ...] = ()
    request_timeout_s: float | None = None
    host: str | None = None
    max_message_bytes: int = 128 * 1024 * 1024
    max_concurrent_rpcs: int = 10_000
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_ca_certs: str | None = None

    def __post_init__(self) -> None:
        _check_integer("port", self.port, 0, 65535)
        msgspec.structs.force_setattr(self, "grpc_servicer_functions", _paths(self.grpc_servicer_functions))
        _check_timeout(self.request_timeout_s)
        _check_host(self.host)
        _check_integer("max_message_bytes", self.max_message_bytes, LEAST_MESSAGE_BYTES, MOST_MESSAGE_BYTES)
        _check_integer("max_concurrent_rpcs", self.max_concurrent_rpcs, 1, MOST)
        for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise OptionTypeError(f"{name}={value!r} must be the path of a PEM file, or None")
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise OptionError("ssl_certfile and ssl_keyfile belong together: give both, or neither")
        if self.ssl_ca_certs and not self.ssl_certfile:
            raise OptionError(
                "ssl_ca_certs needs ssl_certfile and ssl_keyfile: without TLS clients show no certificate"
            )

    @property
    def enabled(self) -> bool:
        """Whether there is anything to serve."""
        return bool(self.grpc_servicer_functions)


class GrpcService(msgspec.Struct, frozen=True, kw_only=True):
    """gRPC as the ingress processes are to serve it, and where they import the servicer functions from."""

    options: gRPCOptions
    environment: Environment = Environment()


def grpc_options(values: Mapping[str, Any]) -> gRPCOptions:
    """The options that a mapping names. Raises OptionError for a name that is none, with the nearest one."""
    names = gRPCOptions.__struct_fields__
    for name in values:
        if name not in names:
            raise OptionError(f"{name!r} is no gRPC option: {hint(name, names)}")
    return gRPCOptions(**values)


def _paths(functions: Sequence[str | Callable[..., Any]]) -> tuple[str, ...]:
    if isinstance(functions, str) or not isinstance(functions, Sequence):
        raise OptionTypeError(
            f"grpc_servicer_functions={functions!r} must be a list of import paths, such as "
            "['digits_pb2_grpc.add_DigitsServicer_to_server']"
        )
    return tuple(_path(function) for function in functions)


def _path(function: str | Callable[..., Any]) -> str:
    path = function
    if not isinstance(path, str):
        module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
        if not callable(function) or not module or not name:
            raise OptionTypeError(f"grpc_servicer_functions: {function!r} is neither an import path nor a function")
        if module == "__main__" or not name.isidentifier():
            raise OptionError(
                f"grpc_servicer_functions: {module}.{name} is no function that other processes can import: put it in "
                "a module"
            )
        path = f"{module}.{name}"
    path = path.replace(":", ".")
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise OptionError(
            f"grpc_servicer_functions: {path!r} is not MODULE.FUNCTION, such as "
            "'digits_pb2_grpc.add_DigitsServicer_to_server'"
        )
    return path


def _check_integer(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"{name}={value!r} must be an integer from {least} to {most}")
    if not least <= value <= most:
        raise OptionError(f"{name}={value!r} must be from {least} to {most}")


def _check_timeout(value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"request_timeout_s={value!r} must be a number of seconds, or None")
    if not 0 < value <= MOST:  # comparisons alone: it may be too large for a float
        raise OptionError(f"request_timeout_s={value!r} must be more than 0 seconds and at most {MOST}, or None")


def _check_host(value: object) -> None:
    if value is not None and (not isinstance(value, str) or not value or any(c.isspace() for c in value)):
        raise OptionError(f"host={value!r} must be a host name or an address, or None for that of HTTP")
