"""Controls: what is to be done at once with a conversation or a turn, published for its owner."""

from typing import Any, Literal

from streams.records import Control
from web.keys import Identity
from web.site import Site

Action = Literal["create", "rename", "erase", "stop"]


def control(
    site: Site,
    identity: Identity,
    action: Action,
    conversation_id: str,
    *,
    turn_id: str = "",
    title: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> Control:
    """Return a control of this user, as of now."""
    return Control(
        action=action,
        conversation_id=conversation_id,
        tenant=identity.tenant,
        user=identity.user,
        at=site.now_ms(),
        turn_id=turn_id,
        title=title,
        metadata=metadata,
    )


async def publish(site: Site, order: Control) -> None:
    """Publish a control; return once Kafka has it. Raises `LogUnavailable`."""
    await site.chat.publish(site.chat.topics_of.controls, order.conversation_id, order, at_ms=order.at)
