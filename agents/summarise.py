"""closed turns -> summaries: turns that no prompt has room for live on as a few sentences

It is done after a turn is closed, beside all answers, by the conversation's owner, one at a time. What is lost with a
worker is made again after the next turn: until then a prompt has the summary before it, or none.
"""

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from agents.asking_model import answer_of
from config import metrics
from domain.conversation import CHARACTERS_PER_TOKEN, path_to
from domain.errors import ChatError, NotOwner
from domain.summary import Summary, asking, cleaned, summary_of, to_condense
from streams.app import app
from streams.records import Turn
from tables import conversations
from tables.conversations import KeptTurn

log = structlog.get_logger(__name__)

SECONDS: Final = 60.0

_alone = asyncio.Semaphore(1)  # of a worker: an answer that somebody waits for needs the model more
_in_work: set[str] = set()


def soon(turn: Turn) -> None:
    """Have the conversation of a closed turn summarised, if that is due and not being done already."""
    if not app.settings.summary_tokens or turn.conversation_id in _in_work:
        return
    with suppress(NotOwner):  # then it is the next owner's
        if _due(turn)[1]:
            _in_work.add(turn.conversation_id)
            _ = app.add_future(_summarise(turn))


async def _summarise(turn: Turn) -> None:
    try:
        async with _alone:
            await summarise(turn)
    except ChatError as error:  # the partition has gone, or the model does not answer
        log.warning("conversation not summarised", conversation_id=turn.conversation_id, reason=str(error))
    finally:
        _in_work.discard(turn.conversation_id)


async def summarise(turn: Turn) -> None:
    """Condense what is due on the path to a turn, as it is by now; raises `ChatError`."""
    before, old = _due(turn)
    if not old:
        return
    settings = app.settings
    longest = int(settings.context_tokens / 2 * CHARACTERS_PER_TOKEN) // len(old)
    messages = asking(before, old, characters=longest)
    text = cleaned(await answer_of(turn.model, messages, tokens=settings.summary_tokens, within=SECONDS))
    if text:
        longest = int(settings.summary_tokens * CHARACTERS_PER_TOKEN)
        await conversations.keep_summary(turn.conversation_id, Summary(old[-1].turn_id, text[:longest]))
        metrics.summaries.inc()


def _due(turn: Turn) -> tuple[Summary | None, list[KeptTurn]]:
    """Return the summary on the path to a turn, and the turns that it should take up; raises `NotOwner`."""
    row = conversations.read(turn.conversation_id)
    if row is None:
        return None, []
    path = path_to(row.turns, turn.turn_id)
    before = summary_of(row.summaries, path)
    return before, to_condense(path, before, context=app.settings.context_tokens)
