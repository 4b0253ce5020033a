"""Reads what Kafka kept: a record found by its time, or a range of offsets, without a consumer group.

Opening a consumer costs 200 ms and seeking with a warm one 12-22, so a few stay open, one in each thread of a
pool. The rest is done by these functions of librdkafka, which block and therefore never run on the loop.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from adapters.changelog import topic_ids
from adapters.librdkafka import Complaints, consumer_config, offsets_for_times
from domain.errors import LogUnavailable

T = TypeVar("T")

BATCH: Final = 500
POLL_SECONDS: Final = 0.2
# As times, these ask Kafka for the ends of a partition.
END: Final = -1
BEGINNING: Final = -2
PATIENCE_SECONDS: Final = 10.0
# Kafka's timestamps are those of the writers' clocks, so records may stand a little out of order.
FIND_WITHIN_MS: Final = 60_000


class Record(NamedTuple):
    """A record as it stands in the log. ``at_ms``: its time, in Unix ms. One without a value has an empty one."""

    offset: int
    key: bytes
    value: bytes
    at_ms: int = 0


class LogReader:
    """A pool of warm consumers. Every call raises `LogUnavailable` where Kafka does not answer in time."""

    def __init__(
        self,
        bootstrap: str,
        *,
        threads: int = 2,
        patience: float = PATIENCE_SECONDS,
        kafka: Mapping[str, Any] | None = None,
    ) -> None:
        self._bootstrap = bootstrap
        self._patience = patience
        self._kafka = kafka
        self._complaints = Complaints("log reader")
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="log-reader")
        self._own = threading.local()
        self._consumers: list[Consumer] = []
        self._closing = threading.Event()
        self._topic_id = topic_ids(bootstrap, self._complaints, kafka or {})

    async def find(
        self,
        topic: str,
        partition: int,
        at_ms: int,
        match: Callable[[bytes], T | None],
        *,
        within_ms: int = FIND_WITHIN_MS,
    ) -> T | None:
        """Return what ``match`` makes of the first record that it does not answer with None.

        Looks at the records written from ``at_ms`` on for ``within_ms``, up to the partition's present end.
        ``match`` runs in a thread of the pool.
        """
        found: list[T] = []

        def visit(record: Message) -> bool:
            if record.timestamp()[1] > at_ms + within_ms:
                return True
            value = record.value()
            result = None if value is None else match(value)
            if result is not None:
                found.append(result)
            return result is not None

        def look(consumer: Consumer, cancelled: threading.Event) -> None:
            start = self._offsets(consumer, topic, {partition: at_ms}, cancelled)[partition]
            end = self._offsets(consumer, topic, {partition: END}, cancelled)[partition]
            self._scan(consumer, TopicPartition(topic, partition, start), end, visit, cancelled)

        await self._run(look)
        return found[0] if found else None

    async def read(self, topic: str, partition: int, start: int, stop: int) -> list[tuple[int, bytes]]:
        """Return the records with ``start <= offset < stop`` that the log still has, with their offsets."""
        records: list[tuple[int, bytes]] = []

        def visit(record: Message) -> bool:
            records.append((record.offset() or 0, record.value() or b""))
            return False

        await self.scan(topic, partition, start, stop, visit)
        return records

    async def batch(
        self, topic: str, partition: int, start: int, stop: int, *, most: int, most_bytes: int
    ) -> list[Record]:
        """Return the first records of [start, stop): ``most`` of them, or one more than ``most_bytes`` hold."""
        records: list[Record] = []
        size = 0

        def visit(record: Message) -> bool:
            nonlocal size
            _, at_ms = record.timestamp()
            found = Record(record.offset() or 0, record.key() or b"", record.value() or b"", at_ms)
            records.append(found)
            size += len(found.value)
            return len(records) >= most or size >= most_bytes

        await self.scan(topic, partition, start, stop, visit)
        return records

    async def scan(self, topic: str, partition: int, start: int, stop: int, visit: Callable[[Message], bool]) -> None:
        """Show ``visit`` the records of [start, stop) in order until it says that it has seen enough.

        ``visit`` runs in a thread of the pool. Records that retention has deleted are left out without a word.
        """
        if start < stop:
            await self._run(
                lambda consumer, cancelled: self._scan(
                    consumer, TopicPartition(topic, partition, start), stop, visit, cancelled
                )
            )

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return for each partition the offset that its next record will have."""
        times = dict.fromkeys(partitions, END)
        return await self._offsets_at(topic, times)

    async def ends_told(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return the same, but without the partitions that no broker leads now."""
        times = dict.fromkeys(partitions, END)
        return await self._run(
            lambda consumer, cancelled: self._offsets(consumer, topic, times, cancelled, partial=True)
        )

    async def beginnings(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return for each partition the first offset that the log still has."""
        times = dict.fromkeys(partitions, BEGINNING)
        return await self._offsets_at(topic, times)

    async def since(self, topic: str, partitions: Iterable[int], at_ms: int) -> dict[int, int]:
        """Return for each partition its first record of a time in Unix ms or later; its end where there is none.

        Kafka's timestamps are those of the writers' clocks, so it is the first of a minute earlier.
        """
        times = dict.fromkeys(partitions, max(0, at_ms - FIND_WITHIN_MS))
        found = await self._offsets_at(topic, times)
        ends = await self.ends(topic, times)
        return {partition: offset if offset >= 0 else ends[partition] for partition, offset in found.items()}

    async def topic_id(self, topic: str) -> str:
        """Return Kafka's id of a topic, which another one of the same name would not have."""
        return await self._run(lambda *_: self._topic_id(topic))

    async def warm(self) -> None:
        """Open a consumer and its connection before somebody waits for it."""
        await self._run(lambda consumer, _: consumer.list_topics(timeout=self._patience))

    async def close(self) -> None:
        """End what runs, with `LogUnavailable`, and join the threads."""
        self._closing.set()
        await asyncio.to_thread(self._threads.shutdown)
        for consumer in self._consumers:
            await asyncio.to_thread(consumer.close)

    async def _run(self, work: Callable[[Consumer, threading.Event], T]) -> T:
        cancelled = threading.Event()

        def run() -> T:
            try:
                return work(self._consumer(), cancelled)
            except KafkaException as error:
                raise LogUnavailable(f"Kafka did not return records: {error.args[0]}") from error

        if self._closing.is_set():
            raise LogUnavailable("the log reader is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        finally:
            cancelled.set()

    def _consumer(self) -> Consumer:
        if not hasattr(self._own, "consumer"):
            self._own.consumer = Consumer(
                consumer_config(
                    self._bootstrap,
                    self._complaints,
                    {
                        # Where the log begins after `start`, what is left is wanted.
                        "auto.offset.reset": "earliest",
                        "enable.partition.eof": True,
                        # Only a read beyond the last record waits for this.
                        "fetch.wait.max.ms": 10,
                        **(self._kafka or {}),
                    },
                )
            )
            self._consumers.append(self._own.consumer)
        consumer: Consumer = self._own.consumer
        return consumer

    async def _offsets_at(self, topic: str, times: Mapping[int, int]) -> dict[int, int]:
        return await self._run(lambda consumer, cancelled: self._offsets(consumer, topic, times, cancelled))

    def _offsets(
        self,
        consumer: Consumer,
        topic: str,
        times: Mapping[int, int],
        cancelled: threading.Event,
        *,
        partial: bool = False,
    ) -> dict[int, int]:
        """Return for each partition its first offset at or after a time in ms.

        For the time `END` that is the end of the partition; -1 where no record is that late. ``partial``: leave out
        those that no broker leads.
        """
        asked = [TopicPartition(topic, partition, at) for partition, at in times.items()]
        answers = offsets_for_times(
            consumer,
            asked,
            self._patience,
            lambda pause: cancelled.is_set() or self._closing.wait(pause),
            partial=partial,
        )
        return {answer.partition: answer.offset for answer in answers}

    def _scan(
        self,
        consumer: Consumer,
        start: TopicPartition,
        stop: int,
        visit: Callable[[Message], bool],
        cancelled: threading.Event,
    ) -> None:
        if not 0 <= start.offset < stop:
            return
        consumer.assign([start])
        try:
            for record in self._records(consumer, start, cancelled):
                offset = record.offset() or 0
                # A start beyond the end makes librdkafka begin at the first record; nothing there was asked for.
                if not start.offset <= offset < stop or visit(record) or offset == stop - 1:
                    return
        finally:
            consumer.unassign()

    def _records(self, consumer: Consumer, start: TopicPartition, cancelled: threading.Event) -> Iterator[Message]:
        """Yield the records from ``start`` to the end of the partition, or until nobody wants them any more."""
        heard = time.monotonic()
        while not cancelled.is_set():
            if self._closing.is_set() or time.monotonic() > heard + self._patience:
                raise LogUnavailable(f"Kafka did not return records of {start.topic} in time")
            first = consumer.poll(POLL_SECONDS)
            if first is None:
                continue
            heard = time.monotonic()
            # With a time-out, `consume` would wait all of it for a full batch.
            for record in (first, *consumer.consume(BATCH, 0)):
                error = record.error()
                if error is None:
                    yield record
                elif error.code() == KafkaError._PARTITION_EOF:
                    return
                elif not error.retriable():
                    raise KafkaException(error)


@asynccontextmanager
async def open_log_reader(
    bootstrap: str, *, threads: int = 2, kafka: Mapping[str, Any] | None = None
) -> AsyncIterator[LogReader]:
    """Open a reader with one warm consumer; the others are opened when they are needed.

    ``kafka`` are further options of librdkafka, such as those of TLS.
    """
    reader = LogReader(bootstrap, threads=threads, kafka=kafka)
    try:
        await reader.warm()
        yield reader
    finally:
        await reader.close()
