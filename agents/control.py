"""controls -> conversations, running answers: what must never wait behind an answer"""

from typing import Any

from agents.answer import stop_unseen
from config import metrics
from streams.app import app
from streams.handling import handle_each
from streams.records import Control
from tables import conversations


@app.agent(app.raw_topic(app.topics_of.controls))
async def control(stream: Any) -> None:
    """Carry out each control at once."""
    await handle_each(app, stream, Control, carry_out)


async def carry_out(order: Control, partition: int) -> None:
    """Do what one control asks for."""
    metrics.controls.labels(order.action).inc()
    match order.action:
        case "stop":
            await stop(order.turn_id, partition)
        case "create":
            await conversations.create(order)
        case "rename":
            await conversations.rename(order)
        case "erase":
            app.runner.stop_all(order.conversation_id)
            await conversations.erase(order)


async def stop(turn_id: str, partition: int) -> None:
    """Stop a turn; return once the log has its end, and so no next owner has to hear of it."""
    if not await app.runner.stop(turn_id):
        await stop_unseen(turn_id, partition)
        await app.runner.stop(turn_id)  # its question may have come meanwhile
