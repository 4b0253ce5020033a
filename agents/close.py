"""turns -> conversations, replays, summaries: a finished turn becomes part of its conversation's context"""

from typing import Any

from agents import summarise
from domain.turns import is_refusal
from streams.app import app
from streams.handling import handle_each
from streams.records import Turn
from tables import conversations, replays


@app.agent(app.raw_topic(app.topics_of.turns))
async def close(stream: Any) -> None:
    """Close each finished turn in the tables, before the next question of its conversation is begun."""
    await handle_each(app, stream, Turn, close_one)


async def close_one(turn: Turn, _partition: int) -> None:
    """Keep the turn, unless it was refused or the client keeps the context itself; and its key in any case."""
    await replays.keep(turn)
    if not turn.stateless and not is_refusal(turn.error):
        await conversations.close(turn, await app.services.model.counts.of(turn.model, f"{turn.input}\n{turn.answer}"))
    conversations.closed(turn.turn_id)
    summarise.soon(turn)
