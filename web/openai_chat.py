"""OpenAI's chat completions, by the path of every turn: put into Kafka, answered by an agent, read from the log."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from domain.errors import Expired, Retriable
from domain.hearing import Enough, Hear, heard
from domain.tokens import Token
from streams.records import Question
from web.ask import Asked, accept, checked_input, give_accepted
from web.auth import who
from web.bodies import checked_metadata, give, take
from web.controls import control, publish
from web.errors import error_object
from web.events import events_expired
from web.openai_chunks import Chunks, interrupted, pieces_of, whole
from web.openai_shapes import ChatCompletionRequest, check_supported, options_of, plain_messages
from web.owner import is_forwarded
from web.progress import place_of_turn
from web.questions import find_question, find_turn
from web.site import SITE, Site

log = structlog.get_logger(__name__)

BEFORE_WORDS: Final = frozenset({"claim", "citations"})


async def complete(request: web.Request) -> web.StreamResponse:
    """Answer a list of messages, in chunks or in one piece."""
    site, wanted = request.app[SITE], await take(request, ChatCompletionRequest)
    check_supported(wanted)
    turn = await accept(request, asked(site, wanted))
    if is_forwarded(request):
        return give_accepted(turn)  # to the worker that has the client, which reads the log by itself
    question = await find_question(site, turn.turn_id, place_of_turn(turn.turn_id))
    if question is None:
        raise events_expired(turn.turn_id)
    # What fails before its first piece is answered with an HTTP status, streaming or not.
    work = _begun(site, question) if wanted.stream else _ended(site, question)
    waited = await site.streams.attend(request, work, kind="completions")
    if waited.result is None:
        await _abandon(request, question)
        raise waited.error if isinstance(waited.error, Exception) else interrupted(waited.ending)
    if not wanted.stream:
        return give(whole(question, waited.result))
    if [piece.kind for piece in waited.result if piece.kind not in BEFORE_WORDS] == ["end"]:
        whole(question, waited.result)  # raises what the turn failed with
    include_usage = wanted.stream_options is not None and wanted.stream_options.include_usage
    return await _stream(request, question, include_usage=include_usage)


def asked(site: Site, wanted: ChatCompletionRequest) -> Asked:
    """Return what is asked, as a turn in a conversation of its own. Raises `ApiError`."""
    messages = plain_messages(wanted.messages)
    questions = [message["content"] for message in messages if message["role"] == "user"]
    return Asked(
        conversation_id="",
        input=checked_input(site, questions[-1], "messages") if questions else "",
        model=wanted.model,
        messages=messages,
        options=options_of(wanted),
        metadata=checked_metadata(wanted.metadata),
    )


async def _ended(site: Site, question: Question) -> list[Token]:
    """Return a turn's pieces when it has ended."""
    pieces: list[Token] = []
    await _follow(site, question, pieces.extend)
    return pieces


async def _begun(site: Site, question: Question) -> list[Token]:
    """Return a turn's pieces as soon as there is one besides its start, or when it is time for a sign of life."""
    pieces: list[Token] = []

    def hear(batch: list[Token]) -> None:
        pieces.extend(batch)
        if any(piece.kind not in BEFORE_WORDS for piece in batch):
            raise Enough

    with suppress(TimeoutError, Enough):
        async with asyncio.timeout(site.chat.settings.ping_seconds):
            await _follow(site, question, hear)
    return pieces


async def _follow(site: Site, question: Question, hear: Hear[Token]) -> None:
    """Have a turn's pieces heard; those of its finished record where Kafka has deleted its tokens."""
    partition = place_of_turn(question.turn_id).partition
    try:
        await site.chat.services.token_log.follow(question.turn_id, partition, question.tokens_from, -1, hear)
    except Expired:
        turn = await find_turn(site, question.turn_id, place_of_turn(question.turn_id))
        if turn is None or turn.finish == "tool_calls":
            raise events_expired(question.turn_id) from None
        await heard(hear, pieces_of(turn, question.model))


async def _stream(request: web.Request, question: Question, *, include_usage: bool) -> web.StreamResponse:
    site = request.app[SITE]
    chunks = Chunks(question, include_usage=include_usage, describe=lambda error: error_object(error, request))
    response, ending = await site.streams.serve(request, partial(_follow, site, question), chunks, kind="completions")
    if ending != "complete":
        await _abandon(request, question)
    return response


async def _abandon(request: web.Request, question: Question) -> None:
    """Stop a turn whose client is gone: OpenAI's clients cannot come back for it, unless they named it by a key."""
    if "Idempotency-Key" in request.headers:
        return
    site = request.app[SITE]
    try:
        await publish(site, control(site, who(request), "stop", question.conversation_id, turn_id=question.turn_id))
    except Retriable as error:
        log.warning("abandoned turn goes on", turn_id=question.turn_id, reason=str(error))
