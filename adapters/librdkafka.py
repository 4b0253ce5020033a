"""What our librdkafka clients have in common: how they find a broker again, and how they complain.

librdkafka reconnects by itself and for ever. During an outage it reports every attempt of every connection,
and writes to stderr on its own; here one line a kind and ten seconds goes out, through structlog.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from confluent_kafka import KafkaError

log = structlog.get_logger(__name__)

QUIET_SECONDS: Final = 10.0


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
        kind, now = error.name(), self._clock()
        last, left_out = self._seen.get(kind, (-QUIET_SECONDS, 0))
        if now - last < QUIET_SECONDS:
            self._seen[kind] = (last, left_out + 1)
            return
        self._seen[kind] = (now, 0)
        log.warning("kafka complained", client=self._client, error=kind, reason=error.str(), left_out=left_out)


def client_config(bootstrap: str, complaints: Complaints, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
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


def consumer_config(bootstrap: str, complaints: Complaints, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
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
