"""headrace.spec.cluster: how nodes reach each other; what is wrong is named with what would be right."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.spec.cluster import ClusterOptions, cluster_options
from headrace.spec.errors import OptionError, OptionTypeError

TLS = {"tls_certfile": "/c.pem", "tls_keyfile": "/k.pem", "tls_cafile": "/a.pem"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ClusterOptions()),
        ({}, ClusterOptions()),
        ({"ports": None, "node_address": None}, ClusterOptions()),
        ({"ports": [20000, 20999]}, ClusterOptions(ports=(20000, 20999))),
        ({"ports": "20000-20999"}, ClusterOptions(ports=(20000, 20999))),
        ({"ports": (1024, 1024)}, ClusterOptions(ports=(1024, 1024))),
        ({"node_address": "fd00::7"}, ClusterOptions(node_address="fd00::7")),
        (TLS, ClusterOptions(**TLS)),
        (ClusterOptions(node_address="a"), ClusterOptions(node_address="a")),
    ],
)
def test_right_values_are_taken(given: Any, expected: ClusterOptions) -> None:
    options = cluster_options(given)
    assert options == expected
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=ClusterOptions) == expected


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (3, OptionTypeError, "cluster_options=3 must be a dict"),
        ({"port": 1}, OptionError, r"'port' is no cluster option: did you mean 'ports'\?"),
        ({"ports": 20000}, OptionTypeError, "ports=20000 must be two ports"),
        ({"ports": (1, 2, 3)}, OptionTypeError, "must be two ports"),
        ({"ports": (20000.0, 20001)}, OptionTypeError, "must be two ports"),
        ({"ports": (True, 20001)}, OptionTypeError, "must be two ports"),
        ({"ports": "20000"}, OptionError, "or '20000-20999'"),
        ({"ports": "20000-9999999999"}, OptionError, "or '20000-20999'"),
        ({"ports": "²-³"}, OptionError, "or '20000-20999'"),
        ({"ports": (80, 90)}, OptionError, "from 1024 to 65535"),
        ({"ports": (30000, 20000)}, OptionError, "the first and the last"),
        ({"ports": (60000, 70000)}, OptionError, "from 1024 to 65535"),
        ({"node_address": 7}, OptionTypeError, "node_address=7 must be a text"),
        ({"node_address": "http://a"}, OptionError, "must be a host name or an IP address alone"),
        ({"node_address": "a b"}, OptionError, "must be a host name or an IP address alone"),
        ({"node_address": "10.0.0.7:80"}, OptionError, "must be without a port"),
        ({"tls_keyfile": "k\0"}, OptionError, "zero bytes"),
        ({"tls_keyfile": "/k.pem"}, OptionError, "tls_keyfile='/k.pem' needs tls_certfile and tls_cafile too"),
        ({**TLS, "tls_cafile": ""}, OptionError, "tls_certfile='/c.pem' needs tls_cafile too"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        cluster_options(given)
