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
    large a record may be, where that is more than Kafka's usual 1 MB. ``compacted_within``: seconds after which a
    record that has a later one of its key is gone for certain; 0 leaves it to Kafka, which may never get to it.
    """

    name: str
    partitions: int
    replication: int
    retention: float
    compacted: bool = False
    expires: bool = False
    record_bytes: int = 0
    compacted_within: float = 0.0


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one installation."""

    questions: TopicSpec
    controls: TopicSpec
    tokens: TopicSpec
    turns: TopicSpec
    feedback: TopicSpec
    parts: TopicSpec
    metrics: Mapping[tuple[str, int], TopicSpec]  # by metric and size of the window
    documents: TopicSpec
    document_outcomes: TopicSpec
    memory_changes: TopicSpec
    memories: TopicSpec
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
            feedback=topic("chat.feedback.v1", settings.turns_days),
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
            # In one partition, so that whoever reads it has them in the order in which they came about.
            document_outcomes=TopicSpec(
                settings.topic_prefix + "chat.document-outcomes.v1",
                1,
                settings.replication,
                30 * DAY,
                compacted=True,
                compacted_within=settings.questions_days * DAY,
            ),
            memory_changes=topic("chat.memory-changes.v1", settings.questions_days),
            memories=TopicSpec(
                settings.topic_prefix + "chat.memories.v1",
                settings.partitions,
                settings.replication,
                30 * DAY,
                compacted=True,
                compacted_within=settings.questions_days * DAY,  # as long as the changes that erased from it
            ),
            dead_letters=topic("chat.dead-letters.v1", settings.turns_days),
            # Beats, which everyone writes and reads, so they are in one partition. Nobody reads an old one.
            workers=TopicSpec(settings.topic_prefix + "chat.workers.v1", 1, settings.replication, HOUR),
        )

    def all(self) -> list[TopicSpec]:
        """Return all topics but the changelogs of tables."""
        of_conversations = [
            self.questions, self.controls, self.tokens, self.turns, self.feedback, self.dead_letters,
        ]  # fmt: skip
        known = [self.documents, self.document_outcomes, self.memory_changes, self.memories]
        return [*of_conversations, *known, self.parts, *self.metrics.values(), self.workers]


def changelog(name: str, settings: Settings) -> TopicSpec:
    """Return the changelog of a table. A worker that was away for less than a month hears of every deleted row.

    What a row held before somebody erased it is gone a week later, by the setting's default.
    """
    within = settings.questions_days * DAY
    return TopicSpec(name, settings.partitions, settings.replication, 30 * DAY, compacted=True, compacted_within=within)


def partition_of(conversation_id: str, partitions: int) -> int:
    """Return the partition of a conversation: Kafka's default partitioner, murmur2 of the key."""
    return int(murmur2(conversation_id.encode()) & 0x7FFFFFFF) % partitions


def merged_in(size: int, partitions: int) -> int:
    """Return the partition that the parts of all windows of a size are in, so that one worker merges them."""
    return SIZES_MS.index(size) % partitions
