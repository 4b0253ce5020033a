"""Creates our topics with the right partition count, and refuses ones that exist with another."""

import asyncio
from collections.abc import Iterable
from time import monotonic
from typing import Final, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from domain.errors import LogUnavailable, Rejected

log = structlog.get_logger(__name__)

ASK_SECONDS: Final = 5.0  # a start that waits says so this often
SEGMENT_SECONDS: Final = 7 * 86_400.0  # Kafka's default


class WrongPartitions(Rejected):
    """A topic exists with another partition count than the settings say."""

    code = "wrong_partitions"


class Spec(Protocol):
    """A topic to be created; ``retention`` in seconds, of a ``compacted`` one's deletions unless it ``expires``."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def partitions(self) -> int: ...  # noqa: D102
    @property
    def replication(self) -> int: ...  # noqa: D102
    @property
    def retention(self) -> float: ...  # noqa: D102
    @property
    def compacted(self) -> bool: ...  # noqa: D102
    @property
    def expires(self) -> bool: ...  # noqa: D102
    @property
    def record_bytes(self) -> int: ...  # noqa: D102
    @property
    def compacted_within(self) -> float: ...  # noqa: D102


async def ensure_topics(bootstrap: str, specs: Iterable[Spec], *, patience: float = 30.0) -> None:
    """Create the topics that are missing.

    Raises `LogUnavailable` when no broker answers for ``patience`` seconds, and `WrongPartitions` when a topic
    exists with another partition count: a conversation would then be looked for where its past is not.
    """
    await asyncio.to_thread(_ensure, bootstrap, list(specs), patience)


def _ensure(bootstrap: str, specs: list[Spec], patience: float) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    existing = _partition_counts(admin, bootstrap, patience)
    for spec in specs:
        if existing.get(spec.name, spec.partitions) != spec.partitions:
            raise WrongPartitions(
                f"topic {spec.name} has {existing[spec.name]} partitions and needs {spec.partitions}. Those of"
                " conversations have HEADRACE_PARTITIONS of them: set it to what they have; it cannot be changed later."
            )
    missing = [_new_topic(spec) for spec in specs if spec.name not in existing]
    for name, created in admin.create_topics(missing, operation_timeout=patience).items() if missing else ():
        try:
            created.result(patience)
            log.info("topic created", topic=name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another worker was quicker
                raise LogUnavailable(f"Kafka did not create the topic {name}: {_reason(error)}") from error


def _partition_counts(admin: AdminClient, bootstrap: str, patience: float) -> dict[str, int]:
    """Return the topics that exist with their partition counts, once a broker answers."""
    deadline = monotonic() + patience
    while True:
        try:
            topics = admin.list_topics(timeout=min(patience, ASK_SECONDS)).topics
            return {name: len(topic.partitions) for name, topic in topics.items()}
        except KafkaException as error:
            where = f"Kafka does not answer at {bootstrap} (KAFKA_BOOTSTRAP_SERVERS)"
            if monotonic() >= deadline:
                raise LogUnavailable(f"{where}: {_reason(error)}") from error
            log.warning(
                "waiting for kafka", where=bootstrap, reason=_reason(error), seconds_left=round(deadline - monotonic())
            )


def _new_topic(spec: Spec) -> NewTopic:
    kept = str(int(spec.retention * 1000))
    # Kafka deletes whole segments only, and the one that is written to never: it must not outlast what it holds.
    segment = str(int(min(spec.retention, SEGMENT_SECONDS) * 1000))
    config = {"min.insync.replicas": str(max(1, spec.replication - 1))}
    if spec.compacted:
        config |= {"cleanup.policy": "compact,delete" if spec.expires else "compact", "delete.retention.ms": kept}
    if spec.expires or not spec.compacted:
        config |= {"retention.ms": kept, "segment.ms": segment}
    if spec.compacted_within:
        config["max.compaction.lag.ms"] = str(int(spec.compacted_within * 1000))
    if spec.record_bytes:
        config |= {"max.message.bytes": str(spec.record_bytes)}
    return NewTopic(spec.name, spec.partitions, spec.replication, config=config)


def _reason(error: KafkaException) -> str:
    return str(error.args[0].str()) if error.args and isinstance(error.args[0], KafkaError) else str(error)
