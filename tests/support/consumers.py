"""Faust's consumer and ours, real but for the sockets: what Kafka would do is a few dictionaries here."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

import faust
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from streams.delivery import safe_transport

Whose = Literal["stock", "ours"]
TOPIC = "questions"


class FakeKafka:
    """A topic in a consumer group: committed offsets, where the log begins, and where the client reads."""

    def __init__(self) -> None:
        self.committed: dict[TP, int] = {}
        self.position: dict[TP, int] = {}
        self.begins: dict[TP, int] = {}
        self.assigned: set[TP] = set()
        self.commits: list[dict[TP, int]] = []
        self.refuses_commits = False

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        """Take a commit."""
        if self.refuses_commits:
            return False
        self.commits.append(dict(offsets))
        self.committed.update(offsets)
        return True

    async def seek_to_committed(self) -> Mapping[TP, int | None]:
        """Do as aiokafka does: leave alone what has no committed offset."""
        self.position.update({tp: offset for tp, offset in self.committed.items() if tp in self.assigned})
        return {tp: self.committed.get(tp) for tp in self.assigned}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """Return where the log begins."""
        return {tp: self.begins.get(tp, 0) for tp in partitions}

    async def seek_wait(self, offsets: Mapping[TP, int]) -> None:
        """Set where to read on."""
        self.position.update(offsets)


def consumer_of(whose: Whose, kafka: FakeKafka, *, hand_over: Callable[[], Any] | None = None) -> Any:
    """Return a consumer in its app, with the first generation assigned: stock Faust's, or ours."""

    async def nothing() -> None:
        pass

    app = faust.App("test", broker="kafka://127.0.0.1:1", store="memory://", stream_wait_empty=True)
    if whose == "ours":
        app._new_transport = lambda: safe_transport(app, hand_over or nothing)  # type: ignore[method-assign]
    cast("Any", app.topics)._acking_topics.add(TOPIC)
    consumer: Any = app.consumer
    app.producer.flush = nothing  # type: ignore[method-assign]
    consumer._commit = kafka.commit
    consumer.seek_to_committed = kafka.seek_to_committed
    consumer.earliest_offsets = kafka.earliest_offsets
    consumer.seek_wait = kafka.seek_wait
    consumer.assignment = lambda: kafka.assigned
    consumer.highwater = lambda _: 0
    app.on_rebalance_start = lambda: setattr(app, "rebalancing", True)  # type: ignore[method-assign]
    assert isinstance(consumer, driver.Consumer)
    return consumer


def fetched(consumer: Any, offset: int, partition: int = 0, value: bytes = b"{}") -> ConsumerMessage:
    """Return a message as it comes from Kafka."""
    return ConsumerMessage(
        TOPIC,
        partition,
        offset,
        0.0,
        0,
        [],
        b"c",
        value,
        None,
        tp=TP(TOPIC, partition),
        generation_id=consumer.app.consumer_generation_id,
    )


def deliver(consumer: Any, offset: int, partition: int = 0) -> ConsumerMessage:
    """Return a message that a stream has taken and not finished."""
    message = fetched(consumer, offset, partition)
    message.tracked = True
    consumer.track_message(message)
    return message


async def assign(consumer: Any, kafka: FakeKafka, partitions: Iterable[int]) -> None:
    """Give the consumer these partitions in a new generation, as far as delivery is concerned."""
    kafka.assigned = {TP(TOPIC, partition) for partition in partitions}
    consumer.app.consumer_generation_id += 1
    consumer._set_active_tps(kafka.assigned)
    consumer.app.flow_control.resume()
    await consumer.perform_seek()
    consumer.resume_flow()
    consumer.app.rebalancing = False


async def revoke(consumer: Any, kafka: FakeKafka) -> None:
    """Take all partitions away, as a rebalance does first."""
    consumer.app.on_rebalance_start()
    consumer._on_partitions_revoked = lambda revoked: consumer.wait_empty()
    await consumer.on_partitions_revoked(set(kafka.assigned))


@asynccontextmanager
async def stream_of(consumer: Any, *messages: ConsumerMessage) -> AsyncIterator[Any]:
    """Give a stream of Faust's that these messages come to."""
    topic = consumer.app.topic(TOPIC, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
    stream = topic.stream()
    channel = stream.channel
    for message in messages:
        message.incref()
        channel.queue.put_nowait(await channel.decode(message))
    yield stream
    await stream.stop()


async def turns_of_the_loop(count: int = 20) -> None:
    """Let everything else run for a while."""
    for _ in range(count):
        await asyncio.sleep(0)
