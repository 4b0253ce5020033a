"""What every answer carries and counts, whatever its route: the request id, security headers, metrics."""

import re
from collections.abc import Mapping
from time import monotonic
from typing import Final
from uuid import uuid4

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from config import metrics

SANE: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

REQUEST_ID: Final = web.RequestKey("request_id", str)
BEGAN: Final = web.RequestKey("began", float)

# What an answer of JSON or events may do in a browser: nothing. The page sets its own policy.
SECURITY: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def request_id_of(request: web.Request) -> str:
    """Return the id under which a request is known: the client's own if it is sane, else a new one."""
    if REQUEST_ID not in request:
        own = request.headers.get("X-Request-Id", "")
        request[REQUEST_ID] = own if SANE.fullmatch(own) else uuid4().hex
    return request[REQUEST_ID]


@web.middleware
async def trace(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Put the request's id into its logs, and note when it began."""
    request[BEGAN] = monotonic()
    # aiohttp runs each request in a task of its own, so this reaches the logs of this request alone.
    structlog.contextvars.bind_contextvars(request_id=request_id_of(request))
    return await handler(request)


async def on_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Complete the headers of an answer, and count it. aiohttp calls this just before they are sent."""
    for name, value in SECURITY.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Server"] = "headrace"  # aiohttp would name its version, and Python's
    response.headers["X-Request-Id"] = request_id_of(request)
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else metrics.OTHER
    metrics.http_requests.labels(route=route, status=str(response.status)).inc()
    if BEGAN in request:  # it is not where aiohttp itself refused the request
        metrics.http_request_duration.labels(route=route).observe(monotonic() - request[BEGAN])
