"""The page that people open, and its files. Everything comes from this worker: nothing is fetched from elsewhere."""

from pathlib import Path
from typing import Final

from aiohttp import web

STATIC: Final = Path(__file__).parent / "static"

# What the page may do: run and show its own files, and talk to its own server.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Files have no version in their names, so a browser asks each time; the answer is a 304 without a body.
HEADERS: Final = {"Cache-Control": "no-cache", "Content-Security-Policy": POLICY}

# Not asked of the system, whose table may lack one: with nosniff, a browser refuses a script of another type.
TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}


async def index(_: web.Request) -> web.StreamResponse:
    """Return the page."""
    return _file(STATIC / "index.html")


async def static(request: web.Request) -> web.StreamResponse:
    """Return a file of the page."""
    return _file(STATIC / request.match_info["path"])


def _file(path: Path) -> web.StreamResponse:
    try:
        path = path.resolve()
        found = path.is_relative_to(STATIC.resolve()) and path.is_file()
    except ValueError:  # a null byte in the name
        found = False
    if not found:
        raise web.HTTPNotFound
    return web.FileResponse(path, headers=HEADERS | {"Content-Type": TYPES.get(path.suffix, "text/plain")})
