"""turns -> conversations: a finished turn becomes part of its conversation's context"""

from typing import Any

from streams.app import app
from streams.handling import handle_each
from streams.records import Turn
from tables import conversations


@app.agent(app.raw_topic(app.topics_of.turns))
async def remember(stream: Any) -> None:
    """Close each finished turn in the table, before the next question of its conversation is begun."""
    await handle_each(app, stream, Turn, close)


async def close(turn: Turn, _partition: int) -> None:
    """Keep the turn, unless the client keeps the context itself."""
    if not turn.stateless:
        await conversations.close(turn)
    conversations.closed(turn.turn_id)
