"""Conversations: begun and changed by controls in Kafka, read from the table of the worker that owns them."""

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web
from yarl import URL

from config import metrics
from domain.errors import NotOwner, Retriable
from streams.records import Control, Question
from web.ask import new_conversation_id
from web.auth import who
from web.belonging import ARRIVAL_SECONDS, POLL_SECONDS, arrived, is_erased, own_row
from web.bodies import checked_metadata, give, raw, take
from web.controls import control, publish
from web.errors import ApiError, bad_input, not_found
from web.keys import Identity
from web.owner import at_owner, call, is_forwarded, patiently, told_by_owner
from web.progress import progress_of
from web.replays import HEADER, Replay, replay_of
from web.shapes import (
    ChangedConversation,
    ConversationList,
    ConversationView,
    NewConversation,
    TurnInConversation,
    WholeConversation,
    rfc3339,
)
from web.site import SITE, Site
from web.views import of_finished, of_log

if TYPE_CHECKING:
    from tables.conversations import Conversation, Listed

LIMIT: Final = 20
MAX_LIMIT: Final = 100


# -- begin, change, erase


async def create(request: web.Request) -> web.StreamResponse:
    """Begin a conversation; under one Idempotency-Key only once."""
    site, identity = request.app[SITE], who(request)
    new = await take(request, NewConversation)
    title, metadata = new.title or "", checked_metadata(new.metadata)
    replay = replay_of(identity, request, await raw(request))
    conversation_id = replay.conversation_id if replay.key else new_conversation_id(site)
    order = control(site, identity, "create", conversation_id, title=title, metadata=metadata)
    if not replay.key:
        await publish(site, order)
        at = rfc3339(order.at)
        begun = ConversationView(
            id=conversation_id, title=title, created_at=at, updated_at=at, metadata=order.metadata or {}
        )
    else:
        order = msgspec.structs.replace(order, fingerprint=replay.fingerprint)

        async def begin_here() -> web.StreamResponse:
            return give(view(await site.attempts.once(replay, lambda _: _begun(site, order, replay))), status=201)

        begun = told_by_owner(await at_owner(request, conversation_id, begin_here), ConversationView)
    site.owners.put(begun.id, (identity.tenant, identity.user))
    site.created.put(begun.id, ((identity.tenant, identity.user), begun))
    return give(begun, status=201, headers={"Location": f"/v1/conversations/{begun.id}"})


async def _begun(site: Site, order: Control, replay: Replay) -> "Conversation":
    """Return the conversation that this key has begun, or begins now. At the owner only."""
    conversation_id = order.conversation_id
    if is_erased(site, conversation_id):
        message = "The conversation that was begun with this Idempotency-Key was erased. Use a new key for a new one."
        raise ApiError(409, "idempotency_key_reused", message, param=HEADER)
    row = site.conversations.read(conversation_id)
    if row is None:
        await publish(site, order)
        row = await arrived(site, conversation_id, site.now_ms() + int(ARRIVAL_SECONDS * 1000))
    else:
        metrics.replays_served.inc()
    if row is None:
        raise Retriable("the conversation is not in its owner's table yet", retry_after=1)
    replay.check(row.fingerprint)
    return row


async def change(request: web.Request) -> web.StreamResponse:
    """Change a conversation's title or metadata."""
    site, identity, conversation_id = request.app[SITE], who(request), request.match_info["conversation_id"]
    new = await take(request, ChangedConversation)
    metadata = None if new.metadata is None else checked_metadata(new.metadata)

    async def change_here() -> web.StreamResponse:
        row = await own_row(site, identity, conversation_id)
        if row is None:
            raise not_found("conversation", conversation_id)
        order = control(site, identity, "rename", conversation_id, title=new.title, metadata=metadata)
        await publish(site, order)
        await _shown(site, conversation_id, order.at)
        site.created.drop(conversation_id)
        changed = msgspec.structs.replace(
            view(row),
            title=row.title if new.title is None else new.title,
            metadata=row.metadata if metadata is None else metadata,
            updated_at=rfc3339(order.at),
        )
        return give(changed)

    return await at_owner(request, conversation_id, change_here)


async def erase(request: web.Request) -> web.StreamResponse:
    """Erase a conversation and what was said in it."""
    site, identity, conversation_id = request.app[SITE], who(request), request.match_info["conversation_id"]

    async def erase_here() -> web.StreamResponse:
        if await own_row(site, identity, conversation_id) is None:
            raise not_found("conversation", conversation_id)
        order = control(site, identity, "erase", conversation_id)
        await publish(site, order)
        site.erased.put(conversation_id, True)
        return web.Response(status=204)

    answer = await at_owner(request, conversation_id, erase_here)
    site.owners.drop(conversation_id)
    site.created.drop(conversation_id)
    return answer


async def _shown(site: Site, conversation_id: str, at: int) -> None:
    """Wait a little until the table shows what a control did, so that the client reads what it wrote."""
    deadline = site.now_ms() + ARRIVAL_SECONDS * 1000
    while site.now_ms() < deadline:
        try:
            row = site.conversations.read(conversation_id)
        except NotOwner:
            return
        if row is None or row.updated_at >= at:
            return
        await asyncio.sleep(POLL_SECONDS)


# -- read one


async def read(request: web.Request) -> web.StreamResponse:
    """Return a conversation with its turns, including those in work."""
    site, identity, conversation_id = request.app[SITE], who(request), request.match_info["conversation_id"]

    async def read_here() -> web.StreamResponse:
        row = await own_row(site, identity, conversation_id)
        if row is None:
            raise not_found("conversation", conversation_id)
        if request.query.get("turns") == "false":
            return give(view(row))
        # Taken together, so that a turn that leaves the one for the other is neither missed nor shown twice.
        asked = site.chat.runner.in_work(conversation_id)
        row = site.conversations.read(conversation_id) or row
        turns = [of_finished(TurnInConversation, turn, parent=turn.parent or None) for turn in row.turns]
        known = {turn.turn_id for turn in turns}
        working = [question for question in asked if question.turn_id not in known]
        progress = await asyncio.gather(*(progress_of(site, question) for question in working))
        for question, its_progress in zip(working, progress, strict=True):
            parent = _parent(question, turns)
            turns.append(of_log(TurnInConversation, question, its_progress, parent=parent))
        return give(whole(row, turns))

    answer = await at_owner(request, conversation_id, read_here)
    if answer.status == 200:
        site.owners.put(conversation_id, (identity.tenant, identity.user))
    return answer


def view(row: "Conversation | Listed") -> ConversationView:
    """Return a conversation as clients see it, without turns."""
    return ConversationView(
        id=row.conversation_id,
        title=row.title,
        created_at=rfc3339(row.created_at),
        updated_at=rfc3339(row.updated_at),
        metadata=row.metadata,
    )


def whole(row: "Conversation", turns: list[TurnInConversation]) -> WholeConversation:
    """Return a conversation as clients see it, with turns."""
    return WholeConversation(
        id=row.conversation_id,
        title=row.title,
        created_at=rfc3339(row.created_at),
        updated_at=rfc3339(row.updated_at),
        metadata=row.metadata,
        turns=turns,
    )


def _parent(question: Question, before: list[TurnInConversation]) -> str | None:
    """Return the turn that one in work follows: the one before it, or what the turn beside it follows."""
    latest = before[-1].turn_id if before else None
    return next((other.parent for other in before if other.turn_id == question.beside), latest)


# -- list


async def list_all(request: web.Request) -> web.StreamResponse:
    """List one's conversations, the latest active first."""
    if is_forwarded(request):
        return give(ConversationList(data=_in_table(request.app[SITE], who(request))))
    limit, after = _limit(request), request.query.get("after", "")

    async def listed() -> web.StreamResponse:
        return give(page(await _everyones(request), limit, after))

    return await patiently(listed)


def page(found: list[ConversationView], limit: int, after: str) -> ConversationList:
    """Return the conversations that follow ``after``, as many as asked for."""
    found = sorted(found, key=lambda one: (one.updated_at, one.id), reverse=True)
    if after:
        place = next((number for number, one in enumerate(found, 1) if one.id == after), None)
        if place is None:
            raise bad_input("after", "after must be the id of one of your conversations.")
        found = found[place:]
    return ConversationList(data=found[:limit], has_more=len(found) > limit)


def _in_table(site: Site, identity: Identity) -> list[ConversationView]:
    rows = site.conversations.of_user(identity.tenant, identity.user)
    return [view(row) for row in rows if not site.erased.get(row.conversation_id)]


def _just_begun(site: Site, identity: Identity) -> list[ConversationView]:
    """Return what was begun here and may not be in its owner's table yet."""
    return [begun for owner, begun in site.created.values() if owner == (identity.tenant, identity.user)]


async def _everyones(request: web.Request) -> list[ConversationView]:
    """Return what all workers know. One that does not answer makes it an error: a part would look like a loss."""
    site, identity = request.app[SITE], who(request)
    site.chat.owner_url(0)  # raises NotOwner while partitions move
    theirs = await asyncio.gather(*(_asked(request, worker) for worker in site.chat.workers()))
    # What a table has counts more than what was begun: it may have a title by now.
    known = [_just_begun(site, identity), _in_table(site, identity), *theirs]
    return list({one.id: one for part in known for one in part}.values())


async def _asked(request: web.Request, worker: URL) -> list[ConversationView]:
    status, _, body = await call(request, worker, "GET", request.path)
    if status != 200:
        raise Retriable(f"the worker at {worker} answered {status}")
    return msgspec.json.decode(body, type=ConversationList).data


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(LIMIT))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_LIMIT:
        raise bad_input("limit", f"limit must be a number from 1 to {MAX_LIMIT}.")
    return int(text)
