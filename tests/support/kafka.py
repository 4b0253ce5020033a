"""Writing to a topic, and reading what is in it, past all of our own code."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import msgspec
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from adapters.changelog import CLAIM_KEY


def produce_all(bootstrap: str, topic: str, records: Iterable[tuple[bytes, bytes]]) -> None:
    """Write records of these keys and values."""
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random"})
    for key, value in records:
        producer.produce(topic, value, key)
    assert producer.flush(10) == 0


def produce(bootstrap: str, topic: str, value: bytes, *, key: bytes, epoch: int | None = None) -> None:
    """Write one record, to the partition that Kafka's default partitioner says.

    ``epoch``: what rows of tables carry.
    """
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random"})
    headers: Any = [] if epoch is None else [("epoch", b"%d" % epoch)]
    producer.produce(topic, value, key, headers=headers)
    assert producer.flush(10) == 0


async def epochs(bootstrap: str, topic: str) -> list[int]:
    """Return the epochs under which a changelog's records were written, of all partitions."""
    return await asyncio.to_thread(_epochs, bootstrap, topic)


async def everything(bootstrap: str, topic: str) -> list[bytes]:
    """Return the values of all records that a topic has now, of all partitions."""
    return [message.value() or b"" for message in await asyncio.to_thread(_messages, bootstrap, topic)]


async def claims(bootstrap: str, topic: str) -> Counter[int]:
    """Return how often each partition of a changelog was claimed."""
    messages = await asyncio.to_thread(_messages, bootstrap, topic)
    return Counter(message.partition() or 0 for message in messages if message.key() == CLAIM_KEY)


def _epochs(bootstrap: str, topic: str) -> list[int]:
    found: list[int] = []
    for message in _messages(bootstrap, topic):
        headers: Any = message.headers() or ()
        found.extend(int(value) for name, value in headers if name == "epoch")
    return found


def _messages(bootstrap: str, topic: str) -> list[Message]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": uuid4().hex, "enable.partition.eof": True})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    found: list[Message] = []
    ended: set[int | None] = set()
    try:
        while len(ended) < len(partitions):
            for message in consumer.consume(500, 1):
                if message.error() is None:
                    found.append(message)
                else:
                    ended.add(message.partition())
        return found
    finally:
        consumer.close()


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
