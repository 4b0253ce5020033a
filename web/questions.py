"""Finding a turn's question again: its id says where in Kafka it stands, hours later and on any worker.

What Kafka has deleted is in the archive.
"""

import msgspec
from aiohttp import web

from domain.errors import SinkUnavailable
from domain.history import Owner, StoredTurn
from domain.ids import Place, place_of
from domain.turns import is_refusal
from streams import turn_lookup
from streams.records import Question, Turn
from web.auth import who
from web.belonging import is_there
from web.errors import not_found
from web.keys import Identity
from web.site import SITE, Site


async def question_of(request: web.Request) -> Question | Turn:
    """Return the question of the turn in the route, or the finished turn where its question is not kept any more.

    Raises `ApiError` 404 if there is none, or it is another user's.
    """
    return await own_question(request, request.match_info["turn_id"])


async def own_question(request: web.Request, turn_id: str) -> Question | Turn:
    """Return the question of a turn of this user's; see `question_of`."""
    site = request.app[SITE]
    place = _place(site, turn_id)
    found: Question | Turn | None = None
    if place is not None:
        found = await find_question(site, turn_id, place) or await find_turn(site, turn_id, place)
        found = found or await _archived(request, turn_id, place)
    if found is None or not owns(who(request), found):
        raise not_found("turn", turn_id)
    return found


async def _archived(request: web.Request, turn_id: str, place: Place) -> Turn | None:
    """Return a finished turn of this user's from the archive, unless its conversation was erased meanwhile.

    Raises `SinkUnavailable`.
    """
    site, identity = request.app[SITE], who(request)
    try:
        stored = await site.chat.services.history.turn(Owner(identity.tenant, identity.user), turn_id)
    except SinkUnavailable:
        if site.now_ms() - place.milliseconds < site.chat.topics_of.questions.retention * 1000:
            return None  # so young that Kafka would have it
        raise
    if stored is None:
        return None
    turn = _record(stored, identity)
    return turn if turn.stateless or await is_there(request, turn.conversation_id) else None


def _record(turn: StoredTurn, identity: Identity) -> Turn:
    return Turn(
        turn_id=turn.turn_id,
        conversation_id=turn.conversation_id,
        tenant=identity.tenant,
        user=identity.user,
        input=turn.input,
        answer=turn.answer,
        model=turn.model,
        outcome=turn.outcome,
        finish=turn.finish,
        usage=turn.usage,
        timings=turn.timings,
        claims=turn.claims,
        error=turn.error,
        asked_at=turn.asked_at,
        ended_at=turn.ended_at,
        parent=turn.parent,
        prompt=turn.prompt,
        stateless=not turn.in_conversation and not is_refusal(turn.error),
        bare=turn.bare,
        citations=turn.citations,
        retrieval=turn.retrieval,
        cache=turn.cache,
        experiment=turn.experiment,
        metadata=turn.metadata,
    )


def owns(identity: Identity, record: Question | Turn) -> bool:
    """Return whether a record is this user's."""
    return (record.tenant, record.user) == (identity.tenant, identity.user)


def _place(site: Site, turn_id: str) -> Place | None:
    place = place_of(turn_id)
    return place if place is not None and place.partition < site.chat.settings.partitions else None


async def find_question(site: Site, turn_id: str, place: Place) -> Question | None:
    """Return a turn's question, from memory or from Kafka."""
    known = site.questions.get(turn_id)
    if known is not None:
        return known
    found = await turn_lookup.find_question(site.chat.services.log_reader, site.chat.topics_of, turn_id, place)
    if found is not None:
        remember(site, found)
    return found


async def find_turn(site: Site, turn_id: str, place: Place) -> Turn | None:
    """Return a finished turn from Kafka."""
    reader, seconds = site.chat.services.log_reader, site.chat.settings.turn_seconds
    return await turn_lookup.find_turn(reader, site.chat.topics_of, turn_id, place, turn_seconds=seconds)


def remember(site: Site, question: Question) -> None:
    """Keep a question in memory for as long as there is room."""
    site.questions.put(question.turn_id, question, len(msgspec.json.encode(question)))
