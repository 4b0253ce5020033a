"""A question is accepted: checked, given its ids, and in Kafka before anyone is told so. It is answered elsewhere."""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from aiohttp import web

from config import metrics
from domain.errors import Retriable
from domain.ids import new_turn_id
from streams.records import OnBusy, Question, encode
from streams.topics import partition_of
from web.auth import who
from web.belonging import check_belongs
from web.bodies import checked_metadata, give, raw, take
from web.errors import ApiError, bad_input
from web.events import stream_events, wants_events
from web.owner import at_owner, is_forwarded
from web.progress import place_of_turn, progress_of
from web.questions import find_question, remember
from web.replays import replay_key
from web.shapes import AcceptedTurn, NewTurn, Options
from web.site import SITE, Site
from web.tracing import request_id_of

HEADRACE: Final = "headrace"  # the model that answers with all that Headrace knows
DEFAULT_MODELS: Final = frozenset({"", HEADRACE})
MAX_RECORD_BYTES: Final = 990_000  # Kafka and its clients refuse records above a million bytes, headers included

Check = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What somebody asks, before it has an id. The fields are those of `streams.records.Question`."""

    conversation_id: str
    input: str
    model: str = ""
    on_busy: OnBusy = "queue"
    messages: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    beside: str = ""


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
    if new.on_busy != "reject":
        return await accepted(request, await accept(request, asked))

    # Only the owner knows what it is answering.
    async def ask_if_free() -> web.StreamResponse:
        return give_accepted(await accept_if_free(request, asked))

    answer = await at_owner(request, conversation_id, ask_if_free)
    return await _streamed_if_wanted(request, answer)


async def accepted(request: web.Request, question: Question) -> web.StreamResponse:
    """Say that a question is accepted: 202, or its events if the client asked for those."""
    if wants_events(request):
        return await stream_events(request, question)
    return give_accepted(question)


def give_accepted(question: Question) -> web.Response:
    """Return a 202 with where to go on."""
    events_url = f"/v1/turns/{question.turn_id}/events"
    answer = AcceptedTurn(
        turn_id=question.turn_id, conversation_id=question.conversation_id, status="queued", events_url=events_url
    )
    return give(answer, status=202, headers={"Location": f"/v1/turns/{question.turn_id}"})


async def _streamed_if_wanted(request: web.Request, answer: web.StreamResponse) -> web.StreamResponse:
    """Return the events of the turn that an answer tells of, if that is what the client wants."""
    if not wants_events(request) or is_forwarded(request) or answer.status != 202:
        return answer
    if not isinstance(answer, web.Response) or not isinstance(answer.body, bytes):
        return answer
    turn = msgspec.json.decode(answer.body, type=AcceptedTurn)
    question = await find_question(request.app[SITE], turn.turn_id, place_of_turn(turn.turn_id))
    return answer if question is None else await stream_events(request, question)


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
    except Retriable:
        return  # the question can wait in Kafka until the server is back
    if known and model not in known:
        message = f"There is no model {model!r}. GET /v1/models lists them."
        raise ApiError(404, "model_not_found", message, param="model")


async def accept_if_free(request: web.Request, asked: Asked) -> Question:
    """Accept a question if its conversation has none in work; raises `ApiError` 409 otherwise. At the owner only."""
    site, conversation_id = request.app[SITE], asked.conversation_id
    holds_it = False

    async def check() -> None:
        nonlocal holds_it
        if conversation_id in site.accepting:
            raise _busy()
        holds_it = True
        site.accepting.add(conversation_id)
        if await _is_busy(site, conversation_id):
            raise _busy()

    try:
        return await accept(request, asked, check)
    finally:
        if holds_it:
            site.accepting.discard(conversation_id)


def _busy() -> ApiError:
    message = "An answer is being written in this conversation. Wait for it, stop it, or ask with on_busy=queue."
    return ApiError(409, "conversation_busy", message, param="on_busy")


async def _is_busy(site: Site, conversation_id: str) -> bool:
    if site.chat.runner.in_work(conversation_id):
        return True
    latest = site.latest.get(conversation_id)
    # Accepted, but perhaps still on its way from Kafka to the runner.
    return latest is not None and (await progress_of(site, latest)).end is None


# -- accepting


async def accept(request: web.Request, asked: Asked, check: Check | None = None) -> Question:
    """Put a question into Kafka and return it; under one Idempotency-Key only once.

    ``check`` may refuse what is new. Raises `ApiError`, `LogUnavailable`.
    """
    site, identity = request.app[SITE], who(request)
    await check_model(site, asked.model)

    async def draft() -> Question:
        if check is not None:
            await check()
        return await _drafted(request, asked)

    key = request.headers.get("Idempotency-Key", "")
    return await site.replays.once(
        replay_key(identity.tenant, identity.user, key, request.path),
        await raw(request),
        draft,
        lambda question: _publish(site, question),
    )


async def _drafted(request: web.Request, asked: Asked) -> Question:
    site, identity = request.app[SITE], who(request)
    partition = partition_of(asked.conversation_id, site.chat.settings.partitions)
    # Before the turn is given its id: whatever its tokens are, they come later.
    tokens_from = await site.chat.services.token_log.end_offset(partition)
    question = Question(
        turn_id=new_turn_id(site.now_ms(), partition, secrets.randbits(62)),
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
        metadata=asked.metadata,
        request_id=request_id_of(request),
    )
    size = len(encode(question))
    if size > MAX_RECORD_BYTES:
        message = f"The request takes {size} bytes as a Kafka record; at most {MAX_RECORD_BYTES} are possible."
        raise ApiError(413, "body_too_large", message)
    return question


async def _publish(site: Site, question: Question) -> None:
    # The record's time is the turn id's, so that the id leads back to the record.
    at_ms = place_of_turn(question.turn_id).milliseconds
    await site.chat.publish(site.chat.topics_of.questions, question.conversation_id, question, at_ms=at_ms)
    metrics.questions_accepted.inc()
    remember(site, question)
    site.latest.put(question.conversation_id, question)
