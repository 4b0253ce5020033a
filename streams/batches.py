"""The loop of an agent that handles records in batches, each partition's in the order of its log, and loses none.

For agents that keep sums: what several records change in one row is written once, and a row can tell by the offset of
the last record in it which ones it has already. Where the order were not kept, that would drop records, so there is
one batch at a time. As in `streams.handling`, what fails is tried again or set aside, and acknowledged only then.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final, Generic, Protocol, TypeVar

import structlog

from domain.backoff import pause
from domain.errors import BadRecord, Rejected
from streams import handling
from streams.handling import set_aside
from streams.patience import MAX_ATTEMPTS, may_pass
from streams.records import Wire, decode
from streams.turn_runner import UNKNOWN, Event

log = structlog.get_logger(__name__)

W = TypeVar("W", bound=Wire)

AT_ONCE: Final = 200
GATHER_SECONDS: Final = 0.5  # at 300 turns a second on 8 partitions this halves the rows that are written
DECODED_AT_ONCE: Final = 50  # tokens go out in between: decoding a turn of usual length takes 10 us

# Takes a partition and its records by offset, in order. Returns what it refuses, by offset, once all others are safe.
Handle = Callable[[int, Mapping[int, W]], Awaitable[Mapping[int, Rejected]]]


class App(handling.App, Protocol):
    """What the loop needs of the app."""

    def delivers_from(self, partition: int, topic: str = "") -> int:
        """Return the offset where this assignment's delivery of a topic began, -1 while that is not known."""
        ...


class Batches(Generic[W]):
    """See the module. One for each agent and topic; ``is_owner`` as in `streams.handling.handle_each`."""

    def __init__(self, app: App, topic: str, kind: type[W], handle: Handle[W], *, is_owner: bool = True) -> None:
        self._app = app
        self._topic = topic
        self._kind = kind
        self._handle = handle
        self._is_owner = is_owner
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue(AT_ONCE)
        self._next: dict[int, tuple[int, int]] = {}  # by partition: generation, the offset after the last handled

    def position(self, partition: int) -> int:
        """Return the offset below which every record of a partition is handled; -1 if unknown."""
        start = self._app.delivers_from(partition, self._topic)
        generation, handled = self._next.get(partition, (UNKNOWN, UNKNOWN))
        return max(start, handled) if start >= 0 and generation == self._app.generation else start

    async def run(self, stream: Any) -> None:
        """Take events from the stream until it ends."""
        stream = stream.noack()
        self._queue = asyncio.Queue(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._work(stream))
            async for event in stream.events():
                await self._queue.put(event)
            await self._queue.put(None)

    async def _work(self, stream: Any) -> None:
        is_open = True
        while is_open:
            gathered = await self._gather()
            events = [event for event in gathered if event is not None]
            is_open = len(events) == len(gathered)
            async with asyncio.TaskGroup() as tasks:
                for of_partition in _by_partition(events):
                    tasks.create_task(self._finish(stream, of_partition))

    async def _gather(self) -> list[Event | None]:
        """Return what came within a moment, at least one event; None at the end says that the stream has ended."""
        gathered = [await self._queue.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER_SECONDS):
                while len(gathered) < AT_ONCE and gathered[-1] is not None:
                    gathered.append(await self._queue.get())
        return gathered

    async def _finish(self, stream: Any, events: list[Event]) -> None:
        """Handle and acknowledge a partition's events. What belongs to an older assignment is delivered again."""
        for event in await self._handled(events):
            message = event.message
            if message.generation_id == self._app.generation:
                self._next[message.partition] = (message.generation_id, message.offset + 1)
                await stream.ack(event)

    async def _handled(self, events: list[Event]) -> list[Event]:
        """Return the events that are done with: none if they belong to an older assignment by now."""
        events = [event for event in events if self._is_ours(event)]
        records, refused = await self._decoded(events)
        attempt = unforeseen = 0
        while records and self._is_ours(events[0]):
            attempt += 1
            await self._app.settled()
            try:
                refused |= await self._handle(events[0].message.partition, records)
                break
            except Exception as error:
                place = {"topic": self._topic, "partition": events[0].message.partition, "offset": min(records)}
                if may_pass(error):
                    log.warning("batch will be handled again", **place, reason=repr(error))
                else:
                    unforeseen += 1
                    log.exception("batch met an unforeseen error", **place)
                if unforeseen >= MAX_ATTEMPTS and len(events) > 1:
                    return await self._one_by_one(events)
                if unforeseen >= MAX_ATTEMPTS:
                    refused[min(records)] = error
                    break
            await asyncio.sleep(pause(attempt, first=0.1))
        for event in events:
            reason = refused.get(event.message.offset)
            if reason is not None and not await set_aside(self._app, event, reason):
                return []
        return events

    async def _one_by_one(self, events: list[Event]) -> list[Event]:
        """Find out which record of a batch it is that makes it fail."""
        return [done for event in events for done in await self._handled([event])]

    async def _decoded(self, events: Iterable[Event]) -> tuple[dict[int, W], dict[int, Exception]]:
        records: dict[int, W] = {}
        bad: dict[int, Exception] = {}
        for number, event in enumerate(events, 1):
            try:
                records[event.message.offset] = decode(event.value, self._kind)
            except BadRecord as error:
                if self._is_owner:
                    bad[event.message.offset] = error
            if number % DECODED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return records, bad

    def _is_ours(self, event: Event) -> bool:
        return event.message.generation_id == self._app.generation


def _by_partition(events: Iterable[Event]) -> list[list[Event]]:
    found: dict[int, list[Event]] = {}
    for event in events:
        found.setdefault(event.message.partition, []).append(event)
    return list(found.values())
