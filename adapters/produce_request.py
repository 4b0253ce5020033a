"""Kafka's Produce request and what answers it, in the one form in which tokens are written: batches of one topic.

aiokafka's connections carry it. Its own schemas make some three hundred calls for eight partitions, which a worker
that writes ten thousand tokens a second pays for two hundred times a second (docs/measurements.md).
Source: Kafka's protocol guide, https://kafka.apache.org/protocol, Produce in version 7, which Kafka has since 2.1.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from struct import Struct
from typing import ClassVar, Final, NamedTuple, Self

from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.api import RequestHeader_v1, ResponseHeader_v0

ALL_IN_SYNC: Final = -1
NO_TRANSACTION: Final = -1

# No transaction's id, acks, ms that the broker may take, number of topics, size of the topic's name.
_HEAD: Final = Struct(">hhiih")
_COUNT: Final = Struct(">i")
# A partition, and the size of its batch.
_BATCH: Final = Struct(">ii")
# Number of topics, size of the topic's name.
_TOPIC: Final = Struct(">ih")
# A partition, its error, the offset of its first record, its time and where the log begins.
_TOLD: Final = Struct(">ihqqq")


class Written(NamedTuple):
    """What a broker says of a batch: Kafka's error code, 0 for none, and the offset of its first record."""

    code: int
    offset: int


class Answer:
    """The answer's body; see `decode`."""

    @staticmethod
    def decode(body: BytesIO) -> Mapping[int, Written]:
        """Return what became of each partition's batch. Raises `struct.error` if the body is cut."""
        raw = body.read()
        topics, name = _TOPIC.unpack_from(raw)
        if not topics:
            return {}
        at = _TOPIC.size + name
        (count,) = _COUNT.unpack_from(raw, at)
        at += _COUNT.size
        told = (_TOLD.unpack_from(raw, at + number * _TOLD.size) for number in range(count))
        return {partition: Written(code, offset) for partition, code, offset, _, _ in told}


class ProduceRequest:
    """A request in the shape that `AIOKafkaConnection.send` takes. ``patience_ms``: what the broker may take for it."""

    API_KEY: ClassVar = 0
    API_VERSION: ClassVar = 7
    RESPONSE_TYPE: ClassVar = Answer

    def __init__(self, topic: str, batches: Sequence[tuple[int, bytes]], patience_ms: int) -> None:
        self._topic = topic.encode()
        self._batches = batches
        self._patience_ms = patience_ms

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Self:
        """Return the request for a broker that speaks these versions. Raises `IncompatibleBrokerVersion`."""
        lowest, highest = versions[self.API_KEY]
        if not lowest <= self.API_VERSION <= highest:
            raise IncompatibleBrokerVersion(f"tokens are written with Produce 7; this broker has {lowest} to {highest}")
        return self

    def build_request_header(self, correlation_id: int, client_id: str) -> RequestHeader_v1:
        """Return what stands before the body."""
        return RequestHeader_v1(self, correlation_id, client_id)

    def encode(self) -> bytes:
        """Return the body."""
        head = _HEAD.pack(NO_TRANSACTION, ALL_IN_SYNC, self._patience_ms, 1, len(self._topic))
        parts = [head, self._topic, _COUNT.pack(len(self._batches))]
        for partition, batch in self._batches:
            parts += (_BATCH.pack(partition, len(batch)), batch)
        return b"".join(parts)

    def parse_response_header(self, body: BytesIO) -> ResponseHeader_v0:
        """Take the head off an answer."""
        return ResponseHeader_v0.decode(body)
