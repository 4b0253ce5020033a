"""Copies changelogs from Kafka into RocksDB, as fast as Kafka can be read, in a thread of its own.

Two uses: `restore` brings the partitions that this worker has been given up to the present end of their
changelogs, and ends; `follow` keeps the copies of partitions that others own near it until it is cancelled.
After any of these, and after a crash in the middle, a store holds exactly the rows of its changelog up to its
offset that count (`domain.fence`): what does not fit is set aside and begun anew.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import msgspec
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from adapters.librdkafka import Complaints, client_config, consumer_config, offsets_for_times
from adapters.rocksdb import Database, Origin
from config import metrics
from domain.errors import LogUnavailable
from domain.fence import Fence

log = structlog.get_logger(__name__)

BATCH: Final = 1000
POLL_SECONDS: Final = 0.05  # a rebalance waits for this
ASK_SECONDS: Final = 2.0
AGAIN_SECONDS: Final = 0.5
# As times, these ask Kafka for the two ends of a partition.
BEGINNING: Final = -2
END: Final = -1

CLAIM_KEY: Final = b"__headrace\0claim__"  # no row: it raises the fence
EPOCH_HEADER: Final = "epoch"

Check = Callable[[bytes], object]
OnBadRecord = Callable[[Message, str], None]
TopicId = Callable[[str], str]


@dataclass(slots=True, eq=False)
class Replica:
    """A changelog's partition, and the store on this worker that is a copy of it.

    ``check`` raises ValueError or an error of msgspec's for a value that no reader of the table could decode.
    ``claim``: where this worker's claim to write here stands in the changelog, under which ``epoch``; a restore reads
    up to it.
    """

    topic: str
    partition: int
    database: Database
    check: Check | None = None
    claim: int = -1
    epoch: int = -1
    position: int = 0
    end: int = 0

    @property
    def left(self) -> int:
        """Offsets still to go; some of them may be compacted away."""
        return max(0, self.end - self.position)


class BegunAnew(Exception):
    """A store was set aside while it was read into, and has to be read from the beginning."""


@dataclass(slots=True)
class Progress:
    """How far a restore is. Written by its thread, read by anyone."""

    replicas: Sequence[Replica] = ()
    records: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> int:
        """Offsets still to go."""
        return sum(replica.left for replica in self.replicas)

    @property
    def rate(self) -> float:
        """Records a second since it began."""
        return self.records / max(time.monotonic() - self.began, 0.001)


@dataclass(slots=True)
class Changes:
    """What a batch of records changes in one store.

    ``dropped``: how many of them do not count. ``own``: where one of these stands that this worker wrote, so that its
    store has a row that nobody else has.
    """

    fence: Fence
    rows: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    fenced: set[bytes] = field(default_factory=set)
    dropped: int = 0
    own: int | None = None


class Changelogs:
    """One consumer without a group, in one thread: of two calls the second waits for the first.

    ``partitions`` is what every changelog has. ``on_bad_record`` is called in the thread for what cannot be a row,
    and the record is passed once it returns.
    """

    def __init__(
        self,
        bootstrap: str,
        partitions: int,
        on_bad_record: OnBadRecord,
        *,
        topic_id: TopicId | None = None,
        kafka: Mapping[str, Any] | None = None,
    ) -> None:
        self._partitions = partitions
        self._on_bad_record = on_bad_record
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="changelogs")
        self._bootstrap = bootstrap
        self._complaints = Complaints("changelogs")
        self._kafka = kafka or {}
        self._topic_id = topic_id or topic_ids(bootstrap, self._complaints, self._kafka)
        self._consumer: Consumer | None = None
        self._cancelled = threading.Event()

    async def restore(self, progress: Progress) -> bool:
        """Copy up to where the changelogs end now; return False if cancelled before. Waits for Kafka for ever."""
        return await self._run(progress, follow=False)

    async def follow(self, progress: Progress) -> None:
        """Copy what comes until cancelled."""
        await self._run(progress, follow=True)

    async def cancel(self) -> None:
        """Return when the thread has let go of all stores; within about 0.1 s, or `ASK_SECONDS` without a broker."""
        self.stop_soon()
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)  # after what it is at now

    def stop_soon(self) -> None:
        """Ask for what `cancel` does, without waiting for it."""
        self._cancelled.set()

    async def close(self) -> None:
        """Cancel, and end the thread."""
        self.stop_soon()
        await asyncio.to_thread(self._thread.shutdown)
        if self._consumer is not None:
            await asyncio.to_thread(self._consumer.close)

    async def _run(self, progress: Progress, *, follow: bool) -> bool:
        if not progress.replicas:
            return True
        cancelled = self._cancelled = threading.Event()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._work, progress, follow, cancelled)
        finally:
            cancelled.set()  # the thread does not notice when its task is cancelled

    # -- in the thread

    def _work(self, progress: Progress, follow: bool, cancelled: threading.Event) -> bool:
        while not cancelled.is_set():
            try:
                left = self._prepare(progress.replicas)
                if follow:
                    left = list(progress.replicas)
                if not left or self._copy(left, progress, follow, cancelled):
                    return True
            except BegunAnew:
                continue
            except (KafkaException, LogUnavailable) as error:
                # Also when a changelog was truncated under our hands: the next look at its ends shows it.
                log.warning("changelogs will be read again", reason=str(error))
                cancelled.wait(AGAIN_SECONDS)
        return False

    def _prepare(self, replicas: Sequence[Replica]) -> list[Replica]:
        """Say from where to where each has to be read, begin anew those that do not fit; return who is behind."""
        first, last = self._offsets(replicas, BEGINNING), self._offsets(replicas, END)
        for replica in replicas:
            where = (replica.topic, replica.partition)
            # A broker that has just become the leader may not know yet how far its copy is acknowledged.
            replica.end = max(last[where], replica.claim + 1)
            # The claim was the log's last record, so a store that has its offset already has seen what Kafka lost.
            is_first_look = replica.position == 0 and replica.claim >= 0
            self._fit(replica, first[where], replica.claim if is_first_look else replica.end)
            offset = replica.database.offset
            replica.position = first[where] if offset is None else offset + 1
            if replica.position == replica.claim and replica.database.epoch <= replica.epoch:
                replica.database.copy((), replica.claim, epoch=replica.epoch)  # as it would be read
                replica.position += 1
        return [replica for replica in replicas if replica.left]

    def _fit(self, replica: Replica, first: int, last: int) -> None:
        """Set a store aside that cannot become a copy of its changelog by reading on."""
        database = replica.database
        origin = Origin(replica.topic, self._topic_id(replica.topic), self._partitions)
        offset = -1 if database.offset is None else database.offset
        if database.origin != origin and (database.origin or database.offset is not None):
            database.renew(f"made from {database.origin}, but here is {origin}", "foreign")
        elif offset >= last:
            # Kafka lost what it had acknowledged: several brokers at once, or an embedded one that was killed.
            database.renew(f"it has records up to {offset}, but the changelog ends before {last}", "ahead")
        elif database.offset is not None and offset + 1 < first:
            # Rows may have been deleted by what is not there any more.
            database.renew(f"it ends at {offset}, and the changelog begins only at {first}", "truncated")
        if database.origin is None:
            database.made_of(origin)

    def _copy(self, replicas: Sequence[Replica], progress: Progress, follow: bool, cancelled: threading.Event) -> bool:
        """Read until all are at their ends; return False if cancelled before."""
        consumer = self._open()
        waiting = {(replica.topic, replica.partition): replica for replica in replicas}
        consumer.assign([TopicPartition(*where, replica.position) for where, replica in waiting.items()])
        try:
            while follow or any(replica.left for replica in replicas):
                if cancelled.is_set():
                    return False
                first = consumer.poll(POLL_SECONDS)
                if first is not None:
                    # With a time-out, `consume` would wait all of it for a full batch.
                    progress.records += self._write(waiting, [first, *consumer.consume(BATCH, 0)])
            return True
        finally:
            consumer.unassign()

    def _write(self, replicas: Mapping[tuple[str, int], Replica], messages: Iterable[Message]) -> int:
        changed: dict[Replica, Changes] = {}
        for message in messages:
            replica, error = replicas[message.topic() or "", message.partition() or 0], message.error()
            offset = message.offset() or 0
            if error is None:
                changes = changed.get(replica)
                if changes is None:
                    changes = changed[replica] = Changes(Fence(replica.database.epoch))
                self._take(replica, message, changes)
                replica.position = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                # The last offsets may belong to no record: aborted, compacted away, or a transaction's own.
                if offset > replica.position:
                    changed.setdefault(replica, Changes(Fence(replica.database.epoch)))
                    replica.position = offset
            elif not error.retriable():
                raise KafkaException(error)
        for replica, changes in changed.items():
            replica.database.copy(changes.rows, replica.position - 1, epoch=changes.fence.epoch, fenced=changes.fenced)
            if changes.dropped:
                metrics.fenced_rows.inc(changes.dropped)
                where = {"changelog": replica.topic, "partition": replica.partition}
                log.warning("rows of a replaced worker dropped", rows=changes.dropped, **where)
        self._begin_anew(changed)
        return sum(len(changes.rows) for changes in changed.values())

    def _begin_anew(self, changed: Mapping[Replica, "Changes"]) -> None:
        """Set the stores aside that this worker wrote to after it was replaced; raises `BegunAnew` if there are any."""
        own = {replica: changes.own for replica, changes in changed.items() if changes.own is not None}
        for replica, offset in own.items():
            replica.database.renew(f"it has a row that this worker wrote too late, at {offset} of the log", "fenced")
        if own:
            raise BegunAnew

    def _take(self, replica: Replica, message: Message, changes: "Changes") -> None:
        """Add a message to the changes if it counts."""
        key, epoch = message.key(), epoch_of(message)
        if not changes.fence.admits(epoch):
            changes.dropped += 1
            if epoch == replica.database.own_epoch:
                changes.own = message.offset()
            if key is not None and key != CLAIM_KEY:
                changes.fenced.add(key)
        elif key != CLAIM_KEY:
            rows = self._row(replica, message)
            changes.rows.extend(rows)
            if changes.fenced:
                changes.fenced.difference_update(key for key, _ in rows)

    def _row(self, replica: Replica, message: Message) -> Sequence[tuple[bytes, bytes | None]]:
        """Return the message as a row; nothing if it is none, once it has been set aside."""
        key, value = message.key(), message.value()
        if key is None:
            self._on_bad_record(message, "a changelog's record without a key")
            return ()
        if value is not None and replica.check is not None:
            try:
                replica.check(value)
            except (ValueError, msgspec.MsgspecError) as error:
                self._on_bad_record(message, f"not a row of its table: {error}")
                return ()
        return ((key, value),)

    def _offsets(self, replicas: Sequence[Replica], end: int) -> dict[tuple[str, int], int]:
        asked = [TopicPartition(replica.topic, replica.partition, end) for replica in replicas]
        answers = offsets_for_times(self._open(), asked, ASK_SECONDS, self._cancelled.wait)
        return {(answer.topic, answer.partition): answer.offset for answer in answers}

    def _open(self) -> Consumer:
        if self._consumer is None:
            self._consumer = Consumer(
                consumer_config(
                    self._bootstrap,
                    self._complaints,
                    {
                        # Where the log begins after our position, rows are missing that it deleted.
                        "auto.offset.reset": "error",
                        "enable.partition.eof": True,
                        "fetch.wait.max.ms": 100,
                        # The bound on memory, beside the batch that is being written.
                        "queued.max.messages.kbytes": 16 << 10,
                        "fetch.max.bytes": 8 << 20,
                        # At its bound, the default waits a second before it asks again: 7 s instead of 1 for 200 MB.
                        "fetch.queue.backoff.ms": 10,
                        **self._kafka,
                    },
                )
            )
        return self._consumer


def epoch_of(message: Message) -> int:
    """Return the epoch that a record was written under, 0 if it does not say."""
    headers: Any = message.headers()  # a list of pairs, whatever its annotation says
    return next((int(value) for name, value in headers or () if name == EPOCH_HEADER), 0)


def topic_ids(bootstrap: str, complaints: Complaints, kafka: Mapping[str, Any]) -> TopicId:
    """Return what asks Kafka for the id of a topic; brokers before 2.8 and the embedded one give the same for all."""

    # Asked once: when a topic is deleted under a running worker, that worker's tables are gone anyway.
    @cache
    def topic_id(topic: str) -> str:
        admin = AdminClient(client_config(bootstrap, complaints, kafka))
        answer = admin.describe_topics(TopicCollection([topic]), request_timeout=ASK_SECONDS)[topic]
        return str(answer.result(2 * ASK_SECONDS).topic_id)

    return topic_id
