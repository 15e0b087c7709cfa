"""What a servicer function tells of its service, and what is said of a function that is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from headrace.serve.grpc_options import grpc_service
from headrace.spec.errors import ImportPathError, OptionError, OptionTypeError
from headrace.wire.servicers import methods_of

LIBRARY = "library_pb2_grpc.add_LibraryServicer_to_server"


def test_the_methods_of_a_service() -> None:
    from library_pb2 import Book

    methods = methods_of(LIBRARY)
    kinds = {method.name: method.kind for method in methods.values()}
    assert kinds["Lend"] == "unary_unary"
    assert kinds["List"] == "unary_stream"
    assert kinds["Store"] == "stream_unary"
    assert kinds["Talk"] == "stream_stream"
    lend = methods["/library.Library/Lend"]
    assert (lend.service, lend.servicer) == ("library.Library", LIBRARY)
    assert lend.decode(lend.encode(Book(title="x"))) == Book(title="x")


def test_code_of_an_older_plugin_registers_generic_handlers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "older_pb2_grpc.py").write_text(
        "import grpc\n"
        "def add_OldServicer_to_server(servicer, server):\n"
        "    handlers = {'Do': grpc.unary_unary_rpc_method_handler(servicer.Do)}\n"
        "    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('old.Old', handlers),))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    methods = methods_of("older_pb2_grpc.add_OldServicer_to_server")
    assert list(methods) == ["/old.Old/Do"]
    assert methods["/old.Old/Do"].encode(b"x") == b"x"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("no_such_module.add_XServicer_to_server", "there is no module 'no_such_module'"),
        ("library_pb2_grpc.add_LibrariServicer_to_server", "did you mean add_LibraryServicer_to_server?"),
        ("library_pb2_grpc.LibraryStub", "is not a function that protoc generated"),
        ("os.getcwd", "is not a function that protoc generated"),
        ("os.no_such_function", "nor any function of that kind"),
        ("builtins.print", "it registered no method"),
    ],
)
def test_what_is_none_is_told(path: str, told: str) -> None:
    with pytest.raises((ImportPathError, OptionError), match=told.replace("?", r"\?")):
        methods_of(path)


def test_options_without_functions_serve_nothing_and_say_so() -> None:
    with pytest.warns(UserWarning, match="gRPC is not served"):
        assert grpc_service({"port": 9001}) is None
    assert grpc_service(None) is None


def test_options_of_a_wrong_type() -> None:
    with pytest.raises(OptionTypeError, match="must be a dict or gRPCOptions"):
        grpc_service(9000)  # type: ignore[arg-type]


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    options = {"grpc_servicer_functions": [LIBRARY], "ssl_certfile": "no.pem", "ssl_keyfile": "no.key"}
    with pytest.raises(OptionError, match=r"no\.pem.*there is no such file"):
        grpc_service(options)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"ssl_keyfile": "other.key"},
            r"gRPC: the key in ssl_keyfile='.*other\.key' does not belong to the cert",
        ),
        ({"ssl_keyfile": "closed.key"}, r"gRPC: ssl_keyfile='.*closed\.key' is encrypted: give a key that is not"),
        ({"ssl_certfile": "nonsense.pem"}, r"gRPC: ssl_certfile='.*nonsense\.pem' must be a PEM file that begins with"),
        ({"ssl_ca_certs": "nonsense.pem"}, r"gRPC: ssl_ca_certs='.*nonsense\.pem' must be a PEM file of certificates"),
    ],
)
def test_certificates_that_do_not_fit_are_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path("server.pem")
    issued.private_key_pem.write_to_path("server.key")
    trustme.CA().issue_cert("else").private_key_pem.write_to_path("other.key")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    closed = serialization.BestAvailableEncryption(b"open sesame")
    encrypted = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, closed)
    (tmp_path / "closed.key").write_bytes(encrypted)
    (tmp_path / "nonsense.pem").write_text("nonsense")
    right = {"grpc_servicer_functions": [LIBRARY], "ssl_certfile": "server.pem", "ssl_keyfile": "server.key"}
    assert grpc_service(right) is not None
    with pytest.raises(OptionError, match=told):
        grpc_service(right | given)


def test_the_service_says_where_its_modules_are(generated: Path) -> None:
    service = grpc_service({"grpc_servicer_functions": [LIBRARY]})
    assert service is not None
    assert str(generated) in service.environment.sys_path


def test_processes_without_grpc_do_not_load_it() -> None:
    code = (
        "import sys, headrace.ingress.main, headrace.replica.main, headrace.serve.api, headrace.serve.grpc_util\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('grpc', 'google')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_packages_the_extra_is_named() -> None:
    code = (
        "import sys\n"
        "class Nobody:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('grpc', 'google', 'grpc_health', 'grpc_reflection'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Nobody())\n"
        "from headrace import serve\n"
        "from headrace.serve.grpc_util import RayServegRPCContext\n"
        "try:\n"
        "    serve.start(grpc_options={'grpc_servicer_functions': ['m.add_XServicer_to_server']})\n"
        "except ImportError as error:\n"
        "    print(error)\n"
        "except serve.exceptions.HeadraceError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'headrace[grpc]'" in done.stdout
