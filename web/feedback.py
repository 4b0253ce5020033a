"""What users say of answers: a thumb, a comment, what the answer should have been. In Kafka before anyone is told so.

A record says by what its turn was measured, so that whoever counts it need not look the turn up. Only the turn's own
user can say something, once the turn has ended. It is shown from the archive, which has it a window later.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from domain.errors import Retriable, SinkUnavailable
from domain.history import Owner
from domain.turns import is_refusal
from streams.records import Feedback, Turn
from web.auth import who
from web.belonging import check_belongs
from web.bodies import give, take
from web.errors import ApiError, bad_input
from web.keys import Identity
from web.progress import has_ended, place_of_turn
from web.questions import find_turn, question_of
from web.shapes import FeedbackView, NewFeedback, rfc3339
from web.site import SITE, Site

ARRIVAL_SECONDS: Final = 2.0  # from a turn's end in the tokens to its record in the turns: milliseconds, if all is well
POLL_SECONDS: Final = 0.02
SHOWN_SECONDS: Final = 0.3  # nobody waits longer for an archive that is slow: a conversation can be read without


async def rate(request: web.Request) -> web.StreamResponse:
    """Say what a turn was like."""
    site, identity, new = request.app[SITE], who(request), await take(request, NewFeedback)
    if abs(new.rating) != 1:
        raise bad_input("rating", "rating must be 1 or -1.")
    turn = await _finished(request)
    if not turn.stateless and not is_refusal(turn.error):
        await check_belongs(request, turn.conversation_id)
    feedback = Feedback(
        turn_id=turn.turn_id,
        conversation_id=turn.conversation_id,
        tenant=identity.tenant,
        user=identity.user,
        rating=1 if new.rating > 0 else -1,
        at=site.now_ms(),
        comment=(new.comment or "").strip(),
        correction=(new.correction or "").strip(),
        model=turn.model,
        prompt=turn.prompt,
        outcome=turn.outcome,
        cache=turn.cache,
        experiment=turn.experiment,
    )
    await site.chat.publish(site.chat.topics_of.feedback, feedback.conversation_id, feedback, at_ms=feedback.at)
    shown = FeedbackView(
        turn_id=feedback.turn_id,
        rating=feedback.rating,
        comment=feedback.comment or None,
        correction=feedback.correction or None,
        given_at=rfc3339(feedback.at),
    )
    return give(shown, status=202)


async def said_of(site: Site, identity: Identity, turn_ids: Sequence[str]) -> dict[str, FeedbackView]:
    """Return what a user said of turns, by their ids, as far as the archive has it and can be asked."""
    if not turn_ids:
        return {}
    try:
        async with asyncio.timeout(SHOWN_SECONDS):
            found = await site.chat.services.history.feedback(Owner(identity.tenant, identity.user), turn_ids)
    except (SinkUnavailable, TimeoutError):
        return {}
    return {
        each.turn_id: FeedbackView(
            turn_id=each.turn_id,
            rating=each.rating,
            comment=each.comment or None,
            correction=each.correction or None,
            given_at=rfc3339(each.given_at),
        )
        for each in found
    }


async def _finished(request: web.Request) -> Turn:
    """Return the turn in the route. Raises `ApiError`: 404, and 409 while it has not ended."""
    site, found = request.app[SITE], await question_of(request)
    if isinstance(found, Turn):
        return found
    deadline = site.now_ms() + ARRIVAL_SECONDS * 1000
    while (turn := await find_turn(site, found.turn_id, place_of_turn(found.turn_id))) is None:
        if not await has_ended(site, found):
            raise ApiError(409, "turn_not_finished", "The turn is still being answered. Wait for its end.")
        if site.now_ms() >= deadline:
            raise Retriable("the turn has ended and is not in its topic yet", retry_after=1)
        await asyncio.sleep(POLL_SECONDS)
    return turn
