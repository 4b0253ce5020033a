"""Creates our topics with the right partition count, and refuses ones that exist with another."""

import asyncio
from collections.abc import Iterable
from typing import Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from domain.errors import LogUnavailable, Rejected

log = structlog.get_logger(__name__)


class WrongPartitions(Rejected):
    """A topic exists with another partition count than the settings say."""

    code = "wrong_partitions"


class Spec(Protocol):
    """A topic to be created; ``retention`` in seconds."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def partitions(self) -> int: ...  # noqa: D102
    @property
    def replication(self) -> int: ...  # noqa: D102
    @property
    def retention(self) -> float: ...  # noqa: D102


async def ensure_topics(bootstrap: str, specs: Iterable[Spec], *, patience: float = 30.0) -> None:
    """Create the topics that are missing.

    Raises `LogUnavailable` when no broker answers for ``patience`` seconds, and `WrongPartitions` when a topic
    exists with another partition count: a conversation would then be looked for where its past is not.
    """
    await asyncio.to_thread(_ensure, bootstrap, list(specs), patience)


def _ensure(bootstrap: str, specs: list[Spec], patience: float) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        existing = admin.list_topics(timeout=patience).topics
    except KafkaException as error:
        raise LogUnavailable(
            f"Kafka does not answer at {bootstrap} (KAFKA_BOOTSTRAP_SERVERS): {_reason(error)}"
        ) from error
    for spec in specs:
        if spec.name in existing and len(existing[spec.name].partitions) != spec.partitions:
            raise WrongPartitions(
                f"topic {spec.name} has {len(existing[spec.name].partitions)} partitions, but HEADRACE_PARTITIONS is"
                f" {spec.partitions}. Set HEADRACE_PARTITIONS to what the topic has; it cannot be changed later."
            )
    missing = [_new_topic(spec) for spec in specs if spec.name not in existing]
    for name, created in admin.create_topics(missing, operation_timeout=patience).items() if missing else ():
        try:
            created.result(patience)
            log.info("topic created", topic=name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another worker was quicker
                raise LogUnavailable(f"Kafka did not create the topic {name}: {_reason(error)}") from error


def _new_topic(spec: Spec) -> NewTopic:
    config = {
        "retention.ms": str(int(spec.retention * 1000)),
        "min.insync.replicas": str(max(1, spec.replication - 1)),
    }
    return NewTopic(spec.name, spec.partitions, spec.replication, config=config)


def _reason(error: KafkaException) -> str:
    return str(error.args[0].str()) if error.args and isinstance(error.args[0], KafkaError) else str(error)
