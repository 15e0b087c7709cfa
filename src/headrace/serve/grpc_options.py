"""`grpc_options` as users give them, into what the ingress is told: checked, and importable from elsewhere.

In: a dict or gRPCOptions. Out: a GrpcService, which names where servicer functions are imported from; or None for none.
What cannot be served is found out here, in the user's own process, not by an ingress that does not start.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace.serve.graph import environment
from headrace.spec.config import HTTPOptions
from headrace.spec.errors import ImportPathError, OptionError, OptionTypeError
from headrace.spec.grpc import GrpcService, gRPCOptions
from headrace.spec.grpc import grpc_options as parse
from headrace.wire.servicers import MISSING, methods_of

_TLS_FILES = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs")
_NEEDED = ("grpc", "google.protobuf", "grpc_health", "grpc_reflection")


def grpc_service(given: gRPCOptions | Mapping[str, Any] | None) -> GrpcService | None:
    """What to serve over gRPC, None for nothing. Imports the servicer functions.

    Raises OptionError, OptionTypeError, or ImportPathError: a servicer function, or a package, is not there.
    """
    if given is None:
        return None
    if not isinstance(given, gRPCOptions | Mapping):
        raise OptionTypeError(f"grpc_options={given!r} must be a dict or gRPCOptions, not {type(given).__name__}")
    options = given if isinstance(given, gRPCOptions) else parse(given)
    if not options.enabled:
        warnings.warn(
            "grpc_options without grpc_servicer_functions: gRPC is not served; name the functions that protoc "
            "generated for your services, such as 'digits_pb2_grpc.add_DigitsServicer_to_server'",
            stacklevel=3,
        )
        return None
    _check_packages()
    for path in options.grpc_servicer_functions:
        methods_of(path)
    located = _with_absolute_paths(options)
    _check_certificates(located)
    return GrpcService(options=located, environment=environment())


def _check_packages() -> None:
    for name in _NEEDED:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # of the package around it
            found = None
        if found is None:
            raise ImportPathError(f"{MISSING} (there is no module {name!r})")


def _check_certificates(options: gRPCOptions) -> None:
    if options.ssl_certfile is None:
        return
    from headrace.ingress.tls import context_of  # it takes a while to load, for the few who ask for TLS

    files = {name: getattr(options, name) for name in _TLS_FILES}
    try:
        context_of(HTTPOptions(**files), closed_keys=False)
    except OptionError as error:
        raise OptionError(f"gRPC: {error}") from error.__cause__


def _with_absolute_paths(options: gRPCOptions) -> gRPCOptions:
    """The options, with files that the ingress finds from wherever it runs."""
    paths: dict[str, str] = {}
    for name in _TLS_FILES:
        given = getattr(options, name)
        if given is not None:
            path = Path(given).expanduser().absolute()
            if not path.is_file():
                raise OptionError(f"{name}={given!r}: there is no such file")
            paths[name] = str(path)
    return msgspec.structs.replace(options, **paths) if paths else options
