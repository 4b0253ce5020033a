"""The page that people open, and its files. Everything comes from this worker: nothing is fetched from elsewhere."""

import mimetypes
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

# Some systems' tables lack these or have them wrong, and with nosniff a browser refuses a script of another type.
mimetypes.add_type("text/javascript", ".js")
mimetypes.add_type("image/svg+xml", ".svg")
mimetypes.add_type("application/manifest+json", ".webmanifest")


async def index(_: web.Request) -> web.StreamResponse:
    """Return the page."""
    return _file(STATIC / "index.html")


async def static(request: web.Request) -> web.StreamResponse:
    """Return a file of the page."""
    return _file(STATIC / request.match_info["path"])


def _file(path: Path) -> web.StreamResponse:
    path = path.resolve()
    if not path.is_relative_to(STATIC.resolve()) or not path.is_file():
        raise web.HTTPNotFound
    return web.FileResponse(path, headers=HEADERS)
