"""Turns: how far one is, and what can be done with it: stop it, answer again, ask otherwise."""

from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from streams.records import Question, Turn
from web.ask import Asked, accept, accepted, checked_input, given
from web.auth import who
from web.belonging import check_belongs
from web.bodies import checked_metadata, give, take
from web.controls import control, publish
from web.errors import ApiError
from web.feedback import said_of
from web.progress import has_ended, place_of_turn, progress_of
from web.questions import find_turn, question_of
from web.shapes import EditedTurn, Options, RegeneratedTurn, StoppedTurn, TurnView
from web.site import SITE, Site
from web.views import of_finished, of_log


async def read(request: web.Request) -> web.StreamResponse:
    """Return a turn with its answer so far."""
    turn = await _shown(request)
    said = await said_of(request.app[SITE], who(request), [turn.turn_id] if turn.outcome else [])
    return give(msgspec.structs.replace(turn, feedback=said.get(turn.turn_id)))


async def _shown(request: web.Request) -> TurnView:
    site, found = request.app[SITE], await question_of(request)
    if isinstance(found, Turn):
        return _finished(found)
    progress = await progress_of(site, found)
    if progress.gone:
        finished = await find_turn(site, found.turn_id, place_of_turn(found.turn_id))
        if finished is not None:
            return _finished(finished)
    more = {"conversation_id": found.conversation_id, "claims": progress.claims, "metadata": found.metadata}
    return of_log(TurnView, found, progress, **more)


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
    again = await _beside(request.app[SITE], old, old.input)
    return await _ask_beside(request, replace(again, model=new.model or again.model), new.options)


async def edit(request: web.Request) -> web.StreamResponse:
    """Ask otherwise, beside the first question."""
    site, new = request.app[SITE], await take(request, EditedTurn)
    text, metadata = checked_input(site, new.input), checked_metadata(new.metadata)
    old = await question_of(request)
    again = await _beside(site, old, text)
    asked = replace(again, model=new.model or again.model, metadata=metadata or again.metadata)
    return await _ask_beside(request, asked, new.options)


async def _beside(site: Site, old: Question | Turn, text: str) -> Asked:
    """Return what is asked beside an old turn, which follows what that one follows. Raises `ApiError`.

    Only a finished turn says what that is. One that has not ended yet will be in its conversation when this is begun.
    """
    again = asked_again(old, text)
    if isinstance(old, Turn) or again.messages:
        return again
    finished = await find_turn(site, old.turn_id, place_of_turn(old.turn_id))
    return again if finished is None else replace(again, parent=finished.parent)


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
        # Under the server's name of it, the default model would be asked as a bare one: without documents and memory.
        model = old.model if old.bare else ""
        return Asked(
            conversation_id=old.conversation_id,
            input=text,
            model=model,
            metadata=old.metadata,
            beside=old.turn_id,
            parent=old.parent,
        )
    return Asked(
        conversation_id=old.conversation_id,
        input=text,
        model=old.model,
        messages=_with_last_question(old.messages, text),
        options=old.options,
        metadata=old.metadata,
        beside=old.turn_id,
        parent=old.parent,
    )


def _with_last_question(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return a client's own context with another last question."""
    places = [place for place, message in enumerate(messages) if message.get("role") == "user"]
    if not places:
        return messages
    last = places[-1]
    return [*messages[:last], {**messages[last], "content": text}, *messages[last + 1 :]]
