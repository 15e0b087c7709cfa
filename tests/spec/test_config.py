"""HTTP options: every wrong value is an error that names the option, the value and what would be right."""

from __future__ import annotations

import msgspec
import pytest

from headrace.spec.config import HTTPOptions, http_options
from headrace.spec.errors import OptionError, OptionTypeError


def test_defaults_are_valid_and_survive_json_and_msgpack():
    options = HTTPOptions(port=0, root_path="/api", request_timeout_s=2)
    assert http_options(msgspec.json.decode(msgspec.json.encode(options))) == options
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=HTTPOptions) == options
    assert http_options({}) == HTTPOptions()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", ""),
        pytest.param("request_timeout_s", 10**400, id="too large for a float"),
        ("keep_alive_timeout_s", 2**31),
        ("host", "a b"),
        ("port", -1),
        ("port", 65536),
        ("ingress_workers", -1),
        ("ingress_workers", 1000),
        ("root_path", "api"),
        ("root_path", "/api/"),
        ("root_path", "/"),
        ("root_path", "/a b"),
        ("root_path", "/ü"),
        ("request_timeout_s", 0),
        ("request_timeout_s", -1),
        ("request_timeout_s", float("nan")),
        ("keep_alive_timeout_s", 0),
        ("header_timeout_s", float("inf")),
        ("body_timeout_s", -0.5),
        ("drain_timeout_s", -1),
        ("max_header_bytes", 10),
        ("max_header_bytes", 1 << 20),
        ("max_body_bytes", -1),
        ("max_connections", 0),
        ("location", "Everywhere"),
        ("ssl_keyfile", "key.pem"),
        ("middlewares", [object()]),
    ],
)
def test_a_value_that_is_not_allowed_is_named(name: str, value: object):
    with pytest.raises(OptionError, match=name):
        HTTPOptions(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", 1),
        ("port", "8000"),
        ("port", True),
        ("port", 8000.0),
        ("root_path", None),
        ("request_timeout_s", "1"),
        ("keep_alive_timeout_s", None),
        ("max_body_bytes", 1.5),
    ],
)
def test_a_value_of_a_wrong_type_is_named(name: str, value: object):
    with pytest.raises(OptionTypeError, match=name):
        HTTPOptions(**{name: value})


def test_an_unknown_name_is_told_with_the_nearest_one():
    with pytest.raises(
        OptionError, match="'keep_alive_timeout' is no HTTP option: did you mean 'keep_alive_timeout_s'"
    ):
        http_options({"keep_alive_timeout": 3})
    with pytest.raises(OptionError, match="there are host, port"):
        http_options({"zzz": 3})


def test_what_ray_serve_has_is_taken_where_it_means_something():
    assert HTTPOptions(location="HeadOnly", ssl_keyfile=None, middlewares=[]).ingress_workers == 1
    assert HTTPOptions(location="NoServer").ingress_workers == 0
    assert HTTPOptions(location=None).ingress_workers == 0
    with pytest.warns(UserWarning, match="num_cpus"):
        HTTPOptions(num_cpus=1)


def test_files_of_tls_are_looked_for_where_the_options_were_given():
    options = HTTPOptions(ssl_certfile="tls/cert.pem", ssl_keyfile="/etc/key.pem", ssl_keyfile_password="secret")
    located = options.located("/home/me")
    assert (located.ssl_certfile, located.ssl_keyfile) == ("/home/me/tls/cert.pem", "/etc/key.pem")
    assert (located.ssl_ca_certs, located.ssl_keyfile_password) == (None, "secret")
    assert HTTPOptions().located("/home/me") == HTTPOptions(ssl_certfile="", ssl_keyfile="")


@pytest.mark.parametrize("name", ["ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs"])
def test_what_belongs_to_a_certificate_needs_one(name: str):
    with pytest.raises(OptionError, match=f"{name} has no effect without ssl_certfile"):
        HTTPOptions(**{name: "x"})
    with pytest.raises(OptionTypeError, match=name):
        HTTPOptions(**{"ssl_certfile": "cert.pem", name: 7})
