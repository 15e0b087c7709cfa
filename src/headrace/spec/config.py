"""Options of the instance: how it listens. Validated once, here; Python, CLI and config files derive from it."""

from __future__ import annotations

import msgspec


class HTTPOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the ingress listens and what it allows. Times in seconds, sizes in bytes; 0 workers means no HTTP.

    Names are Ray Serve's where it has the thing. Raises OptionError for a value that is not allowed.
    """

    host: str = "127.0.0.1"
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
