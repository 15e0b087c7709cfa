"""What a generated `add_XServicer_to_server` function knows: the methods of a service, their kinds and messages.

In: its import path. Out: for each `/package.Service/Method`, which sides stream, and how bytes become messages and
back. The ingress learns from it what there is to serve, a replica how to read it. grpcio itself is only the function's
need.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from headrace.spec.errors import ImportPathError, OptionError

MISSING = "gRPC needs packages that are not installed: pip install 'headrace[grpc]'"


class RpcMethod(msgspec.Struct, frozen=True):
    """One method of a service. `kind` is as in GrpcHead. `decode` and `encode` raise what the message classes raise."""

    path: str
    kind: str
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    servicer: str

    @property
    def service(self) -> str:
        """`package.Service`."""
        return self.path.rpartition("/")[0][1:]

    @property
    def name(self) -> str:
        """`Method`."""
        return self.path.rpartition("/")[2]


def methods_of(servicer: str) -> dict[str, RpcMethod]:
    """The methods by path. Raises ImportPathError for what cannot be imported, OptionError for another function."""
    collector = _Collector()
    function = _find(servicer)
    try:
        function(_AnyServicer(), collector)
    except Exception as error:  # what a function that is none of protoc's makes of the arguments
        raise OptionError(_not_generated(servicer, f"it raised {type(error).__name__}: {error}")) from error
    if not collector.handlers:
        raise OptionError(_not_generated(servicer, "it registered no method"))
    return {
        path: RpcMethod(path, _kind(handler), *_coders(handler), servicer)
        for path, handler in collector.handlers.items()
    }


def _find(servicer: str) -> Callable[..., Any]:
    module_name, _, name = servicer.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name in ("grpc", "google", "google.protobuf"):
            raise ImportPathError(f"grpc_servicer_functions: {servicer}: {MISSING}") from error
        raise ImportPathError(
            f"grpc_servicer_functions: {servicer!r} cannot be imported, for there is no module {error.name!r}"
        ) from error
    except Exception as error:  # whatever the user's module raises
        raise ImportPathError(
            f"grpc_servicer_functions: {module_name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    known = [n for n in vars(module) if n.startswith("add_") and n.endswith("_to_server")]
    near = difflib.get_close_matches(name, known, 1) or known
    hint = f": did you mean {' or '.join(near)}?" if near else ", nor any function of that kind"
    raise ImportPathError(f"grpc_servicer_functions: module {module_name!r} has no {name!r}{hint}")


def _not_generated(servicer: str, reason: str) -> str:
    return f"grpc_servicer_functions: {servicer!r} is not a function that protoc generated for a service: {reason}"


class _AnyServicer:
    """Has every method."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _nothing


def _nothing(*args: Any) -> None:
    """Stands for the methods of a servicer, which are never called."""


class _Collector:
    """Takes the place of a server: what is registered with it is noted. Code of older plugins registers generically."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        for handler in handlers:
            self.handlers |= getattr(handler, "_method_handlers", {})


def _kind(handler: Any) -> str:
    request = "stream" if handler.request_streaming else "unary"
    return f"{request}_{'stream' if handler.response_streaming else 'unary'}"


def _coders(handler: Any) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    return handler.request_deserializer or bytes, handler.response_serializer or bytes
