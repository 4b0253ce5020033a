"""Writing to a topic, and reading what is in it, past all of our own code."""

import asyncio
from typing import Any
from uuid import uuid4

import msgspec
from confluent_kafka import Consumer, Producer


def produce(bootstrap: str, topic: str, value: bytes, *, key: bytes) -> None:
    """Write one record, to the partition that Kafka's default partitioner says."""
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random"})
    producer.produce(topic, value, key)
    assert producer.flush(10) == 0


async def consume(bootstrap: str, topic: str, count: int, within: float = 30) -> list[dict[str, Any]]:
    """Return the first records of a topic, decoded from JSON, once there are so many."""
    return await asyncio.to_thread(_consume, bootstrap, topic, count, within)


def _consume(bootstrap: str, topic: str, count: int, within: float) -> list[dict[str, Any]]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": uuid4().hex, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    try:
        messages = consumer.consume(count, within)
        return [msgspec.json.decode(value) for message in messages if (value := message.value())]
    finally:
        consumer.close()
