"""Every topic, declared once: its name, what it carries, and how long Kafka keeps it.

All topics of a conversation have the same partition count and are keyed by conversation id, so that one
worker owns everything of a conversation (Faust assigns topics of equal partition count together).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiokafka.partitioner import murmur2

from config.settings import Settings
from domain.windows import SIZES_MS

HOUR: Final = 3_600.0
DAY: Final = 24 * HOUR

METRICS: Final = ("turns", "tokens", "quality")
WINDOWS: Final = dict(zip(SIZES_MS, ("10s", "1m", "5m"), strict=True))


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it is created. ``retention`` in seconds; of a compacted topic, that of its deletions.

    ``expires``: a compacted topic that also forgets its latest records after the retention. ``record_bytes``: how
    large a record may be, where that is more than Kafka's usual 1 MB.
    """

    name: str
    partitions: int
    replication: int
    retention: float
    compacted: bool = False
    expires: bool = False
    record_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one installation."""

    questions: TopicSpec
    controls: TopicSpec
    tokens: TopicSpec
    turns: TopicSpec
    parts: TopicSpec
    metrics: Mapping[tuple[str, int], TopicSpec]  # by metric and size of the window
    documents: TopicSpec
    dead_letters: TopicSpec
    workers: TopicSpec

    @classmethod
    def of(cls, settings: Settings) -> "Topics":
        """Return the topics under these settings."""

        def topic(name: str, days: int) -> TopicSpec:
            return TopicSpec(settings.topic_prefix + name, settings.partitions, settings.replication, days * DAY)

        def metric(name: str, size: int) -> TopicSpec:
            # In one partition, so that whoever reads it has the rows in the order in which they came out.
            name = f"{settings.topic_prefix}chat.metrics.{name}.{WINDOWS[size]}.v1"
            return TopicSpec(name, 1, settings.replication, settings.turns_days * DAY, compacted=True, expires=True)

        return cls(
            questions=topic("chat.questions.v1", settings.questions_days),
            # As long as the turns: a store that is rebuilt from these has to hear of every erasure.
            controls=topic("chat.controls.v1", max(settings.questions_days, settings.turns_days)),
            tokens=topic("chat.tokens.v1", settings.tokens_days),
            turns=topic("chat.turns.v1", settings.turns_days),
            parts=topic("chat.metrics.parts.v1", settings.questions_days),
            metrics={(name, size): metric(name, size) for name in METRICS for size in SIZES_MS},
            documents=TopicSpec(
                settings.topic_prefix + "chat.documents.v1",
                settings.partitions,
                settings.replication,
                30 * DAY,
                compacted=True,
                record_bytes=settings.document_bytes * 3 // 2,  # a file in JSON takes 4/3 of its size
            ),
            dead_letters=topic("chat.dead-letters.v1", settings.turns_days),
            # Beats, which everyone writes and reads, so they are in one partition. Nobody reads an old one.
            workers=TopicSpec(settings.topic_prefix + "chat.workers.v1", 1, settings.replication, HOUR),
        )

    def all(self) -> list[TopicSpec]:
        """Return all topics but the changelogs of tables."""
        of_conversations = [self.questions, self.controls, self.tokens, self.turns, self.dead_letters]
        return [*of_conversations, self.documents, self.parts, *self.metrics.values(), self.workers]


def changelog(name: str, settings: Settings) -> TopicSpec:
    """Return the changelog of a table. A worker that was away for less than a month hears of every deleted row."""
    return TopicSpec(name, settings.partitions, settings.replication, 30 * DAY, compacted=True)


def partition_of(conversation_id: str, partitions: int) -> int:
    """Return the partition of a conversation: Kafka's default partitioner, murmur2 of the key."""
    return int(murmur2(conversation_id.encode()) & 0x7FFFFFFF) % partitions


def merged_in(size: int, partitions: int) -> int:
    """Return the partition that the parts of all windows of a size are in, so that one worker merges them."""
    return SIZES_MS.index(size) % partitions
