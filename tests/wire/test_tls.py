"""The files of TLS between nodes: what is wrong with them is said with their names."""

import ssl
from pathlib import Path

import pytest
import trustme

from headrace.spec.errors import InstanceError, OptionError
from headrace.wire.tls import VARIABLES, TlsFiles, client_context, server_context, tls_files


def node_files(directory: Path) -> TlsFiles:
    """A certificate, its key, and the authority that signed it."""
    authority = trustme.CA()
    made = authority.issue_cert("node.cluster")
    files = TlsFiles(*(str(directory / f"{kind}.pem") for kind in ("cert", "key", "ca")))
    made.cert_chain_pems[0].write_to_path(files.certfile)
    made.private_key_pem.write_to_path(files.keyfile)
    authority.cert_pem.write_to_path(files.cafile)
    return files


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    return node_files(tmp_path)


def test_the_files_are_found_by_the_environment(files: TlsFiles):
    assert tls_files({}) is None
    assert tls_files(files.variables() | {"OTHER": "1"}) == files


@pytest.mark.parametrize("missing", VARIABLES.values())
def test_a_part_of_them_is_an_error_that_names_what_is_missing(files: TlsFiles, missing: str):
    with pytest.raises(OptionError, match=f"without {missing}"):
        tls_files({name: value for name, value in files.variables().items() if name != missing})


def test_both_ends_have_to_show_a_certificate_and_speak_1_3(files: TlsFiles):
    for context in (client_context(files), server_context(files)):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize("name", ["certfile", "keyfile", "cafile"])
@pytest.mark.parametrize("damage", ["gone", "garbage", "empty"])
def test_an_error_names_the_file(files: TlsFiles, name: str, damage: str):
    path = Path(getattr(files, name))
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else b"no certificate at all")
    for make in (client_context, server_context):
        with pytest.raises(InstanceError, match=str(path)):
            make(files)


def test_a_key_of_another_certificate_and_one_with_a_password_are_refused(files: TlsFiles):
    from cryptography.hazmat.primitives import serialization  # what trustme makes its keys with

    key = serialization.load_pem_private_key(Path(files.keyfile).read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    Path(files.keyfile).write_bytes(locked)
    with pytest.raises(InstanceError, match="without a password"):
        client_context(files)
    trustme.CA().issue_cert("other").private_key_pem.write_to_path(files.keyfile)
    with pytest.raises(InstanceError, match="its key"):
        client_context(files)
