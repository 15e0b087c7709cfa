"""The source pack of a replica's revision: from this node's directory, else from the controller, and then kept there.

In: the pack's name, which is the SHA-256 of its bytes. Out: bytes that have that name. Whoever fetches one keeps it for
the replicas of the node that come later, in the place of the eldest where there are many; several that fetch at once
keep the same.
"""

from __future__ import annotations

import logging
import time

from headrace.engine.directory import InstanceDirectory, make_private, read_node, write_whole
from headrace.spec.errors import InstanceError, RequestTimeoutError, RevisionNotFound
from headrace.wire.client import ControlClient
from headrace.wire.control import GetPack, Pack
from headrace.wire.pack import is_pack_name, name_of

log = logging.getLogger("headrace.replica")

FETCH_S = 20.0  # a controller that is started anew meanwhile is waited for
_RETRY_S = 0.2
MOST_KEPT = 32  # on a node: whoever needs an older one fetches it again


def read_pack(directory: InstanceDirectory, name: str, timeout_s: float = FETCH_S) -> bytes:
    """The source pack of this name. Raises InstanceError when neither this node nor the controller has it."""
    path = directory.pack(name)
    try:
        data = path.read_bytes()
    except OSError as error:
        why = f"cannot be read from {path} ({error.strerror})"
    else:
        if name_of(data) == name:
            return data
        why = f"are broken in {path}"
    data = _fetch(directory, name, timeout_s, why)
    try:
        make_private(directory.packs)
        write_whole(path, data)
        if read_node(directory):  # else it is the controller's own place
            _remove_eldest(directory)
    except (OSError, InstanceError) as error:
        log.warning("the sources of this revision could not be kept for others in %s: %s", path, error)
    return data


def _remove_eldest(directory: InstanceDirectory) -> None:
    kept = [(path.stat().st_mtime, path) for path in directory.packs.iterdir() if is_pack_name(path.name)]
    for _, path in sorted(kept)[:-MOST_KEPT]:
        path.unlink(missing_ok=True)


def _fetch(directory: InstanceDirectory, name: str, timeout_s: float, why: str) -> bytes:
    deadline = time.monotonic() + timeout_s
    client = ControlClient(str(directory.control_socket))
    try:
        while True:
            remaining_s = max(deadline - time.monotonic(), 0.0)
            try:
                answer = client.request(GetPack(name), remaining_s)
                break
            except RevisionNotFound as error:
                raise InstanceError(
                    f"the sources of this revision {why}, and the controller has none ({error}): deploy the "
                    "application again"
                ) from error
            except (InstanceError, RequestTimeoutError) as error:
                if time.monotonic() + _RETRY_S > deadline:
                    raise InstanceError(
                        f"the sources of this revision {why}, nor did the controller send them within {timeout_s:g} s "
                        f"({error})"
                    ) from error
            time.sleep(_RETRY_S)
    finally:
        client.close()
    if not isinstance(answer, Pack) or name_of(answer.data) != name:
        raise InstanceError(f"the sources of this revision {why}, and what the controller sent is not the pack {name}")
    return answer.data
