"""Options of a deployment: one frozen struct, validated once; `.options()`, CLI and config files derive from it."""

from __future__ import annotations

from typing import Any

import msgspec


class DeploymentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """See docs/reference/options.md. `max_ongoing_requests` None means: chosen by the kind of the methods."""

    num_replicas: int = 1
    max_ongoing_requests: int | None = None
    max_queued_requests: int = 1000
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    environment: dict[str, str] = {}
    user_config: Any = None
    repeatable: bool = True
    graceful_shutdown_timeout_s: float = 20.0
    max_constructor_retry_count: int = 3
    start_timeout_s: float = 600.0
