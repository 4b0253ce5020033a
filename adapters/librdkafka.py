"""What our librdkafka clients have in common: how they find a broker again, and how they complain.

librdkafka reconnects by itself and for ever. During an outage it reports every attempt of every connection,
and writes to stderr on its own; here one line a kind and ten seconds goes out, through structlog.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

log = structlog.get_logger(__name__)

QUIET_SECONDS: Final = 10.0
# Leaders are looked for anew after so long without offsets. The last try, on a slow network, has half of the patience.
TRY_SECONDS: Final = 1.0
TRY_PAUSE_SECONDS: Final = 0.1

OnError = Callable[[KafkaError], None]


class Complaints:
    """Logs a client's errors, each kind once in `QUIET_SECONDS` and with how many were left out.

    Called from librdkafka's threads and from the loop; a lost count does not matter, so there is no lock.
    """

    def __init__(self, client: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}

    def __call__(self, error: KafkaError) -> None:
        """Log this error, unless one of its kind was logged just now."""
        self.about(error.name(), error.str())

    def about(self, kind: str, reason: str) -> None:
        """Log an error of this kind, unless one was logged just now."""
        now = self._clock()
        last, left_out = self._seen.get(kind, (-QUIET_SECONDS, 0))
        if now - last < QUIET_SECONDS:
            self._seen[kind] = (last, left_out + 1)
            return
        self._seen[kind] = (now, 0)
        log.warning("kafka complained", client=self._client, error=kind, reason=reason, left_out=left_out)


class LeaderLook:
    """Says when to ask who leads the partitions now: for a while after each complaint about a broker.

    Left to itself librdkafka asks once a second, and a consumer moves to the new leader with the second answer only.
    Any answer to `list_topics` moves all its partitions.
    """

    SECONDS: Final = 0.1
    """Between two questions, and what one may take."""
    LASTS: Final = 15.0

    def __init__(self, complaints: OnError, clock: Callable[[], float] = time.monotonic) -> None:
        self._complaints = complaints
        self._clock = clock
        self._until = self._asked = float("-inf")

    def complained(self, error: KafkaError) -> None:
        """Pass a complaint on, and look from now on."""
        self.begin()
        self._complaints(error)

    def begin(self) -> None:
        """Look from now on, for a while."""
        self._until = self._clock() + self.LASTS

    def due(self) -> bool:
        """Return whether to ask, which is then taken as done."""
        now = self._clock()
        if now >= self._until or now - self._asked < self.SECONDS:
            return False
        self._asked = now
        return True

    def ask(self, client: Consumer | Producer, topic: str) -> None:
        """Ask; blocks for up to `SECONDS`."""
        with suppress(KafkaException):  # whom it asked may be who is away
            client.list_topics(topic, timeout=self.SECONDS)


def offsets_for_times(
    consumer: Consumer,
    asked: list[TopicPartition],
    patience: float,
    give_up: Callable[[float], bool],
    *,
    partial: bool = False,
) -> list[TopicPartition]:
    """Return what a consumer's method of this name does; raises `KafkaException` after so many seconds at the latest.

    librdkafka asks the leaders that it has heard of, again and again: a dead broker until the time is over, and
    a topic that it met before it had leaders never. So they are looked for anew between two tries. ``give_up`` is
    called with a pause to wait for, and says whether to go on at all. ``partial``: leave out the partitions that nobody
    leads, unless that is all of them.
    """
    strict = True
    deadline = time.monotonic() + patience
    while (left := deadline - time.monotonic()) > patience / 2:
        try:
            return _without_errors(consumer.offsets_for_times(asked, min(TRY_SECONDS, left)), strict=strict)
        except KafkaException:
            if give_up(TRY_PAUSE_SECONDS):
                raise
            consumer.list_topics(timeout=max(TRY_PAUSE_SECONDS, deadline - time.monotonic()))
            strict = not partial
    return _without_errors(consumer.offsets_for_times(asked, left), strict=strict)


def _without_errors(answers: list[TopicPartition], *, strict: bool) -> list[TopicPartition]:
    told = [answer for answer in answers if answer.error is None]
    for answer in answers:
        if answer.error is not None and (strict or not told):
            raise KafkaException(answer.error)
    return told


def client_config(bootstrap: str, complaints: OnError, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a producer and a consumer have in common. ``extra`` wins: security options, or a test's."""
    return {
        "bootstrap.servers": bootstrap,
        "error_cb": complaints,
        "log_level": 0,
        "socket.nagle.disable": True,
        "socket.keepalive.enable": True,
        # The default backs off up to 10 s, which a reader would see as silence after a broker's restart.
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        **(extra or {}),
    }


def consumer_config(bootstrap: str, complaints: OnError, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the options of a consumer without a group: it is told partitions and offsets, and commits nothing."""
    return client_config(
        bootstrap,
        complaints,
        {
            # librdkafka wants a name, and never uses it: we neither subscribe nor commit.
            "group.id": "headrace-no-group",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # So that the end of a partition is the offset after its last record, whoever wrote it.
            "isolation.level": "read_uncommitted",
            **(extra or {}),
        },
    )
