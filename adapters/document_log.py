"""Writes documents to their topic from outside of a worker: a few at a time, and done when Kafka has all of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from adapters.librdkafka import Complaints, client_config
from domain.errors import LogUnavailable

ACKNOWLEDGED_SECONDS: Final = 30.0


class Sent(NamedTuple):
    """A record to write. ``at_ms``: its timestamp."""

    partition: int
    key: bytes
    value: bytes
    at_ms: int


class DocumentLog:
    """See the module."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    async def append(self, records: Sequence[Sent]) -> None:
        """Write records; return once Kafka has acknowledged all of them. Raises `LogUnavailable`."""
        await asyncio.to_thread(self._append, records)

    def _append(self, records: Sequence[Sent]) -> None:
        refused: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                refused.append(error)

        try:
            for each in records:
                self._producer.produce(
                    self._topic, each.value, each.key, each.partition, on_delivery, timestamp=each.at_ms
                )
        except (KafkaException, BufferError) as error:
            raise LogUnavailable(f"Kafka did not take a record for {self._topic}: {error}") from error
        if self._producer.flush(ACKNOWLEDGED_SECONDS):
            raise LogUnavailable(f"Kafka did not acknowledge records for {self._topic} in {ACKNOWLEDGED_SECONDS:.0f} s")
        if refused:
            raise LogUnavailable(f"Kafka did not take a record for {self._topic}: {refused[0].str()}")


@asynccontextmanager
async def open_document_log(bootstrap: str, topic: str, record_bytes: int) -> AsyncIterator[DocumentLog]:
    """Yield what writes to a topic whose records may be so large."""
    options = {
        "acks": "all",
        "enable.idempotence": True,
        "message.max.bytes": max(1 << 20, record_bytes),
        "delivery.timeout.ms": int(ACKNOWLEDGED_SECONDS * 1000),
    }
    producer = Producer(client_config(bootstrap, Complaints("documents"), options))
    try:
        yield DocumentLog(producer, topic)
    finally:
        producer.purge()
