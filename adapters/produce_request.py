"""Kafka's Produce request and what answers it, in the one form in which tokens are written: batches of one topic.

A worker that writes ten thousand tokens a second sends two hundred of these, and aiokafka's schemas would make
some hundred and fifty calls for each (docs/measurements.md).
Source: Kafka's protocol guide, https://kafka.apache.org/protocol, Produce in version 7, which Kafka has since 2.1.
"""

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple

PRODUCE: Final = 0
VERSION: Final = 7
CLIENT_ID: Final = b"headrace-tokens"
NO_TRANSACTION: Final = -1
ALL_IN_SYNC: Final = -1

SIZE: Final = Struct(">i")
"""What stands before each request and answer: how many bytes follow."""

# Request, its version and number, the client's name; no transaction, acks, ms that the broker may take, topics.
_HEAD: Final = Struct(f">hhih{len(CLIENT_ID)}shhii")
# A topic's name, of so many bytes, and then how many partitions.
_NAME: Final = Struct(">h")
_COUNT: Final = Struct(">i")
# A partition, and the size of its batch.
_BATCH: Final = Struct(">ii")
# Of an answer: the request's number, how many topics, the size of the first one's name.
_ANSWER: Final = Struct(">iih")
# A partition, its error, the offset of its first record, its time, and where the log begins.
_TOLD: Final = Struct(">ihqqq")


class Written(NamedTuple):
    """What a broker says of a batch: Kafka's error code, 0 for none, and the offset of its first record."""

    code: int
    offset: int


def request(number: int, topic: str, batches: Sequence[tuple[int, bytes]], patience_ms: int) -> bytes:
    """Return the request of this number, without its size. ``patience_ms``: what the broker may take for it."""
    name = topic.encode()
    head = _HEAD.pack(PRODUCE, VERSION, number, len(CLIENT_ID), CLIENT_ID, NO_TRANSACTION, ALL_IN_SYNC, patience_ms, 1)
    parts = [head, _NAME.pack(len(name)), name, _COUNT.pack(len(batches))]
    for partition, batch in batches:
        parts += (_BATCH.pack(partition, len(batch)), batch)
    return b"".join(parts)


def answer(raw: bytes) -> tuple[int, Mapping[int, Written]]:
    """Return the number of the request that this answers, and what became of each partition's batch.

    Raises `struct.error` for what is cut.
    """
    number, topics, name = _ANSWER.unpack_from(raw)
    if not topics:
        return number, {}
    at = _ANSWER.size + name
    (count,) = _COUNT.unpack_from(raw, at)
    at += _COUNT.size
    told = (_TOLD.unpack_from(raw, at + each * _TOLD.size) for each in range(count))
    return number, {partition: Written(code, offset) for partition, code, offset, _, _ in told}
