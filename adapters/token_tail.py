"""Follows the end of some partitions of the token topic and hands what it decodes to the loop, in batches.

A group-less consumer in a thread of its own. confluent-kafka lets one thread at a time into a consumer, and a
thread that polls again and again keeps all others out, so partitions are added and taken away by that thread,
between two polls. Positions are given as numbers: `OFFSET_END` is resolved lazily, and a claim that was written
before it is resolved would never be seen.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from adapters.frames import decode
from adapters.librdkafka import Complaints, LeaderLook, consumer_config
from domain.errors import BadRecord
from domain.tokens import Token

BATCH: Final = 500
# How long a change of partitions waits when nothing comes in. An empty poll costs 20 us.
POLL_SECONDS: Final = 0.05
# The same: a partition is fetched from when the fetch before it was added comes back. It delays no record.
FETCH_WAIT_MS: Final = 100
# A patient tail gets what has come in this time in one piece, unless it is more than that.
PATIENT_WAIT_MS: Final = 50
PATIENT_BYTES: Final = 1 << 20
# For a broker that answers nothing any more: it is not waited for longer. The default is a minute.
ANSWER_MS: Final = 5_000
# Batches that the loop has not taken yet. Beyond it the thread waits, so that they grow instead of piling up.
MAX_WAITING: Final = 16


class Read(NamedTuple):
    """A record that the tail has read: its tokens, or its value and why that is no frame."""

    partition: int
    offset: int
    tokens: list[Token]
    raw: bytes = b""
    reason: str = ""


class Cut(NamedTuple):
    """The tail's position in a partition is not in the log any more: nothing more will come from it."""

    partition: int


Batch = list[Read | Cut]


class TokenTail:
    """The thread and its consumer. ``on_batch`` runs on the loop.

    ``patient``: records may come some ten milliseconds later, many at once. ``known`` tells, in the thread, the offset
    of a partition below which they need not come at all.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        on_batch: Callable[[Batch], None],
        *,
        patient: bool = False,
        known: Callable[[int], int] = lambda _: 0,
        idle_pause: float = 0.0,
    ) -> None:
        self._known = known
        self._loop = asyncio.get_running_loop()
        self._topic = topic
        self._on_batch = on_batch
        self._complaints = Complaints("token tail")
        self._look = LeaderLook(self._complaints)
        self._consumer = Consumer(
            consumer_config(
                bootstrap,
                self._look.complained,
                {
                    # Where a position is not in the log, the hub has to know: it decides, not librdkafka.
                    "auto.offset.reset": "error",
                    "fetch.wait.max.ms": PATIENT_WAIT_MS if patient else FETCH_WAIT_MS,
                    "fetch.min.bytes": PATIENT_BYTES if patient else 1,
                    "enable.partition.eof": idle_pause > 0,
                    "socket.timeout.ms": ANSWER_MS,
                },
            )
        )
        self._idle_pause = idle_pause
        # The next offset of each partition, and the partitions whose end was reached. The thread's alone.
        self._positions: dict[int, int] = {}
        self._at_end: set[int] = set()
        self._changes: deque[Callable[[], None]] = deque()
        self._batches: deque[Batch] = deque()
        self._taken = threading.Event()
        self._woken = False
        self._stop = threading.Event()
        name = "patient-tail" if patient else "token-tail"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def follow(self, positions: Mapping[int, int]) -> None:
        """Begin to read these partitions, each at its offset."""

        def change() -> None:
            self._positions.update(positions)
            self._consumer.incremental_assign(self._places(positions))

        self._changes.append(change)

    def leave(self, partition: int) -> None:
        """Stop reading a partition. What has been read of it may still arrive."""

        def change() -> None:
            self._consumer.incremental_unassign(self._places({partition: self._positions.pop(partition)}))

        self._changes.append(change)

    def look(self) -> None:
        """Look for new leaders from now on: a broker that is frozen keeps its connection and complains of nothing."""
        self._look.begin()

    async def close(self) -> None:
        """Stop, join the thread and close the consumer."""
        self._stop.set()
        self._taken.set()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._consumer.close)

    def _run(self) -> None:
        while not self._stop.is_set():
            while self._changes:
                self._change(self._changes.popleft())
            first = self._consumer.poll(POLL_SECONDS)
            if first is not None:
                self._hand_over([first, *self._consumer.consume(BATCH, 0)])
            if self._look.due():
                self._look.ask(self._consumer, self._topic)
            if self._idle_pause and self._at_end.issuperset(self._positions):
                self._rest()

    def _rest(self) -> None:
        """Fetch nothing for a moment, for a broker that answers an empty fetch at once instead of waiting.

        librdkafka would ask again at once, at half a core. It cannot be told to wait, and what it resumes after
        `pause` has lost its position, so the partitions are taken from it and given back.
        """
        self._consumer.unassign()
        self._stop.wait(self._idle_pause)
        self._consumer.assign(self._places(self._positions))
        self._at_end.clear()

    def _places(self, positions: Mapping[int, int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition, offset) for partition, offset in positions.items()]

    def _change(self, change: Callable[[], None]) -> None:
        try:
            change()
        except KafkaException as error:
            self._complaints(error.args[0])

    def _hand_over(self, messages: list[Message]) -> None:
        batch = [read for message in messages if (read := self._read(message)) is not None]
        if not batch:
            return
        self._batches.append(batch)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._take)
        while len(self._batches) >= MAX_WAITING and not self._stop.is_set():
            self._taken.clear()
            self._taken.wait(POLL_SECONDS)

    def _take(self) -> None:
        self._woken = False
        while self._batches:
            self._on_batch(self._batches.popleft())
        self._taken.set()

    def _read(self, message: Message) -> Read | Cut | None:
        partition, offset = message.partition() or 0, message.offset() or 0
        error = message.error()
        if error is not None:
            return self._not_read(partition, error)
        if partition not in self._positions:
            return None
        self._positions[partition] = offset + 1
        self._at_end.discard(partition)
        if offset < self._known(partition):
            return None
        try:
            return Read(partition, offset, decode(message.value()))
        except BadRecord as bad:
            return Read(partition, offset, [], message.value() or b"", str(bad))

    def _not_read(self, partition: int, error: KafkaError) -> Cut | None:
        if error.code() == KafkaError._PARTITION_EOF:
            self._at_end.add(partition)
            return None
        self._complaints(error)
        return Cut(partition) if error.code() == KafkaError._AUTO_OFFSET_RESET else None
