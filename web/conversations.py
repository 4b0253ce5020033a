"""Conversations: begun and changed by controls in Kafka, read from their owner's table and the archive."""

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web
from yarl import URL

from config import metrics
from domain.errors import NotOwner, Retriable
from domain.ids import place_of
from streams.records import Control, Question
from web.ask import new_conversation_id
from web.auth import who
from web.belonging import ARRIVAL_SECONDS, POLL_SECONDS, arrived, is_erased, own_conversation
from web.bodies import checked_metadata, give, raw, take
from web.controls import control, publish
from web.errors import ApiError, bad_input, not_found
from web.history import Turns, conversations, turns
from web.keys import Identity
from web.owner import at_owner, call, is_forwarded, patiently, told_by_owner
from web.progress import progress_of
from web.replays import HEADER, Replay, replay_of
from web.shapes import (
    ChangedConversation,
    ConversationView,
    NewConversation,
    TurnInConversation,
    WholeConversation,
    rfc3339,
)
from web.site import SITE, Site
from web.views import of_finished, of_log, view

if TYPE_CHECKING:
    from domain.history import StoredConversation
    from tables.conversations import Conversation

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
        row = await own_conversation(site, identity, conversation_id)
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
        if await own_conversation(site, identity, conversation_id) is None:
            raise not_found("conversation", conversation_id)
        order = control(site, identity, "erase", conversation_id)
        await publish(site, order)
        site.erased.put(conversation_id, ((identity.tenant, identity.user), conversation_id))
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
    limit, before = _limit(request, 0), _before(request)

    async def read_here() -> web.StreamResponse:
        row = await own_conversation(site, identity, conversation_id)
        if row is None:
            raise not_found("conversation", conversation_id)
        if request.query.get("turns") == "false":
            return give(view(row))
        near, left = await _near(site, conversation_id)
        most = limit or (MAX_LIMIT if before else max(MAX_LIMIT, len(near)))
        part = await turns(site, identity, conversation_id, near, left, before=before, limit=most)
        if is_erased(site, conversation_id):  # meanwhile, which the archive cannot know
            raise not_found("conversation", conversation_id)
        return give(whole(site.conversations.read(conversation_id) or row, part))

    answer = await at_owner(request, conversation_id, read_here)
    if answer.status == 200:
        site.owners.put(conversation_id, (identity.tenant, identity.user))
    return answer


async def _near(site: Site, conversation_id: str) -> tuple[list[TurnInConversation], list[str] | None]:
    """Return the turns in the table and in work, and which left the table lately: None if it has no such row."""
    # Taken together, so that a turn that leaves the one for the other is neither missed nor shown twice.
    asked, row = site.chat.runner.in_work(conversation_id), site.conversations.read(conversation_id)
    kept = row.turns if row else []
    found = [of_finished(TurnInConversation, turn, parent=turn.parent or None) for turn in kept]
    known = {turn.turn_id for turn in found}
    working = [question for question in asked if question.turn_id not in known]
    progress = await asyncio.gather(*(progress_of(site, question) for question in working))
    for question, its_progress in zip(working, progress, strict=True):
        found.append(of_log(TurnInConversation, question, its_progress, parent=_parent(question, found)))
    return found, row.left if row else None


def whole(row: "Conversation | StoredConversation", part: Turns) -> WholeConversation:
    """Return a conversation as clients see it, with a part of its turns."""
    return WholeConversation(**msgspec.structs.asdict(view(row)), **part._asdict())


def _parent(question: Question, before: list[TurnInConversation]) -> str | None:
    """Return the turn that one in work follows: the one before it, or what the turn beside it follows."""
    if question.beside:
        known = (other.parent for other in before if other.turn_id == question.beside)
        return next(known, question.parent or None)
    return before[-1].turn_id if before else None


def _before(request: web.Request) -> str | None:
    turn_id = request.query.get("before")
    if turn_id is not None and place_of(turn_id) is None:
        raise bad_input("before", "before must be the id of a turn.")
    return turn_id


# -- list


async def list_all(request: web.Request) -> web.StreamResponse:
    """List one's conversations, the latest active first."""
    site, identity = request.app[SITE], who(request)
    if is_forwarded(request):
        return give(_in_table(site, identity))
    limit, after = _limit(request, LIMIT), request.query.get("after", "")

    async def listed() -> web.StreamResponse:
        near = await _everyones(request)
        return give(await conversations(site, identity, near.data, near.erased, after, limit))

    return await patiently(listed)


class Near(msgspec.Struct, frozen=True, kw_only=True):
    """A user's conversations in the tables of one worker, or of all, and the ids of erased ones."""

    data: list[ConversationView]
    erased: list[str] = []


def _in_table(site: Site, identity: Identity) -> Near:
    rows = site.conversations.of_user(identity.tenant, identity.user)
    just_erased = (one for owner, one in site.erased.values() if owner == (identity.tenant, identity.user))
    erased = {*just_erased, *(row.conversation_id for row in rows if row.erased)}
    return Near(data=[view(row) for row in rows if row.conversation_id not in erased], erased=list(erased))


async def _everyones(request: web.Request) -> Near:
    """Return what all workers know. One that does not answer makes it an error: a part would look like a loss."""
    site, identity = request.app[SITE], who(request)
    site.chat.owner_url(0)  # raises NotOwner while partitions move
    theirs = await asyncio.gather(*(_asked(request, worker) for worker in site.chat.workers()))
    # What was begun here and may not be in its owner's table yet. What a table has counts more: it may have a title.
    begun = [begun for owner, begun in site.created.values() if owner == (identity.tenant, identity.user)]
    tables = [_in_table(site, identity), *theirs]
    erased = {each for table in tables for each in table.erased}
    known = {one.id: one for part in (begun, *(table.data for table in tables)) for one in part if one.id not in erased}
    return Near(data=list(known.values()), erased=list(erased))


async def _asked(request: web.Request, worker: URL) -> Near:
    status, _, body = await call(request, worker, "GET", request.path)
    if status != 200:
        raise Retriable(f"the worker at {worker} answered {status}")
    return msgspec.json.decode(body, type=Near)


def _limit(request: web.Request, usual: int) -> int:
    text = request.query.get("limit")
    if text is None:
        return usual
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_LIMIT:
        raise bad_input("limit", f"limit must be a number from 1 to {MAX_LIMIT}.")
    return int(text)
