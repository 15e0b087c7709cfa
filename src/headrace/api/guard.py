"""Who may ask at all: Host, Origin and token are looked at before anything else, on every method and every path.

In: the head of a request. Out: nothing, or the error that refuses it. Deploying is running code: neither another user
of the machine (token) nor a web page (Origin, and Host against names that are rebound) may do it.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Sequence

from headrace.api.errors import HeadTooLarge, HostRefused, NotJson, OriginRefused, Unauthorized

Headers = Sequence[tuple[bytes, bytes]]  # names in lower case, as ASGI has them

MAX_HEAD_BYTES = 32 * 1024

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_JSON = re.compile(r'application/json(\s*;\s*charset\s*=\s*"?utf-8"?)?\s*', re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Whether the name or address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses what may not ask. `hosts` are names and addresses that the API may be called by beside loopback ones."""

    def __init__(self, token: str, hosts: Sequence[str] = ()) -> None:
        self._token = token.encode()
        self._hosts = frozenset(host.strip("[]").lower() for host in hosts)

    def __repr__(self) -> str:
        return f"<Guard of loopback{''.join(f', {host}' for host in sorted(self._hosts))}>"

    def check_sender(self, headers: Headers, scheme: str = "http") -> None:
        """Raises HostRefused, OriginRefused."""
        given = _all(headers, b"host")
        if len(given) != 1 or not self._is_ours(given[0]):
            shown = given[0] if len(given) == 1 else f"{len(given)} Host headers"
            raise HostRefused(
                f"the API is not called {shown[:200]!r}: call it by localhost or a loopback address, or have "
                "`headrace api` started with --allow-host NAME"
            )
        for origin in _all(headers, b"origin"):
            if origin.lower() != f"{scheme}://{given[0]}".lower():
                raise OriginRefused(f"a page of {origin[:200]!r} may not call the API: no other origin may")
        for site in _all(headers, b"sec-fetch-site"):
            if site.lower() not in ("same-origin", "none"):
                raise OriginRefused("a page of another origin may not call the API")

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match["name"].strip("[]").lower().rstrip(".")
        return is_loopback(name) or name in self._hosts

    def check_token(self, headers: Headers) -> None:
        """Raises Unauthorized. Takes as long for a token that is nearly right as for any other."""
        given = _all(headers, b"authorization")
        scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode("latin-1"), self._token):
            raise Unauthorized(
                "the API needs its token, as `Authorization: Bearer TOKEN`; `headrace api` says at its start in which "
                "file it is"
            )


def check_head(headers: Headers, target: bytes) -> None:
    """Raises HeadTooLarge."""
    if len(target) + sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        raise HeadTooLarge(f"path, query and headers are larger than {MAX_HEAD_BYTES} bytes")


def check_json(headers: Headers) -> None:
    """Raises NotJson unless the body is said to be plain JSON: a page's form cannot say that."""
    given = _all(headers, b"content-type")
    if len(given) != 1 or not _JSON.fullmatch(given[0]):
        said = f"not {given[0][:100]!r}" if given else "and there is none, which is needed without a body too"
        raise NotJson(f"the body must be JSON, said so by `Content-Type: application/json`, {said}")
    for coding in _all(headers, b"content-encoding"):
        if coding.lower() != "identity":
            raise NotJson(f"the body must be plain JSON, not in Content-Encoding {coding[:100]!r}")


def _all(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key == name]
