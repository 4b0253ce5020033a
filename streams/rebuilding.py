"""Writes a store again from the topics, while the workers go on writing to it.

It is the archive's own loop, with a progress that is kept here and begins at the wanted time: what is there is written
over, and the workers' progress left alone. A turn is the same row whoever writes it, so it does not matter in which
order the two come. Of what a conversation was called, the later counts, so the controls are read until nothing is left
of them: whatever a worker has carried out meanwhile is then carried out once more, and stands last here, too.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import structlog

from domain.errors import Retriable
from domain.spans import Span
from streams.archiving import Archiver, Limits, Reader, Sink
from streams.records import Control, Feedback, Turn

log = structlog.get_logger(__name__)

# Told after each batch of records.
OnBatch = Callable[[int], None]


@dataclass
class Rebuilt:
    """What came of it. ``refused``: those of the records that the store will never take."""

    turns: int = 0
    refused: set[tuple[str, int, int]] = field(default_factory=set)


class Again:
    """A sink to the loop, which writes again what another one has, and keeps the progress of that in memory."""

    def __init__(
        self, sink: Sink, starts: Mapping[str, Mapping[int, int]], rebuilt: Rebuilt, on_batch: OnBatch
    ) -> None:
        self._sink = sink
        self._next = {topic: dict(offsets) for topic, offsets in starts.items()}
        self._rebuilt = rebuilt
        self._on_batch = on_batch

    @property
    def name(self) -> str:
        """What the store is called."""
        return self._sink.name

    def reached(self, topic: str) -> Mapping[int, int]:
        """Return how far a topic has been read."""
        return self._next[topic]

    async def prepare(self) -> None:
        """Make what the store lacks."""
        await self._sink.prepare()

    async def progress(self, log: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return the next offset of each partition."""
        return {partition: self._next[_topic(log)][partition] for partition in partitions}

    async def keep(self, span: Span, turns: Mapping[int, Turn], *, again: bool = True) -> None:
        """Write turns over what is there."""
        await self._sink.keep(span, turns, again=True)
        self._rebuilt.turns += len(turns)
        self._moved(span)

    async def obey(self, span: Span, controls: Mapping[int, Control], turns_log: str, *, again: bool = True) -> None:
        """Carry controls out once more."""
        await self._sink.obey(span, controls, turns_log, again=True)
        self._moved(span)

    async def note(self, span: Span, feedback: Mapping[int, Feedback], turns_log: str, *, again: bool = True) -> None:
        """Write what was said of turns over what is there."""
        await self._sink.note(span, feedback, turns_log, again=True)
        self._moved(span)

    async def rewind(self, log: str, offsets: Mapping[int, int]) -> None:
        """Set the progress of partitions."""
        self._next[_topic(log)] |= offsets

    def _moved(self, span: Span) -> None:
        self._next[_topic(span.log)][span.partition] = span.stop
        self._on_batch(span.stop - span.start)


async def rebuild(
    sink: Sink,
    reader: Reader,
    limits: Limits,
    starts: Mapping[str, Mapping[int, int]],
    *,
    turns: str,
    controls: str,
    feedback: str,
    on_batch: OnBatch,
) -> Rebuilt:
    """Write what turns, controls and feedback have from these offsets on, to their end; try as often as the sink takes.

    ``starts``: by topic and partition. Raises `LogUnavailable` where Kafka is away at once.
    """
    rebuilt = Rebuilt()
    again = Again(sink, starts, rebuilt, on_batch)
    partitions = set(starts[turns])

    async def set_aside(*, topic: str, partition: int, offset: int, error: Exception, key: bytes, value: bytes) -> None:
        # The workers put it on the dead letters; from there it is known.
        rebuilt.refused.add((topic, partition, offset))
        log.warning("record refused", topic=topic, partition=partition, offset=offset, reason=str(error))

    archiver = Archiver(
        again, reader, limits, turns=turns, controls=controls, feedback=feedback,
        owned=lambda: partitions, set_aside=set_aside,
    )  # fmt: skip
    wanted = {topic: await reader.ends(topic, partitions) for topic in (turns, feedback)}
    while True:
        await archiver.close_window()
        is_there = all(_at(again.reached(topic), ends) for topic, ends in wanted.items())
        if is_there and await _at_end(reader, controls, again.reached(controls)):
            return rebuilt


async def _at_end(reader: Reader, topic: str, reached: Mapping[int, int]) -> bool:
    try:
        return _at(reached, await reader.ends(topic, reached))
    except Retriable:
        return False


def _at(reached: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    return all(reached[partition] >= end for partition, end in ends.items())


def _topic(log: str) -> str:
    """Return the topic of a log's name, which also has the topic's id."""
    return log.rpartition("@")[0]
