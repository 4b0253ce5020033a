"""What the assistant remembers of who asks: theirs to read, to change and to erase, on any worker.

Everything is asked of the mirror in Elasticsearch by the identity of the request alone, so an id of somebody else's is
one that does not exist. A change goes to Kafka, and is answered when the mirror shows it: who reads next, reads it.
"""

import asyncio
from typing import Any, Final, Literal
from uuid import uuid4

from aiohttp import web

from domain.errors import SinkUnavailable
from domain.memory import Fact, Memories
from domain.secret import is_secret
from domain.told import as_told, one_line
from streams.records import MemoryChange, memories_key
from web.auth import who
from web.bodies import give, take
from web.errors import ApiError, bad_input, not_found
from web.keys import Identity
from web.shapes import (
    ChangedMemory,
    MemoryList,
    MemorySource,
    MemorySwitch,
    MemoryView,
    NewMemory,
    rfc3339,
)
from web.site import SITE, Site

SHOWN_SECONDS: Final = 3.0  # a change takes 50 ms, and a second or two while partitions move
POLL_SECONDS: Final = 0.02

Action = Literal["remember", "edit", "forget", "forget_all", "switch"]


async def list_all(request: web.Request) -> web.StreamResponse:
    """List what is remembered of who asks."""
    site, identity = request.app[SITE], who(request)
    return give(listed(site, await _known(site, identity)))


async def add(request: web.Request) -> web.StreamResponse:
    """Remember something that was entered by hand."""
    site, identity = request.app[SITE], who(request)
    told = as_told(_checked((await take(request, NewMemory)).text))
    if not listed(site, await _known(site, identity)).enabled:
        raise ApiError(409, "memory_off", "Memory is switched off. Switch it on to have something remembered.")
    order = _order(site, identity, "remember", text=told.text, slot=told.slot, kind=told.kind)
    known = await _carried_out(site, order)
    facts = known.valid if known else []
    kept = next((fact for fact in facts if (fact.slot, fact.text) == (told.slot, told.text)), None)
    if kept is None:
        kept = Fact(order.change_id, told.text, told.slot, told.kind, order.at, order.at)
    return give(view(kept), status=201 if known else 202)


async def change(request: web.Request) -> web.StreamResponse:
    """Change the text of something that is remembered."""
    site, identity = request.app[SITE], who(request)
    text = _checked((await take(request, ChangedMemory)).text)
    fact = await _own(request)
    order = _order(site, identity, "edit", memory_id=fact.id, text=text)
    known = await _carried_out(site, order)
    if known is None:
        return give(view(fact), status=202)
    changed = known.find(fact.id)
    if changed is None:  # a later one has taken its place meanwhile
        raise not_found("memory", fact.id)
    return give(view(changed))


async def erase(request: web.Request) -> web.StreamResponse:
    """Erase something that is remembered."""
    site, identity = request.app[SITE], who(request)
    fact = await _own(request)
    return _erased(await _carried_out(site, _order(site, identity, "forget", memory_id=fact.id)))


async def erase_all(request: web.Request) -> web.StreamResponse:
    """Erase everything that is remembered of who asks."""
    site, identity = request.app[SITE], who(request)
    await _known(site, identity)  # while it cannot be read, nobody could tell whether it is gone
    return _erased(await _carried_out(site, _order(site, identity, "forget_all")))


async def switch(request: web.Request) -> web.StreamResponse:
    """Switch memory on or off for who asks."""
    site, identity = request.app[SITE], who(request)
    enabled = (await take(request, MemorySwitch)).enabled
    if site.chat.settings.memory == "off":
        raise ApiError(409, "memory_off", "The operator of this server has switched memory off for everyone.")
    before = await _known(site, identity)
    known = await _carried_out(site, _order(site, identity, "switch", enabled=enabled))
    return give(listed(site, known or before), status=200 if known else 202)


def listed(site: Site, known: Memories) -> MemoryList:
    """Return what is known of a user as they see it."""
    is_on = site.chat.settings.memory == "on"
    return MemoryList(data=[view(fact) for fact in known.valid], enabled=is_on and known.enabled, switchable=is_on)


def view(fact: Fact) -> MemoryView:
    """Return a fact as its user sees it."""
    source = MemorySource(conversation_id=fact.conversation_id, turn_id=fact.turn_id) if fact.turn_id else None
    return MemoryView(
        id=fact.id,
        text=fact.text,
        kind=fact.kind,
        created_at=rfc3339(fact.created_at),
        valid_from=rfc3339(fact.valid_from),
        source=source,
    )


def _checked(text: str) -> str:
    text = one_line(text)
    if not text:
        raise bad_input("text", "text must say something.")
    if is_secret(text):
        raise bad_input(
            "text", "text looks like a password, a key or the number of a card. These are not kept.", "secret"
        )
    return text


async def _known(site: Site, identity: Identity) -> Memories:
    return await site.chat.services.memories.of(identity.tenant, identity.user)


async def _own(request: web.Request) -> Fact:
    """Return the fact that a request names, if it is of who asks."""
    memory_id = request.match_info["memory_id"]
    fact = (await _known(request.app[SITE], who(request))).find(memory_id)
    if fact is None:
        raise not_found("memory", memory_id)
    return fact


def _order(site: Site, identity: Identity, action: Action, **what: Any) -> MemoryChange:
    return MemoryChange(
        change_id=uuid4().hex, action=action, tenant=identity.tenant, user=identity.user, at=site.now_ms(), **what
    )


async def _carried_out(site: Site, order: MemoryChange) -> Memories | None:
    """Publish a change; return what is known when it shows, None if that takes long. Raises `LogUnavailable`."""
    key = memories_key(order.tenant, order.user)
    await site.chat.publish(site.chat.topics_of.memory_changes, key, order, at_ms=order.at)
    deadline = site.now_ms() + SHOWN_SECONDS * 1000
    while site.now_ms() < deadline:
        try:
            known = await site.chat.services.memories.of(order.tenant, order.user)
        except SinkUnavailable:
            return None
        if order.change_id in known.handled:
            return known
        await asyncio.sleep(POLL_SECONDS)
    return None


def _erased(known: Memories | None) -> web.Response:
    return web.Response(status=204 if known else 202)
