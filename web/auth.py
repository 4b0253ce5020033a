"""Who is asking: an identity for every request, from its key; in dev mode everyone on this machine is ``dev``."""

from functools import wraps
from ipaddress import ip_address
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from yarl import URL

from config.settings import Settings
from web.errors import ApiError
from web.keys import Identity
from web.site import SITE

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


IDENTITY: Final = web.RequestKey("identity", Identity)
DEV: Final = Identity("dev", "dev", ("user", "operator", "admin"))


def identified(handler: Handler) -> Handler:
    """Return a handler that is called only for requests of somebody known, who is then `who` of the request."""

    @wraps(handler)
    async def ask_who(request: web.Request) -> web.StreamResponse:
        request[IDENTITY] = identify(request)
        return await handler(request)

    return ask_who


def who(request: web.Request) -> Identity:
    """Return who is asking."""
    return request[IDENTITY]


def identify(request: web.Request) -> Identity:
    """Return who is asking; raises `ApiError` 401."""
    site = request.app[SITE]
    if site.chat.settings.auth == "dev":
        return DEV
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise _unknown("Send your key as Authorization: Bearer <key>.", "missing_api_key", "")
    found = site.keys.whose(key.strip())
    if found is None:
        raise _unknown("This key is not known here.", "invalid_api_key", ', error="invalid_token"')
    return found


def _unknown(message: str, code: str, why: str) -> ApiError:
    return ApiError(401, code, message, headers={"WWW-Authenticate": f'Bearer realm="headrace"{why}'})


@web.middleware
async def guard_dev(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep other websites out where no key is asked for.

    A page that the developer's browser has open can send requests to 127.0.0.1, and can give its own name that
    address (DNS rebinding). So the name asked for must be this machine's, and what changes something must come
    from a page of this server or from no page.
    """
    settings: Settings = request.app[SITE].chat.settings
    if settings.auth == "dev":
        if not is_loopback(request.host):
            message = (
                f"With HEADRACE_AUTH=dev this server answers to localhost and 127.0.0.1 only, not to"
                f" {request.host[:100]!r}. Use one of these, or HEADRACE_AUTH=required with keys."
            )
            raise ApiError(403, "host_not_allowed", message)
        if request.method not in SAFE and not _same_origin(request):
            message = "With HEADRACE_AUTH=dev, pages of other origins may not change anything here."
            raise ApiError(403, "origin_not_allowed", message)
    return await handler(request)


def is_loopback(host: str) -> bool:
    """Return whether a Host header names this machine by its loopback address."""
    try:
        url = URL(f"http://{host}")
    except ValueError:
        return False
    name = (url.host or "").rstrip(".")
    if url.user is not None or url.path_qs != "/":  # more than a name and a port
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _same_origin(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    return origin is None or origin == f"{request.scheme}://{request.host}"


def check_origin(request: web.Request) -> None:
    """Raise `ApiError` 403 for a page of another website that opens a WebSocket here with its visitor's cookie.

    A browser asks no permission for that (there is no CORS for WebSockets), but it says whose page it is. Only the
    hosts are compared: a proxy that ends TLS changes the scheme.
    """
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2].lower() != request.host.lower():
        raise ApiError(403, "origin_not_allowed", "Pages of other origins may not open a WebSocket here.")
