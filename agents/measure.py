"""turns -> windows -> parts: what each partition's turns add up to, in windows of their own time"""

import asyncio
from typing import Any

from config import metrics
from domain.windows import CaughtUp
from streams.app import app, now_ms
from streams.batches import Batches
from streams.records import Turn
from streams.ticks import tick_for_ever
from streams.topics import merged_in
from tables.measures import Part, pieces
from tables.windows import windows

turns_in_order = Batches(app, app.topics_of.turns.name, Turn, windows.add)


@app.agent(app.raw_topic(app.topics_of.turns))
async def measure(stream: Any) -> None:
    """Add each turn to its windows."""
    await turns_in_order.run(stream)


@app.task  # type: ignore[untyped-decorator]  # Faust leaves it without types
async def close_windows() -> None:
    """Close windows as time passes, with turns or without."""
    await tick_for_ever("closing windows", Ticks().tick)


class Ticks:
    """Closes the windows of the partitions that this worker owns, as far as the clock and the log allow."""

    def __init__(self) -> None:
        self._caught_up: dict[int, CaughtUp] = {}
        self._generation = -1

    async def tick(self) -> None:
        """Close and purge once. Raises the first failure, after every partition had its turn."""
        if app.ready():
            return
        now = now_ms()
        if self._generation != app.generation:
            self._caught_up, self._generation = {}, app.generation
        owned = sorted(app.owned())
        ends = await app.services.log_reader.ends(app.topics_of.turns.name, owned)
        # An outage of Kafka's takes all of them equally long.
        done = await asyncio.gather(*(self._tick(each, now, ends[each]) for each in owned), return_exceptions=True)
        overdue = [now - end for each in owned if (end := windows.oldest(each)) is not None]
        metrics.window_overdue.set(max(overdue, default=0) / 1000)
        for failure in done:
            if isinstance(failure, BaseException):
                raise failure

    async def _tick(self, partition: int, now: int, end: int) -> None:
        handled = turns_in_order.position(partition)
        caught_up = self._caught_up.setdefault(partition, CaughtUp())
        at = None if handled < 0 else caught_up.look(now, end=end, handled=handled)
        if at is None:
            return
        await windows.close(partition, at, grace=_ms(app.settings.metrics_grace_seconds), publish=publish)
        await windows.purge(partition, now, keep=_ms(app.settings.metrics_correct_seconds))


async def publish(part: Part) -> None:
    """Write a part to the partition that all parts of its size are in; return when Kafka has it."""
    topic = app.topics_of.parts
    for piece in pieces(part):
        await app.publish(topic, str(part.size), piece, partition=merged_in(part.size, topic.partitions))
    metrics.parts_published.labels("none" if not part.rows else "first" if part.revision == 1 else "correction").inc()


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
