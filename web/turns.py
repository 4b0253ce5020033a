"""Turns: how far one is, and what can be done with it: stop it, answer again, ask otherwise."""

from dataclasses import replace
from typing import Any

from aiohttp import web

from streams.records import Question, Turn
from web.ask import Asked, accept, accepted, checked_input, given
from web.auth import who
from web.belonging import check_belongs
from web.bodies import checked_metadata, give, take
from web.controls import control, publish
from web.errors import ApiError
from web.progress import has_ended, place_of_turn, progress_of
from web.questions import find_turn, question_of
from web.shapes import EditedTurn, Options, RegeneratedTurn, StoppedTurn, TurnView
from web.site import SITE
from web.views import of_finished, of_log


async def read(request: web.Request) -> web.StreamResponse:
    """Return a turn with its answer so far."""
    site, found = request.app[SITE], await question_of(request)
    if isinstance(found, Turn):
        return give(_finished(found))
    progress = await progress_of(site, found)
    if progress.gone:
        finished = await find_turn(site, found.turn_id, place_of_turn(found.turn_id))
        if finished is not None:
            return give(_finished(finished))
    more = {"conversation_id": found.conversation_id, "claims": progress.claims, "metadata": found.metadata}
    return give(of_log(TurnView, found, progress, **more))


def _finished(turn: Turn) -> TurnView:
    return of_finished(TurnView, turn, conversation_id=turn.conversation_id, claims=turn.claims, metadata=turn.metadata)


async def stop(request: web.Request) -> web.StreamResponse:
    """Stop a turn; the text so far is kept."""
    site, found = request.app[SITE], await question_of(request)
    if isinstance(found, Turn):
        return give(StoppedTurn(turn_id=found.turn_id, status=found.outcome), status=202)
    progress = await progress_of(site, found)
    if progress.end is None:
        await publish(site, control(site, who(request), "stop", found.conversation_id, turn_id=found.turn_id))
    return give(StoppedTurn(turn_id=found.turn_id, status=progress.status), status=202)


async def regenerate(request: web.Request) -> web.StreamResponse:
    """Answer the same question again, beside the first answer."""
    new = await take(request, RegeneratedTurn)
    old = await question_of(request)
    if isinstance(old, Question) and not await has_ended(request.app[SITE], old):
        message = "The turn is still being answered. Stop it first, or wait for its end."
        raise ApiError(409, "turn_not_finished", message)
    again = asked_again(old, old.input)
    return await _ask_beside(request, replace(again, model=new.model or again.model), new.options)


async def edit(request: web.Request) -> web.StreamResponse:
    """Ask otherwise, beside the first question."""
    site, new = request.app[SITE], await take(request, EditedTurn)
    text, metadata = checked_input(site, new.input), checked_metadata(new.metadata)
    old = await question_of(request)
    again = asked_again(old, text)
    asked = replace(again, model=new.model or again.model, metadata=metadata or again.metadata)
    return await _ask_beside(request, asked, new.options)


async def _ask_beside(request: web.Request, asked: Asked, options: Options | None) -> web.StreamResponse:
    if not asked.messages:
        await check_belongs(request, asked.conversation_id)
    asked = replace(asked, options=asked.options | given(options))
    return await accepted(request, await accept(request, asked))


def asked_again(old: Question | Turn, text: str) -> Asked:
    """Return the question of an old turn, with this text, as a new one beside it. Raises `ApiError` 409."""
    if isinstance(old, Turn):
        if old.stateless:
            message = "The messages of this turn are not kept any more. Send them anew to /v1/chat/completions."
            raise ApiError(409, "turn_expired", message)
        return Asked(
            conversation_id=old.conversation_id, input=text, model=old.model, metadata=old.metadata, beside=old.turn_id
        )
    return Asked(
        conversation_id=old.conversation_id,
        input=text,
        model=old.model,
        messages=_with_last_question(old.messages, text),
        options=old.options,
        metadata=old.metadata,
        beside=old.turn_id,
    )


def _with_last_question(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return a client's own context with another last question."""
    places = [place for place, message in enumerate(messages) if message.get("role") == "user"]
    if not places:
        return messages
    last = places[-1]
    return [*messages[:last], {**messages[last], "content": text}, *messages[last + 1 :]]
