"""gRPCOptions: what is taken, and what is said of the rest."""

from __future__ import annotations

import shutil
from typing import Any

import msgspec
import pytest

from headrace.spec.application import Environment
from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.grpc import GrpcService, grpc_options, gRPCOptions


def test_functions_may_be_paths_or_functions() -> None:
    options = gRPCOptions(grpc_servicer_functions=["a.b.add_X", "m:add_Y", shutil.copy])  # type: ignore[arg-type, list-item]
    assert options.grpc_servicer_functions == ("a.b.add_X", "m.add_Y", "shutil.copy")
    assert options.enabled
    assert not gRPCOptions().enabled


@pytest.mark.parametrize(
    ("values", "kind", "told"),
    [
        ({"port": 65536}, OptionError, "port=65536 must be from 0 to 65535"),
        ({"port": "9000"}, OptionTypeError, "port='9000' must be an integer"),
        ({"port": True}, OptionTypeError, "port=True"),
        ({"prot": 1}, OptionError, "did you mean 'port'"),
        ({"grpc_servicer_functions": "a.b"}, OptionTypeError, "must be a list"),
        ({"grpc_servicer_functions": ["add_X"]}, OptionError, "is not MODULE.FUNCTION"),
        ({"grpc_servicer_functions": ["a.b-c"]}, OptionError, "is not MODULE.FUNCTION"),
        ({"grpc_servicer_functions": [3]}, OptionTypeError, "neither an import path nor a function"),
        ({"grpc_servicer_functions": [lambda: None]}, OptionError, "no function that other processes can import"),
        ({"request_timeout_s": 0}, OptionError, "more than 0"),
        ({"request_timeout_s": float("nan")}, OptionError, "more than 0"),
        ({"request_timeout_s": 10**400}, OptionError, "at most 2147483647"),
        ({"request_timeout_s": "1"}, OptionTypeError, "a number of seconds"),
        ({"host": "a b"}, OptionError, "host='a b'"),
        ({"max_message_bytes": 10}, OptionError, "max_message_bytes=10 must be from 1024"),
        ({"max_concurrent_rpcs": 0}, OptionError, "max_concurrent_rpcs=0 must be from 1"),
        ({"max_message_bytes": 2**31}, OptionError, "max_message_bytes"),
        ({"ssl_certfile": "a"}, OptionError, "belong together"),
        ({"ssl_ca_certs": "a"}, OptionError, "ssl_ca_certs needs"),
        ({"ssl_certfile": 1, "ssl_keyfile": "k"}, OptionTypeError, "ssl_certfile=1"),
    ],
)
def test_what_is_wrong_is_told(values: dict[str, Any], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        grpc_options(values)


def test_a_service_crosses_as_json() -> None:
    options = gRPCOptions(grpc_servicer_functions=("m.f",), request_timeout_s=2.5, host="::1")
    service = GrpcService(options=options, environment=Environment(sys_path=("/x",)))
    assert msgspec.json.decode(msgspec.json.encode(service), type=GrpcService) == service
