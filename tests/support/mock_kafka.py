"""librdkafka's mock cluster: a broker in this process that is up in milliseconds and can be taken down."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Producer


class MockKafka:
    """One broker, which creates every topic that it hears of, with four partitions."""

    def __init__(self) -> None:
        self._cluster: Producer | None = Producer(
            {"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0}
        )
        (broker,) = self._cluster.list_topics(timeout=10).brokers.values()
        self.bootstrap = f"{broker.host}:{broker.port}"

    def create(self, topic: str) -> str:
        """Make the cluster hear of a topic; return its name."""
        assert self._cluster is not None
        assert self._cluster.list_topics(topic, timeout=10).topics[topic].partitions
        return topic

    def write(
        self, topic: str, partition: int, value: bytes | None, *, key: bytes | None = None, epoch: int | None = None
    ) -> None:
        """Write something, also what no writer of ours would. ``epoch``: what rows of tables carry."""
        assert self._cluster is not None
        headers: Any = [] if epoch is None else [("epoch", b"%d" % epoch)]
        self._cluster.produce(topic, value, key, partition=partition, headers=headers)
        assert self._cluster.flush(10) == 0

    def die(self) -> None:
        """Take the broker down for good, with all it had."""
        self._cluster = None


@contextmanager
def open_mock_kafka() -> Iterator[MockKafka]:
    """Yield a mock cluster."""
    kafka = MockKafka()
    try:
        yield kafka
    finally:
        kafka.die()
