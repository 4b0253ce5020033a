"""A question is accepted: checked, given its ids, and in Kafka before anyone is told so. It is answered elsewhere."""

import re
import secrets
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import msgspec
from aiohttp import web

from config import metrics
from domain.errors import ChatError
from domain.ids import new_turn_id, uuid7
from streams.records import OnBusy, Question, encode
from streams.topics import partition_of
from web.auth import who
from web.belonging import check_belongs, is_erased
from web.bodies import checked_metadata, give, raw, take
from web.busy import alone
from web.catch_up import not_taken
from web.errors import ApiError, bad_input, not_found
from web.events import events_expired, stream_events, wants_events
from web.owner import at_owner, is_forwarded, told_by_owner
from web.progress import place_of_turn
from web.questions import find_question, remember
from web.replays import Attempt, Replay, replay_of
from web.shapes import AcceptedTurn, NewTurn, Options
from web.site import SITE, Site
from web.tracing import request_id_of

HEADRACE: Final = "headrace"  # the model that answers with all that Headrace knows
DEFAULT_MODELS: Final = frozenset({"", HEADRACE})
# Of each arm there are rows of metrics: it is a name, not a text or an id.
ARM: Final = re.compile(r"[A-Za-z0-9][\w.:/-]{0,39}", re.ASCII)
MAX_RECORD_BYTES: Final = 990_000  # Kafka and its clients refuse records above a million bytes, headers included


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What somebody asks, before it has an id. The fields are those of `streams.records.Question`.

    ``conversation_id``: empty for a conversation of its own.
    """

    conversation_id: str
    input: str
    model: str = ""
    on_busy: OnBusy = "queue"
    messages: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    beside: str = ""
    parent: str = ""


async def ask(request: web.Request) -> web.StreamResponse:
    """Ask a question in a conversation."""
    site, conversation_id = request.app[SITE], request.match_info["conversation_id"]
    new = await take(request, NewTurn)
    asked = Asked(
        conversation_id=conversation_id,
        input=checked_input(site, new.input),
        model=new.model,
        on_busy=new.on_busy,
        options=given(new.options),
        metadata=checked_metadata(new.metadata),
    )
    await check_belongs(request, conversation_id)
    return await accepted(request, await accept(request, asked))


async def accepted(request: web.Request, turn: AcceptedTurn) -> web.StreamResponse:
    """Say that a question is accepted: 202, or its events if the client asked for those."""
    if not wants_events(request) or is_forwarded(request):
        return give_accepted(turn)
    question = await find_question(request.app[SITE], turn.turn_id, place_of_turn(turn.turn_id))
    if question is None:
        raise events_expired(turn.turn_id)
    return await stream_events(request, question)


def give_accepted(turn: AcceptedTurn) -> web.Response:
    """Return a 202 with where to go on."""
    return give(turn, status=202, headers={"Location": f"/v1/turns/{turn.turn_id}"})


def accepted_turn(turn_id: str, conversation_id: str) -> AcceptedTurn:
    """Return what a client is told of its turn: the same however often it asks."""
    return AcceptedTurn(
        turn_id=turn_id,
        conversation_id=conversation_id,
        status="queued",
        events_url=f"/v1/turns/{turn_id}/events",
    )


# -- checking


def checked_input(site: Site, text: str, param: str = "input") -> str:
    """Return a question that has something in it and is not too long; raises `ApiError`."""
    limit = site.chat.settings.max_input_chars
    if not text.strip():
        raise bad_input(param, f"{param} must not be empty.", "input_empty")
    if len(text) > limit:
        message = f"{param} has {len(text)} characters; at most {limit} are allowed. Shorten it."
        raise bad_input(param, message, "input_too_long")
    return text


def arm_in(metadata: Mapping[str, Any]) -> str:
    """Return the arm of an experiment that metadata names; "" where that is nothing short enough to be a name."""
    arm = metadata.get("experiment")
    return arm if isinstance(arm, str) and ARM.fullmatch(arm) else ""


def given(options: Options | None) -> dict[str, Any]:
    """Return the options that were given."""
    found: dict[str, Any] = msgspec.to_builtins(options) if options else {}
    return found


async def check_model(site: Site, model: str) -> None:
    """Raise `ApiError` 404 for a model that the model server does not have, where it says what it has."""
    if model in DEFAULT_MODELS:
        return
    try:
        known = await site.chat.services.model.models()
    except ChatError:
        return  # the question can wait in Kafka until the server is back, or its answer says what is wrong
    if known and model not in known:
        message = f"There is no model {model!r}. GET /v1/models lists them."
        raise ApiError(404, "model_not_found", message, param="model")


# -- accepting


async def accept(request: web.Request, asked: Asked) -> AcceptedTurn:
    """Put a question into Kafka; under one Idempotency-Key only once. Raises `ApiError`, `Retriable`.

    What has no key, and does not have to be alone, any worker puts there at once. The rest is for the owner of the
    conversation, who alone knows what was asked before. A question without a conversation is given one of its own.
    """
    site, identity = request.app[SITE], who(request)
    replay = replay_of(identity, request, await raw(request))
    if not asked.conversation_id:
        new = replay.conversation_id if replay.key else new_conversation_id(site)
        asked = replace(asked, conversation_id=new)
    if not replay.key and asked.on_busy != "reject":
        turn_id = await _publish(site, await _drafted(request, asked, replay))
        return accepted_turn(turn_id, asked.conversation_id)

    async def accept_here() -> web.StreamResponse:
        turn_id = await site.attempts.once(replay, partial(_accept, request, asked, replay))
        return give_accepted(accepted_turn(turn_id, asked.conversation_id))

    return told_by_owner(await at_owner(request, asked.conversation_id, accept_here), AcceptedTurn)


async def _accept(request: web.Request, asked: Asked, replay: Replay, attempt: Attempt) -> str:
    """Publish a question, unless its key has a turn; return the turn's id. At the owner only."""
    site = request.app[SITE]
    if is_erased(site, asked.conversation_id):
        raise not_found("conversation", asked.conversation_id)
    if replay.key and (earlier := await _earlier(site, asked.conversation_id, replay)):
        metrics.replays_served.inc()
        return earlier
    async with alone(site, asked.conversation_id) if asked.on_busy == "reject" else nullcontext():
        attempt.draft = attempt.draft or await _drafted(request, asked, replay)
        return await _publish(site, attempt.draft)


async def _earlier(site: Site, conversation_id: str, replay: Replay) -> str:
    """Return the turn that was asked under this key, "" if there is none. Raises `ApiError` 409 for another body."""
    waiting = await not_taken(site, conversation_id)
    found = (
        site.replays.find(conversation_id, replay.key, site.now_ms())
        or site.chat.runner.by_key(conversation_id, replay.key)
        or next((question for question in waiting if question.replay_key == replay.key), None)
    )
    if found is None:
        return ""
    replay.check(found.fingerprint)
    return found.turn_id


async def _drafted(request: web.Request, asked: Asked, replay: Replay) -> Question:
    site, identity = request.app[SITE], who(request)
    await check_model(site, asked.model)
    partition = partition_of(asked.conversation_id, site.chat.settings.partitions)
    # Before the turn is given its id: whatever its tokens are, they come later.
    tokens_from = await site.chat.services.token_log.end_offset(partition)
    question = Question(
        turn_id=_new_turn_id(site, partition),
        conversation_id=asked.conversation_id,
        tenant=identity.tenant,
        user=identity.user,
        input=asked.input,
        model=asked.model,
        tokens_from=tokens_from,
        messages=asked.messages,
        options=asked.options,
        on_busy=asked.on_busy,
        beside=asked.beside,
        parent=asked.parent,
        metadata=asked.metadata,
        experiment=arm_in(asked.metadata),
        request_id=request_id_of(request),
        replay_key=replay.key,
        fingerprint=replay.fingerprint,
    )
    size = len(encode(question))
    if size > MAX_RECORD_BYTES:
        message = f"The request takes {size} bytes as a Kafka record; at most {MAX_RECORD_BYTES} are possible."
        raise ApiError(413, "body_too_large", message)
    return question


async def _publish(site: Site, question: Question) -> str:
    # The record's time is the turn id's, so that the id leads back to the record.
    at_ms = place_of_turn(question.turn_id).milliseconds
    await site.chat.publish(site.chat.topics_of.questions, question.conversation_id, question, at_ms=at_ms)
    metrics.questions_accepted.inc()
    remember(site, question)
    return question.turn_id


def _new_turn_id(site: Site, partition: int) -> str:
    """Return an id that comes after those of all questions before: two may be asked within a millisecond."""
    milliseconds, nanoseconds = divmod(site.now_ns(), 1_000_000)
    return new_turn_id(milliseconds, partition, nanoseconds << 42 | secrets.randbits(42))


def new_conversation_id(site: Site) -> str:
    """Return an id for a conversation that begins now."""
    return uuid7(site.now_ms(), secrets.randbits(12), secrets.randbits(62))
