"""Which application a path belongs to: the longest route prefix that it starts with, whole segments only.

In: snapshots. Out: for a path, the Route at whose door it stands, or None. A table is never changed: a new snapshot
makes a new one, and only when what it says of applications differs.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import msgspec

from headrace.spec.snapshot import ApplicationEntry, Snapshot
from headrace.spec.sticky import Sticky

NOT_READY = "is not ready yet"


class Route(msgspec.Struct, frozen=True, gc=False):
    """One application's door. `root_path` is what its handler's paths start with; `unavailable` why it serves none.

    `timeout_s` is the time that its requests have, None without a limit of its own; `sticky` where their key is, by
    which they keep to a revision.
    """

    app: str
    deployment: str
    prefix: str
    root_path: str
    unavailable: str = ""
    timeout_s: float | None = None
    sticky: Sticky | None = None


class RouteTable:
    """The routes of one snapshot, below the instance's `root_path`. `prefixes`: of what is ready, or never will be."""

    __slots__ = ("_longest", "_routes", "applications", "known", "prefixes", "root_path")

    def __init__(self, snapshot: Snapshot, root_path: str = "") -> None:
        self.applications = snapshot.applications
        self.root_path = root_path.encode()
        self.known = snapshot.version > 0  # somebody has told us what there is
        self._routes: dict[bytes, Route] = {}
        self.prefixes: dict[str, str] = {}
        for entry in snapshot.applications.values():
            if entry.route_prefix is None:
                continue
            prefix = entry.route_prefix.rstrip("/")
            unavailable = _unavailable(entry)
            self._routes[prefix.encode()] = Route(
                entry.name,
                entry.ingress,
                prefix or "/",
                root_path + prefix,
                unavailable,
                entry.request_timeout_s,
                entry.sticky,
            )
            if unavailable != NOT_READY:
                self.prefixes[prefix or "/"] = entry.name
        self._longest = max(map(len, self._routes), default=0)

    def __repr__(self) -> str:
        return f"<RouteTable {self.prefixes}>"

    def find(self, path: bytes) -> Route | None:
        """The route with the longest prefix of `path` (raw, without query). Costs O(segments of the longest prefix)."""
        if b"%" in path:
            path = unquote_to_bytes(path)
        routes = self._routes
        length = self._longest
        # A prefix ends where the path ends or a segment does: look no further than the longest prefix reaches.
        head = path if len(path) <= length else path[: length + 1]
        at = len(head) if len(path) <= length else head.rfind(b"/")
        while at > 0:
            route = routes.get(head[:at])
            if route is not None:
                return route
            at = head.rfind(b"/", 0, at)
        return routes.get(b"")


def _unavailable(entry: ApplicationEntry) -> str:
    if entry.failed:
        return "failed to deploy"
    if not any(revision.weight > 0 for revision in entry.revisions):
        return NOT_READY
    return ""
