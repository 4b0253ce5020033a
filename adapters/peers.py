"""Writes this worker's beats and reads everyone's, in a thread of its own, while there is anyone to hear them.

A thread and librdkafka, so that a busy event loop does not look dead; a process that was killed or frozen, or whose
machine or network is gone, does. Who is silent is for `domain.peers` to judge; who it is goes to the loop, which has
the connection to evict it.

A loop that has not run at all for `HUNG_SECONDS` is no life either: nothing of its answers moves on, and Kafka would
not notice, because Faust's heartbeats come from a thread of their own and its poll limit is 1,000 s. So the beats
stop too, and the peers take over. Far longer than any pause that we know of: reading a prompt is the model's work,
the longest full garbage collection was 0.2 s, and a wrong guess costs a rebalance.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from adapters.librdkafka import Complaints, client_config, consumer_config
from domain.peers import BEAT_SECONDS, Beat, Peers, Silent

log = structlog.get_logger(__name__)

BATCH: Final = 500
# How often the thread wakes. Beats are read at most so late, and 10 workers cost a thousandth of a core.
STEP_SECONDS: Final = 0.1
FETCH_WAIT_MS: Final = 500
# A beat that is late says nothing about now.
DELIVERY_SECONDS: Final = 2.0
# The last 200 records, in librdkafka's way of saying so (RD_KAFKA_OFFSET_TAIL): its end is found while others beat
# already, and who died in that moment would never have been heard. Whose beats are old is none of the group's members
# any more, and evicting it does nothing.
START: Final = -2000 - 200
HUNG_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 0.5

_decode = msgspec.json.Decoder(Beat).decode


class Beats:
    """The thread and its clients. ``on_silent`` runs on the loop; ``member`` is asked in the thread, for every beat."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        *,
        worker: str,
        limit: float,
        member: Callable[[], str],
        on_silent: Callable[[Silent], None],
        rest: bool = False,
        hung_seconds: float = HUNG_SECONDS,
        kafka: Mapping[str, Any] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._bootstrap = bootstrap
        self._topic = topic
        self._worker = worker
        self._member = member
        self._on_silent = on_silent
        self._rest = rest
        self._hung_seconds = hung_seconds
        self._kafka = kafka
        self._peers = Peers(worker, limit)
        self._complaints = Complaints("peer watch")
        self._in_company = threading.Event()
        self._closed = threading.Event()
        self._loop_ran = time.monotonic()
        self._waiting = False
        self._due = 0.0
        self._next = START
        self._notices: list[Beat] = []
        self._thread = threading.Thread(target=self._run, name="peer-watch", daemon=True)
        self._thread.start()

    def accompany(self, in_company: bool) -> None:
        """Beat and listen while there are other workers. Alone, there is nobody to watch and nobody who watches."""
        if in_company:
            self._in_company.set()
        else:
            self._in_company.clear()

    def tell_evicted(self, silent: Silent) -> None:
        """Tell the others that this member needs no further eviction."""
        self._notices.append(Beat(silent.worker, silent.member, time.monotonic(), "evicted"))

    async def close(self) -> None:
        """Say that this worker leaves in order, and stop."""
        self._closed.set()
        self._in_company.set()
        await asyncio.to_thread(self._thread.join)

    # -- the thread

    def _run(self) -> None:
        self._in_company.wait()
        if self._closed.is_set():
            return
        producer, consumer = Producer(self._producer_config()), Consumer(self._consumer_config())
        while not self._closed.is_set():
            self._watch(producer, consumer)
            self._in_company.wait()
        self._write(producer, Beat(self._worker, "", time.monotonic(), "left"))
        producer.flush(CLOSE_SECONDS)
        producer.purge(blocking=False)
        consumer.close()
        producer.close()

    def _watch(self, producer: Producer, consumer: Consumer) -> None:
        self._peers.forget()
        self._next = START
        consumer.assign([self._place()])
        while self._in_company.is_set() and not self._closed.is_set():
            for message in consumer.consume(BATCH, STEP_SECONDS):
                self._hear(consumer, message)
            self._beat(producer)
            producer.poll(0)
        consumer.unassign()

    def _place(self) -> TopicPartition:
        return TopicPartition(self._topic, 0, self._next)

    def _beat(self, producer: Producer) -> None:
        while self._notices:
            self._write(producer, self._notices.pop(0))
        now = time.monotonic()
        # One at a time, so that those of an outage do not all come back at its end, as if we had heard so much.
        if now < self._due or self._waiting:
            return
        self._due = now + BEAT_SECONDS
        self._loop.call_soon_threadsafe(self._note_loop)
        if now - self._loop_ran > self._hung_seconds:
            log.warning("event loop hangs, no beat", seconds=round(now - self._loop_ran, 1))
            return
        self._write(producer, Beat(self._worker, self._member(), now))

    def _write(self, producer: Producer, beat: Beat) -> None:
        self._waiting = True
        try:
            producer.produce(self._topic, msgspec.json.encode(beat), partition=0, on_delivery=self._written)
        except (BufferError, KafkaException) as error:
            self._waiting = False
            log.warning("beat not written", reason=str(error))

    def _written(self, _error: KafkaError | None, _message: Message) -> None:
        self._waiting = False

    def _note_loop(self) -> None:
        self._loop_ran = time.monotonic()

    def _hear(self, consumer: Consumer, message: Message) -> None:
        if error := message.error():
            self._not_heard(consumer, error)
            return
        self._next = (message.offset() or 0) + 1
        try:
            beat = _decode(message.value() or b"")
        except msgspec.DecodeError as error:
            log.warning("not a beat", offset=message.offset(), reason=str(error))
            return
        for silent in self._peers.hear(beat):
            self._loop.call_soon_threadsafe(self._on_silent, silent)

    def _not_heard(self, consumer: Consumer, error: KafkaError) -> None:
        if error.code() != KafkaError._PARTITION_EOF:
            self._complaints(error)
        elif self._next >= 0:
            # A broker that answers an empty fetch at once would be asked again at once (see `adapters.token_tail`).
            consumer.unassign()
            time.sleep(STEP_SECONDS)
            consumer.assign([self._place()])

    # -- its clients

    def _producer_config(self) -> dict[str, Any]:
        # One copy will do: a beat that is lost with its broker is followed by another.
        own = {"acks": 1, "linger.ms": 0, "message.timeout.ms": int(DELIVERY_SECONDS * 1000), **(self._kafka or {})}
        return client_config(self._bootstrap, self._complaints, own)

    def _consumer_config(self) -> dict[str, Any]:
        own = {
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": FETCH_WAIT_MS,
            "enable.partition.eof": self._rest,
            **(self._kafka or {}),
        }
        return consumer_config(self._bootstrap, self._complaints, own)
