"""How the processes of an instance on several nodes reach each other: options, validated once.

In: what users write (`serve.start(engine="ray", cluster_options=...)`, `--cluster-...`). Out: a ClusterOptions that is
valid, or an error that names the option, the value, and what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.names import hint

LEAST_PORT, MOST_PORT = 1024, 65535
_TLS = ("tls_certfile", "tls_keyfile", "tls_cafile")


class ClusterOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`ports` (first, last) are those that processes listen on for each other, None: any. `node_address` is the address
    under which a node is reached by the others ("": the one that Ray has for it).

    With `tls_certfile`, `tls_keyfile` and `tls_cafile` (PEM files, at the same path on every node) connections between
    nodes are TLS in which both ends show a certificate of that authority; without, they are authenticated by the
    instance's secret alone, and not encrypted. Raises OptionError, OptionTypeError.
    """

    ports: tuple[int, int] | None = None
    node_address: str = ""
    tls_certfile: str = ""
    tls_keyfile: str = ""
    tls_cafile: str = ""

    def __post_init__(self) -> None:
        if self.ports is not None:
            msgspec.structs.force_setattr(self, "ports", _checked_ports(self.ports))
        for name in ("node_address", *_TLS):
            value = getattr(self, name)
            if value is None:
                msgspec.structs.force_setattr(self, name, "")
            elif not isinstance(value, str):
                raise OptionTypeError(f"{name}={value!r} must be a text")
            elif "\0" in value:
                raise OptionError(f"{name}={value!r} must be without zero bytes")
        address = self.node_address
        if any(letter.isspace() or letter in "/[]@" for letter in address) or "://" in address:
            raise OptionError(
                f"node_address={address!r} must be a host name or an IP address alone, such as '10.0.0.7'"
            )
        if address.count(":") == 1:
            raise OptionError(f"node_address={address!r} must be without a port: the ports are the option ports")
        missing = [name for name in _TLS if not getattr(self, name)]
        if missing and len(missing) < len(_TLS):
            given = next(name for name in _TLS if getattr(self, name))
            raise OptionError(
                f"{given}={getattr(self, given)!r} needs {' and '.join(missing)} too: both ends of a connection show a "
                "certificate, and check that of the other"
            )


def cluster_options(given: ClusterOptions | Mapping[str, Any] | None) -> ClusterOptions:
    """The options that a mapping names; those themselves; or the defaults. Raises OptionError, OptionTypeError."""
    if given is None:
        return ClusterOptions()
    if isinstance(given, ClusterOptions):
        return given
    if not isinstance(given, Mapping):
        raise OptionTypeError(f"cluster_options={given!r} must be a dict or ClusterOptions")
    names = ClusterOptions.__struct_fields__
    for name in given:
        if name not in names:
            raise OptionError(f"{name!r} is no cluster option: {hint(name, names)}")
    return ClusterOptions(**given)


def _checked_ports(given: object) -> tuple[int, int]:
    """The range, also as the text `20000-20999`."""
    example = "two ports, the first and the last, such as (20000, 20999)"
    if isinstance(given, str):
        first, dash, last = given.partition("-")
        if not dash or not _is_number(first) or not _is_number(last):
            raise OptionError(f"ports={given!r} must be {example} or '20000-20999'")
        given = (int(first), int(last))
    if not isinstance(given, Sequence) or len(given) != 2:
        raise OptionTypeError(f"ports={given!r} must be {example}")
    low, high = given
    if any(isinstance(port, bool) or not isinstance(port, int) for port in (low, high)):
        raise OptionTypeError(f"ports={given!r} must be {example}")
    if not LEAST_PORT <= low <= high <= MOST_PORT:
        raise OptionError(f"ports={given!r} must be {example}, from {LEAST_PORT} to {MOST_PORT}")
    return low, high


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5
