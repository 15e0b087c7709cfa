"""What the instance keeps on the cluster itself: keys and values of the GCS, which outlive its nodes and processes.

In: keys, bytes. Out: bytes. They last as long as the GCS: across a loss of the head node where Redis is behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ray.exceptions import RayError
from ray.experimental.internal_kv import internal_kv_get_gcs_client

from headrace.engine.ray.names import NAMESPACE

_PATIENCE_S = 10.0
_SPACE = NAMESPACE.encode()
_T = TypeVar("_T")


class KeyValues:
    """The values of one instance. Each call asks the GCS and waits for it, so it belongs in a thread of its own.

    All raise OSError when the GCS does not answer; what was to be written may be written all the same.
    """

    def __init__(self, instance: str, patience_s: float = _PATIENCE_S) -> None:
        self._prefix = f"{instance}/"
        self._patience_s = patience_s

    def __repr__(self) -> str:
        return f"KeyValues({self._prefix!r})"

    def get(self, key: str) -> bytes | None:
        """The value; None where there is none."""
        value = _ask(lambda gcs: gcs.internal_kv_get(self._key(key), _SPACE, timeout=self._patience_s))
        return None if value is None else bytes(value)

    def put(self, key: str, value: bytes) -> None:
        """Put the value in the place of what is there."""
        _ask(lambda gcs: gcs.internal_kv_put(self._key(key), value, True, _SPACE, timeout=self._patience_s))

    def add(self, key: str, value: bytes) -> bytes:
        """Put the value unless there is one; returns the one that is there now."""
        _ask(lambda gcs: gcs.internal_kv_put(self._key(key), value, False, _SPACE, timeout=self._patience_s))
        kept = self.get(key)
        return value if kept is None else kept

    def delete(self, key: str) -> None:
        """Remove the key, if it is there."""
        _ask(lambda gcs: gcs.internal_kv_del(self._key(key), False, _SPACE, timeout=self._patience_s))

    def keys(self, prefix: str) -> list[str]:
        """All keys that begin so."""
        found = _ask(lambda gcs: gcs.internal_kv_keys(self._key(prefix), _SPACE, timeout=self._patience_s))
        return sorted(bytes(key).decode().removeprefix(self._prefix) for key in found)

    def _key(self, key: str) -> bytes:
        return (self._prefix + key).encode()


def _ask(question: Callable[[Any], _T]) -> _T:
    gcs = internal_kv_get_gcs_client()
    if gcs is None:
        raise OSError("this process is not connected to a Ray cluster")
    try:
        return question(gcs)
    except RayError as error:  # RpcError, GetTimeoutError, AuthenticationError
        raise OSError(f"the GCS of the Ray cluster does not answer: {error}") from error
