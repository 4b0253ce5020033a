"""Who leads the partitions of a topic, and requests to them: one a broker, however many partitions it has to write.

librdkafka sends a request for each partition, and a broker works on one request of a connection after the other: with
three brokers that made three times the work and twice the wait of it (docs/measurements.md). So the requests of tokens
are ours (`adapters.produce_request`), on connections of their own; aiokafka asks who leads.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, cast

from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from adapters import produce_request
from adapters.produce_request import CLIENT_ID, SIZE, Written

MAGIC: Final = 2
# A batch of one record, whose size is known. Of no producer: the fold drops what a retry writes twice.
NO_PRODUCER: Final = -1
# Between two questions for leaders, and the patience with a broker that is asked: doubled while none answers.
ASK_PAUSE_SECONDS: Final = 0.1
ASK_SECONDS: Final = 0.25
LONGEST_ASK_SECONDS: Final = 4.0
# One that is frozen takes connections, and says nothing.
CONNECT_SECONDS: Final = 3.0
MAX_NUMBER: Final = (1 << 31) - 1


class Address(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int


def batch_of(value: bytes) -> bytes:
    """Return a record without a key as Kafka's batch of it alone."""
    builder = DefaultRecordBatchBuilder(MAGIC, 0, False, NO_PRODUCER, NO_PRODUCER, NO_PRODUCER, len(value) + 256)
    builder.append(0, time.time_ns() // 1_000_000, None, value, [])
    return bytes(builder.build())


class _Connection(asyncio.Protocol):
    """A connection to a broker, for one request after the other. Whatever happens to it late concerns no later one."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[bytes] | None = None
        self.lost = False

    def ask(self, request: bytes) -> "asyncio.Future[bytes]":
        """Send a request; its answer comes, or `KafkaConnectionError`."""
        assert self._transport is not None
        self._transport.write(SIZE.pack(len(request)) + request)
        self._answer = self._loop.create_future()
        return self._answer

    def cut(self) -> None:
        """Give it up."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(KafkaConnectionError("the connection to the broker is lost, or was given up"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        """Hand an answer that is whole to who waits for it."""
        self._received += data
        if len(self._received) < SIZE.size:
            return
        end = SIZE.size + SIZE.unpack_from(self._received)[0]
        if len(self._received) >= end and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._received[SIZE.size : end])
            self._received = self._received[end:]

    def connection_lost(self, exc: Exception | None) -> None:
        """Have who waits for an answer hear that none will come."""
        self.cut()


class Broker:
    """A broker to write to, in one request at a time.

    ``patience``: seconds that a request may take, beyond which its connection is cut.
    """

    def __init__(self, address: Address, patience: float) -> None:
        self.address = address
        self._patience = patience
        self._connection: _Connection | None = None
        self._number = 0

    async def produce(self, topic: str, batches: Sequence[tuple[int, bytes]]) -> Mapping[int, Written]:
        """Write a batch to each of these partitions; return what became of each.

        Raises `OSError`, `KafkaConnectionError` and `struct.error` where the broker does not answer, or not sensibly.
        """
        loop = asyncio.get_running_loop()
        if self._connection is None or self._connection.lost:
            async with asyncio.timeout(min(self._patience, CONNECT_SECONDS)):
                _, self._connection = await loop.create_connection(_Connection, *self.address)
        self._number = self._number % MAX_NUMBER + 1
        patience_ms = int(self._patience * 1000)
        answer = self._connection.ask(produce_request.request(self._number, topic, batches, patience_ms))
        timer = loop.call_later(self._patience, self._connection.cut)
        try:
            number, written = produce_request.answer(await answer)
        finally:
            timer.cancel()
        if number != self._number:
            raise KafkaConnectionError(f"the broker answered request {number} instead of {self._number}")
        return written

    def cut(self) -> None:
        """Give the connection up, and with it a request that is under way."""
        if self._connection is not None:
            self._connection.cut()
            self._connection = None


class Leaders:
    """The leaders of a topic's partitions, as a broker told them last. A broker has its number in Kafka."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._bootstrap = [Address(host, port) for host, port, _ in collect_hosts(bootstrap)]
        self._addresses: dict[int, Address] = {}
        self._leaders: dict[int, int] = {}
        self._turn = 0
        self._patience = ASK_SECONDS
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    def of(self, partition: int) -> int | None:
        """Return the broker that leads a partition, None where that is not known."""
        return self._leaders.get(partition)

    def address(self, broker: int) -> Address:
        """Return where a broker listens."""
        return self._addresses[broker]

    def forget(self, partition: int) -> None:
        """Note that who was told as a partition's leader is not."""
        self._leaders.pop(partition, None)

    async def ask(self) -> None:
        """Ask the next broker in turn, but not at once after the last one; whoever asks meanwhile hears the same."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        await asyncio.shield(self._asking)

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        await asyncio.sleep(self._asked_at + ASK_PAUSE_SECONDS - time.monotonic())
        known = dict.fromkeys([*self._addresses.values(), *self._bootstrap])
        for _ in known:  # a broker that is gone says so at once, and the next one is asked
            self._asked_at = time.monotonic()
            address = list(known)[self._turn % len(known)]
            self._turn += 1
            try:
                async with asyncio.timeout(self._patience):
                    await self._ask_one(address)
            except TimeoutError:
                self._patience = min(2 * self._patience, LONGEST_ASK_SECONDS)
            except Exception:  # noqa: BLE001, S112 - whatever is wrong with this broker, another may know
                continue
            else:
                self._patience = ASK_SECONDS
                return

    async def _ask_one(self, address: Address) -> None:
        connection = await _connect(address, LONGEST_ASK_SECONDS)
        try:
            answer = await connection.send(MetadataRequest([self._topic], allow_auto_topic_creation=False))
        finally:
            connection.close()
        # Those that are not mentioned may lead, by an earlier answer, what this one tells nothing of.
        self._addresses |= {broker: Address(host, port) for broker, host, port, *_ in answer.brokers}
        for code, _, _, partitions in answer.topics:
            if not code:
                self._leaders = {
                    partition: leader for _, partition, leader, *_ in partitions if leader in self._addresses
                }


async def _connect(address: Address, patience: float) -> AIOKafkaConnection:
    async with asyncio.timeout(min(patience, CONNECT_SECONDS)):
        return await create_conn(*address, client_id=CLIENT_ID.decode(), request_timeout_ms=int(patience * 1000))
