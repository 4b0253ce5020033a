"""The loop of an agent that takes one record at a time: decode, handle, acknowledge, and lose nothing.

Faust acknowledges an event whose handler raised, and so loses it. Here a handler is tried again until it
works, or its record goes to the dead letters; only then is the event acknowledged.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import structlog

from domain.errors import Rejected, Retriable
from streams.records import Wire, decode
from streams.turn_runner import LONGEST_BACK_OFF, MAX_ATTEMPTS, Event

log = structlog.get_logger(__name__)

W = TypeVar("W", bound=Wire)


class App(Protocol):
    """What the loop needs of the app."""

    @property
    def generation(self) -> int:
        """Return the number of the current assignment."""
        ...

    async def settled(self) -> None:
        """Wait until the tables can be written."""
        ...

    async def dead_letter(
        self, *, topic: str, partition: int, offset: int, error: Exception, key: bytes | None, value: bytes | None
    ) -> None:
        """Set a record aside."""
        ...


async def handle_each(app: App, stream: Any, kind: type[W], handle: Callable[[W, int], Awaitable[None]]) -> None:
    """Give each record of the stream, and its partition, to ``handle``, in order."""
    stream = stream.noack()
    async for event in stream.events():
        if await _handled(app, event, kind, handle):
            await stream.ack(event)


async def _handled(app: App, event: Event, kind: type[W], handle: Callable[[W, int], Awaitable[None]]) -> bool:
    """Return False if the event belongs to an older assignment by now, and so is delivered again."""
    message, attempt = event.message, 0
    while message.generation_id == app.generation:
        attempt += 1
        await app.settled()
        try:
            await handle(decode(event.value, kind), message.partition)
            return True
        except Retriable as error:
            log.warning("record will be handled again", topic=message.topic, offset=message.offset, reason=str(error))
        except Exception as error:
            if isinstance(error, Rejected) or attempt >= MAX_ATTEMPTS:
                return await _set_aside(app, event, error)
            log.exception("record met an unforeseen error", topic=message.topic, offset=message.offset)
        await asyncio.sleep(min(0.05 * 2**attempt, LONGEST_BACK_OFF))
    return False


async def _set_aside(app: App, event: Event, error: Exception) -> bool:
    message = event.message
    while True:
        try:
            await app.dead_letter(
                topic=message.topic,
                partition=message.partition,
                offset=message.offset,
                error=error,
                key=event.key,
                value=event.value,
            )
        except Retriable:
            log.warning("dead letter will be written again", topic=message.topic, offset=message.offset)
            await asyncio.sleep(1)
        else:
            return True
