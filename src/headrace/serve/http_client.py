"""HTTP clients of an instance in this process: httpx, over the Unix socket that its ingress listens on.

In: the socket's path, or what starts the ingress and tells it. Out: `httpx.Client` and `httpx.AsyncClient`. The only
module that loads httpx.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from headrace.spec.errors import ImportPathError

try:
    import httpx
except ModuleNotFoundError as error:
    raise ImportPathError(f"HTTP clients of tests need httpx: pip install 'headrace[testing]' ({error})") from error

BASE_URL = "http://localhost"


def client(path: str, options: Mapping[str, Any]) -> httpx.Client:
    """A client of the ingress at this socket."""
    return httpx.Client(**{"base_url": BASE_URL, **options, "transport": httpx.HTTPTransport(uds=path)})


def async_client(start: Callable[[], Awaitable[str]], options: Mapping[str, Any]) -> httpx.AsyncClient:
    """A client of the ingress whose socket `start()` tells, asked for with the first request."""
    return httpx.AsyncClient(**{"base_url": BASE_URL, **options, "transport": _StartingTransport(start)})


class _StartingTransport(httpx.AsyncBaseTransport):
    """Asks for the socket when there is a request to send, since a constructor cannot wait."""

    def __init__(self, start: Callable[[], Awaitable[str]]) -> None:
        self._start = start
        self._connected: httpx.AsyncHTTPTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._connected is None:
            path = await self._start()
            if self._connected is None:  # a request beside this one may have been faster
                self._connected = httpx.AsyncHTTPTransport(uds=path)
        return await self._connected.handle_async_request(request)

    async def aclose(self) -> None:
        if self._connected is not None:
            await self._connected.aclose()
