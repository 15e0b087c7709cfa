"""Options of the instance: how it listens. Validated once, here; Python, CLI and config files derive from it."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import msgspec

from headrace.spec.errors import OptionError, OptionTypeError
from headrace.spec.values import MOST

LEAST_HEADER_BYTES = 1024
MOST_HEADER_BYTES = 40 * 1024  # the head of a request travels in the metadata of one frame
DEFAULT_HOST = "127.0.0.1"
LOCATIONS = ("EveryNode", "HeadOnly", "NoServer", "Disabled")
NOT_YET = ("middlewares",)
TLS_FILES = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs")
PASSWORD = "ssl_keyfile_password"
TLS = (*TLS_FILES, PASSWORD)


class HTTPOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the ingress listens and what it allows. Times in seconds, sizes in bytes; 0 workers means no HTTP.

    Names are Ray Serve's where it has the thing. `request_timeout_s` None: no limit but the client's patience.
    `header_timeout_s` bounds the time from a request's first byte to the end of its head, `body_timeout_s` the time
    in which a body (or the reading of a response) makes no progress, `keep_alive_timeout_s` that between requests.
    `drain_timeout_s` is how long a stopping ingress lets requests finish. `location` is Ray Serve's: on one machine all
    its places are the same, and `NoServer` means `ingress_workers=0`; so does `host=None`. With `ssl_certfile`
    HTTPS is served and not HTTP (PEM files; the key in `ssl_keyfile`, or with the certificate); `ssl_ca_certs` asks
    clients for certificates too. Raises OptionError for a value that is not allowed, OptionTypeError for one of a wrong
    type.
    """

    host: str = DEFAULT_HOST
    port: int = 8000
    ingress_workers: int = 1
    root_path: str = ""
    request_timeout_s: float | None = None
    keep_alive_timeout_s: float = 90.0
    header_timeout_s: float = 20.0
    body_timeout_s: float = 60.0
    max_header_bytes: int = 32 * 1024
    max_body_bytes: int = 512 * 1024 * 1024
    max_connections: int = 10_000
    drain_timeout_s: float = 20.0
    location: str | None = "EveryNode"
    num_cpus: float | None = None
    middlewares: Any = None
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: str | None = None

    def __post_init__(self) -> None:
        given: object = self.host
        if given is None:
            msgspec.structs.force_setattr(self, "host", DEFAULT_HOST)
            msgspec.structs.force_setattr(self, "ingress_workers", 0)
        elif not isinstance(given, str):
            raise OptionTypeError(f"host={given!r} must be a string, such as '127.0.0.1' or '0.0.0.0'")
        if not self.host or any(c.isspace() for c in self.host):
            raise OptionError(f"host={self.host!r} must be a host name or an address, such as '127.0.0.1' or '0.0.0.0'")
        _check_integer("port", self.port, 0, 65535)
        _check_integer("ingress_workers", self.ingress_workers, 0, 256)
        _check_root_path(self.root_path)
        if self.request_timeout_s is not None:
            _check_seconds("request_timeout_s", self.request_timeout_s)
        for name in ("keep_alive_timeout_s", "header_timeout_s", "body_timeout_s"):
            _check_seconds(name, getattr(self, name))
        _check_seconds("drain_timeout_s", self.drain_timeout_s, zero=True)
        _check_integer("max_header_bytes", self.max_header_bytes, LEAST_HEADER_BYTES, MOST_HEADER_BYTES)
        _check_integer("max_body_bytes", self.max_body_bytes, 0, None)
        _check_integer("max_connections", self.max_connections, 1, None)
        for name in NOT_YET:
            if getattr(self, name):
                raise OptionError(f"{name} is not supported yet: leave it out")
        self._check_tls()
        if self.location is None or self.location in ("NoServer", "Disabled"):
            msgspec.structs.force_setattr(self, "ingress_workers", 0)
        elif self.location not in LOCATIONS:
            raise OptionError(f"location={self.location!r} must be one of {', '.join(LOCATIONS)}")
        if self.num_cpus:
            warnings.warn("num_cpus of HTTPOptions has no effect here: see ingress_workers", stacklevel=3)

    def __repr__(self) -> str:
        return f"HTTPOptions({', '.join(f'{name}={self.shown(name)}' for name in self.__struct_fields__)})"

    def shown(self, name: str) -> str:
        """The option's value for messages, which do not quote a password."""
        value = getattr(self, name)
        return repr(value) if value is None or name != PASSWORD else "..."

    def located(self, directory: str) -> HTTPOptions:
        """These options with the paths of files taken from `directory`, where they are relative."""
        files = {name: getattr(self, name) for name in TLS_FILES}
        paths = {name: str(PurePath(directory, path)) for name, path in files.items() if path is not None}
        return msgspec.structs.replace(self, **paths) if paths else self

    def _check_tls(self) -> None:
        for name in TLS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise OptionTypeError(f"{name}={self.shown(name)} must be a string, not {type(value).__name__}")
            if value == "":
                msgspec.structs.force_setattr(self, name, None)
        if self.ssl_certfile is None:
            for name in TLS:
                if getattr(self, name) is not None:
                    raise OptionError(f"{name} has no effect without ssl_certfile: give the server's certificate too")


def http_options(values: Mapping[str, Any]) -> HTTPOptions:
    """The options that a mapping names (a dict of the user's, a config file, the environment of an ingress).

    Raises OptionError for a name that is none, with the nearest one, and for a value that is not allowed.
    """
    names = HTTPOptions.__struct_fields__
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise OptionError(f"{name!r} is no HTTP option: {hint}")
    return HTTPOptions(**values)


def _check_integer(name: str, value: object, least: int, most: int | None) -> None:
    allowed = f"at least {least}" if most is None else f"from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionTypeError(f"{name}={value!r} must be an integer {allowed}")
    if value < least or (most is not None and value > most):
        raise OptionError(f"{name}={value!r} must be {allowed}")


def _check_seconds(name: str, value: object, *, zero: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"{name}={value!r} must be a number of seconds")
    if not 0 <= value <= MOST or (value == 0 and not zero):  # comparisons alone: it may be too large for a float
        least = "0 or more" if zero else "more than 0"
        raise OptionError(f"{name}={value!r} must be a number of seconds, {least} and at most {MOST}")


def _check_root_path(value: object) -> None:
    if not isinstance(value, str):
        raise OptionTypeError(f"root_path={value!r} must be a string, such as '/api', or '' for none")
    wrong = not value.startswith("/") or value.endswith("/") or not value.isascii() or not value.isprintable()
    if value and (wrong or any(c in value for c in " ?#%")):
        raise OptionError(f"root_path={value!r} must start with '/' and not end with it, such as '/api', or be ''")
