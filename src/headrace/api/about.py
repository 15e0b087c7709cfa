"""Routes about the API itself: a page for people, the OpenAPI document, its health and its version."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from headrace import __version__
from headrace.api.bodies import Health, Version
from headrace.api.openapi import API_VERSION, document
from headrace.api.route import Call, Reply, Route

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733;"
    "background:#fff}table{border-collapse:collapse;width:100%}td{padding:.3rem .6rem;border-top:1px solid #d5dce3;"
    "vertical-align:top}code{font:14px ui-monospace,monospace}pre{background:#f3f5f7;padding:.8rem;overflow-x:auto}"
    "@media(prefers-color-scheme:dark){body{color:#dfe6ec;background:#14191f}td{border-color:#333d47}"
    "pre{background:#1f262e}a{color:#8ab8ff}}"
)
_SAFE = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}


def about_routes(routes: Iterable[Route]) -> tuple[Route, ...]:
    """The routes that tell of these routes, and of themselves."""
    made: dict[str, Any] = {}

    async def get_page(call: Call) -> Reply:
        return Reply(made["page"], headers=_SAFE, media_type="text/html; charset=utf-8")

    async def get_openapi(call: Call) -> Reply:
        return Reply(made["document"])

    about = (
        Route("GET", "/", get_page, "This list", media_type="text/html", is_open=True),
        Route(
            "GET",
            "/openapi.json",
            get_openapi,
            "The API, described as OpenAPI 3.1",
            answer=dict[str, Any],
            is_open=True,
        ),
        Route("GET", "/healthz", get_health, "Whether the API answers", answer=Health, is_open=True),
        Route("GET", "/api/version", get_version, "Versions of the API and the program", answer=Version),
    )
    every = (*about, *routes)
    made["page"] = page(every)
    made["document"] = document(every)
    return about


async def get_health(call: Call) -> Reply:
    return Reply(Health())


async def get_version(call: Call) -> Reply:
    name = call.desk.controller.directory.name
    return Reply(Version(version=API_VERSION, headrace_version=__version__, instance=name))


def page(routes: Iterable[Route]) -> bytes:
    """The routes as a page, which needs nothing else to be shown."""
    rows = "".join(
        f"<tr><td><code>{route.method}</code></td><td><code>{html.escape(route.path)}</code></td>"
        f"<td>{html.escape(route.summary)}{'' if not route.is_open else ' (no token needed)'}</td></tr>"
        for route in routes
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Headrace control API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        "<h1>Headrace control API</h1><p>Deploys, rollouts and traffic of one instance. Described for programs in "
        '<a href="/openapi.json">openapi.json</a>. Requests carry the token, which <code>headrace api</code> says '
        'the file of at its start:</p><pre>curl -H "Authorization: Bearer $(cat TOKEN-FILE)" '
        f"http://localhost:8265/api/serve/status</pre><table>{rows}</table></body></html>"
    ).encode()
