"""Whose conversation it is: asked of its owner's table once, and remembered, since it never changes.

What the table does not know may be older than it, and in the archive.

That it was erased, another worker may hear of some minutes late. What it accepts until then, the agent refuses: the
turn ends at once as failed. Questions with a key, and all that the owner decides, are not accepted in the first place.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from domain.errors import NotOwner, Retriable
from domain.history import Owner, StoredConversation
from domain.ids import place_of
from streams.topics import partition_of
from web.auth import who
from web.errors import not_found
from web.keys import Identity
from web.owner import call, is_forwarded, patiently
from web.site import SITE, YOUNG_SECONDS, Site

if TYPE_CHECKING:
    from tables.conversations import Conversation

ARRIVAL_SECONDS: Final = 2.0  # from Kafka's acknowledgement of a control to its row in the table, at the very most
POLL_SECONDS: Final = 0.02


async def check_belongs(request: web.Request, conversation_id: str) -> None:
    """Raise `ApiError` 404 unless the conversation is there, and the user's who asks."""
    site, identity = request.app[SITE], who(request)
    belongs_to = site.owners.get(conversation_id)
    if belongs_to is None and await is_there(request, conversation_id):
        belongs_to = (identity.tenant, identity.user)
        site.owners.put(conversation_id, belongs_to)
    if belongs_to != (identity.tenant, identity.user):
        raise not_found("conversation", conversation_id)


def is_erased(site: Site, conversation_id: str) -> bool:
    """Return whether a conversation was erased, as its owner knows. Raises `NotOwner`."""
    return bool(site.erased.get(conversation_id)) or site.conversations.is_erased(conversation_id)


async def is_there(request: web.Request, conversation_id: str) -> bool:
    """Return whether the user who asks has this conversation, as its owner knows."""
    site, identity = request.app[SITE], who(request)
    if place_of(conversation_id) is None:
        return False
    partition = partition_of(conversation_id, site.chat.settings.partitions)

    async def once() -> bool:
        url = site.chat.owner_url(partition)
        if url is None:
            return await own_conversation(site, identity, conversation_id) is not None
        if is_forwarded(request):
            raise NotOwner("the conversation is with another worker", retry_after=1)
        status, _, _ = await call(request, url, "GET", f"/v1/conversations/{conversation_id}?turns=false")
        if status not in {200, 404}:
            raise Retriable(f"the worker at {url} answered {status}")
        return status == 200

    return await patiently(once)


async def own_conversation(
    site: Site, identity: Identity, conversation_id: str
) -> "Conversation | StoredConversation | None":
    """Return a conversation of this user's from the table of this worker, else from the archive.

    Raises `NotOwner`, and `SinkUnavailable` where only the archive could know it.
    One that was begun just now is waited for: its control may be on the way from Kafka to the table.
    """
    place = place_of(conversation_id)
    if place is None or site.erased.get(conversation_id):
        return None
    deadline = site.now_ms() + ARRIVAL_SECONDS * 1000
    young_until = place.milliseconds + YOUNG_SECONDS * 1000
    row = await arrived(site, conversation_id, min(deadline, young_until))
    if row is not None:
        return row if (row.tenant, row.user) == (identity.tenant, identity.user) else None
    if is_erased(site, conversation_id):
        return None
    return await site.chat.services.history.conversation(Owner(identity.tenant, identity.user), conversation_id)


async def arrived(site: Site, conversation_id: str, until: float) -> "Conversation | None":
    """Return a conversation from this worker's table, waiting until this Unix time in ms for it. Raises `NotOwner`."""
    while (row := site.conversations.read(conversation_id)) is None and site.now_ms() < until:  # noqa: ASYNC110 - the table tells nobody
        await asyncio.sleep(POLL_SECONDS)
    return row
