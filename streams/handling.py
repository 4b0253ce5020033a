"""The loop of an agent that handles records: decode, handle, acknowledge, and lose nothing.

Faust acknowledges an event whose handler raised, and so loses it. Here a handler is tried again until it
works, or its record goes to the dead letters; only then is the event acknowledged.

Records of one conversation are handled in order, those of several side by side: a handler waits for Kafka to
acknowledge the rows that it wrote, and one after the other a worker would close ten turns a second.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import structlog

from domain.backoff import pause
from domain.errors import BadRecord, Rejected
from streams.patience import MAX_ATTEMPTS, may_pass
from streams.records import Wire, decode
from streams.turn_runner import Event

log = structlog.get_logger(__name__)

W = TypeVar("W", bound=Wire)

AT_ONCE: Final = 100


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


async def handle_each(
    app: App, stream: Any, kind: type[W], handle: Callable[[W, int], Awaitable[None]], *, is_owner: bool = True
) -> None:
    """Give each record of the stream, and its partition, to ``handle``, in order within a conversation.

    A topic may have several such readers. What cannot be decoded is set aside once: by the one that ``is_owner``.
    """
    stream = stream.noack()
    latest: dict[bytes, asyncio.Task[None]] = {}  # by conversation
    room = asyncio.Semaphore(AT_ONCE)

    async def handle_next(event: Event, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        if await _handled(app, event, kind, handle, is_owner=is_owner):
            await stream.ack(event)

    def leave(key: bytes, task: asyncio.Task[None]) -> None:
        room.release()
        if latest.get(key) is task:
            del latest[key]

    async with asyncio.TaskGroup() as tasks:
        async for event in stream.events():
            await room.acquire()
            task = latest[event.key] = tasks.create_task(handle_next(event, latest.get(event.key)))
            task.add_done_callback(partial(leave, event.key))


async def _handled(
    app: App, event: Event, kind: type[W], handle: Callable[[W, int], Awaitable[None]], *, is_owner: bool
) -> bool:
    """Return False if the event belongs to an older assignment by now, and so is delivered again."""
    message = event.message
    attempt = unforeseen = 0
    while message.generation_id == app.generation:
        attempt += 1
        await app.settled()
        try:
            await handle(decode(event.value, kind), message.partition)
            return True
        except Rejected as error:
            if isinstance(error, BadRecord) and not is_owner:
                return True
            return await set_aside(app, event, error)
        except Exception as error:
            if may_pass(error):
                log.warning(
                    "record will be handled again", topic=message.topic, offset=message.offset, reason=repr(error)
                )
            else:
                unforeseen += 1
                log.exception("record met an unforeseen error", topic=message.topic, offset=message.offset)
            if unforeseen >= MAX_ATTEMPTS:
                return await set_aside(app, event, error)
        await asyncio.sleep(pause(attempt, first=0.1))
    return False


async def set_aside(app: App, event: Event, error: Exception) -> bool:
    """Write an event's dead letter. Return False if it belongs to an older assignment, and so is delivered again."""
    message, attempt = event.message, 0
    while message.generation_id == app.generation:
        attempt += 1
        try:
            await app.dead_letter(
                topic=message.topic,
                partition=message.partition,
                offset=message.offset,
                error=error,
                key=event.key,
                value=event.value,
            )
            return True
        except Exception:
            # Raised from here, it would end the agent, and Faust would acknowledge the record.
            log.exception("dead letter will be written again", topic=message.topic, offset=message.offset)
        await asyncio.sleep(pause(attempt))
    return False
