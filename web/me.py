"""Who is asking, told to whoever asks."""

from aiohttp import web

from web.auth import who
from web.bodies import give
from web.shapes import Me


async def read(request: web.Request) -> web.StreamResponse:
    """Say who is asking."""
    identity = who(request)
    return give(Me(tenant=identity.tenant, user=identity.user, roles=list(identity.roles)))
