"""Who leads the partitions of a topic, and requests to them: one a broker, however many partitions it has to write.

librdkafka sends a request for each partition, and a broker works on one request of a connection after the other: with
three brokers that made three times the work and twice the wait of it (docs/measurements.md). So the requests of tokens
are ours (`adapters.produce_request`), over aiokafka's connections.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from adapters.produce_request import ProduceRequest, Written

CLIENT_ID: Final = "headrace-tokens"
MAGIC: Final = 2
# A batch of one record, whose size is known. Of no producer: the fold drops what a retry writes twice.
NO_PRODUCER: Final = -1
# Between two questions for leaders, and the patience with a broker that is asked: doubled while none answers.
ASK_PAUSE_SECONDS: Final = 0.1
ASK_SECONDS: Final = 0.25
LONGEST_ASK_SECONDS: Final = 4.0
# One that is frozen takes connections, and says nothing.
CONNECT_SECONDS: Final = 3.0


class Address(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int


def batch_of(value: bytes) -> bytes:
    """Return a record without a key as Kafka's batch of it alone."""
    builder = DefaultRecordBatchBuilder(MAGIC, 0, False, NO_PRODUCER, NO_PRODUCER, NO_PRODUCER, len(value) + 256)
    builder.append(0, time.time_ns() // 1_000_000, None, value, [])
    return bytes(builder.build())


class Broker:
    """A broker to write to. ``patience``: seconds that a request may take, beyond which its connection is cut."""

    def __init__(self, address: Address, patience: float) -> None:
        self.address = address
        self._patience = patience
        self._connection: AIOKafkaConnection | None = None

    async def produce(self, topic: str, batches: Sequence[tuple[int, bytes]]) -> Mapping[int, Written]:
        """Write a batch to each of these partitions; return what became of each.

        Raises what aiokafka and sockets do where the broker does not answer.
        """
        if self._connection is None or not self._connection.connected():
            self._connection = await _connect(self.address, self._patience)
        written: Mapping[int, Written] = await self._connection.send(
            ProduceRequest(topic, batches, int(self._patience * 1000))
        )
        return written

    def cut(self) -> None:
        """Give the connection up, and with it a request that is under way."""
        if self._connection is not None:
            self._connection.close()
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
        return await create_conn(*address, client_id=CLIENT_ID, request_timeout_ms=int(patience * 1000))
