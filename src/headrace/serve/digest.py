"""Whether a deployment has changed: a digest over its code, its arguments and its resources.

In: what `graph.py` has packed. Out: 16 hex digits; equal ones may share replicas.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from headrace.spec.application import Code, ImportedCode
from headrace.spec.options import DeploymentOptions


def digest(target: Callable[..., Any], code: Code, arguments: bytes, options: DeploymentOptions) -> str:
    """16 hex digits over the deployment's source, arguments and what a running replica cannot change."""
    whole = hashlib.sha256()
    source = _source(code)
    resources = (options.num_cpus, options.num_gpus, sorted(options.environment.items()))
    for part in (msgspec.msgpack.encode(code), source, arguments, msgspec.msgpack.encode(resources)):
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()[:16]


def _source(code: Code) -> bytes:
    if not isinstance(code, ImportedCode):
        return b""
    file = getattr(sys.modules.get(code.module), "__file__", None)
    return Path(file).read_bytes() if file else b""
