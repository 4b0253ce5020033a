"""turns, feedback -> windows -> parts: what each partition's add up to, in windows of their own time"""

import asyncio
from typing import Any, NamedTuple

from config import metrics
from domain.windows import CaughtUp
from streams.app import app, now_ms
from streams.batches import Batches
from streams.records import Feedback, Turn
from streams.ticks import tick_for_ever
from streams.topics import merged_in
from tables.measures import Part, pieces
from tables.windows import Windows, votes, windows

turns_in_order = Batches(app, app.topics_of.turns.name, Turn, windows.add, is_owner=False)  # agents/close.py is
feedback_in_order = Batches(app, app.topics_of.feedback.name, Feedback, votes.add)


@app.agent(app.raw_topic(app.topics_of.turns))
async def measure(stream: Any) -> None:
    """Add each turn to its windows."""
    await turns_in_order.run(stream)


@app.agent(app.raw_topic(app.topics_of.feedback))
async def count(stream: Any) -> None:
    """Add what is said of turns to the windows in which it is said."""
    await feedback_in_order.run(stream)


@app.task  # type: ignore[untyped-decorator]  # Faust leaves it without types
async def close_windows() -> None:
    """Close windows as time passes, with turns or without."""
    await tick_for_ever("closing windows", Ticks().tick)


class _Log(NamedTuple):
    """A log whose records are added up."""

    topic: str
    in_order: Batches[Turn] | Batches[Feedback]
    windows: Windows


_LOGS = (
    _Log(app.topics_of.turns.name, turns_in_order, windows),
    _Log(app.topics_of.feedback.name, feedback_in_order, votes),
)


class Ticks:
    """Closes the windows of the partitions that this worker owns, as far as the clock and the log allow."""

    def __init__(self) -> None:
        self._caught_up: dict[tuple[str, int], CaughtUp] = {}
        self._generation = -1

    async def tick(self) -> None:
        """Close and purge once. Raises the first failure, after every partition had its turn."""
        if app.ready():
            return
        now = now_ms()
        if self._generation != app.generation:
            self._caught_up, self._generation = {}, app.generation
        owned = sorted(app.owned())
        ends = [await app.services.log_reader.ends(log.topic, owned) for log in _LOGS]
        ticks = [self._tick(log, each, now, end[each]) for log, end in zip(_LOGS, ends, strict=True) for each in owned]
        # An outage of Kafka's takes all of them equally long.
        done = await asyncio.gather(*ticks, return_exceptions=True)
        overdue = [now - end for log in _LOGS for each in owned if (end := log.windows.oldest(each)) is not None]
        metrics.window_overdue.set(max(overdue, default=0) / 1000)
        for failure in done:
            if isinstance(failure, BaseException):
                raise failure

    async def _tick(self, log: _Log, partition: int, now: int, end: int) -> None:
        handled = log.in_order.position(partition)
        caught_up = self._caught_up.setdefault((log.topic, partition), CaughtUp())
        at = None if handled < 0 else caught_up.look(now, end=end, handled=handled)
        if at is None:
            return
        await log.windows.close(partition, at, grace=_ms(app.settings.metrics_grace_seconds), publish=publish)
        await log.windows.purge(partition, now, keep=_ms(app.settings.metrics_correct_seconds))


async def publish(part: Part) -> None:
    """Write a part to the partition that all parts of its size are in; return when Kafka has it."""
    topic = app.topics_of.parts
    for piece in pieces(part):
        await app.publish(topic, str(part.size), piece, partition=merged_in(part.size, topic.partitions))
    metrics.parts_published.labels("none" if not part.rows else "first" if part.revision == 1 else "correction").inc()


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
