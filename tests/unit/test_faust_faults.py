"""What Faust does that loses or doubles work: each fault is shown on Faust's consumer, and gone with ours.

The stock half of a test is there so that it fails when a Faust is released that has mended the fault: then our
override can go. The changelog's faults have tests of their own (`test_table_recovery.py`). Not shown here:

- exactly_once, which is broken in several ways (faust-streaming #136, #177, #323, #502, #517): it takes brokers that
  abort transactions in the right moment. We do not use it, and `test_the_app_promises_at_least_once` sees to that.
- rows in RocksDB that are ahead of the committed offset after a crash: they cannot be avoided, only made harmless. That
  a finished turn may be put into its conversation twice is tested in `test_conversation.py`.
- windows that close twice or never: nothing here uses Faust's windows.
- an error in ``noack_take``, after which nothing is committed any more and a shutdown hangs: nothing here uses it. What
  is taken by many at a time is `streams.batches`, and `test_batches.py` has its errors.
- ``recovery.completed``, which is set before a worker can read and write its tables: nothing here asks for it. What
  `ChatApp.ready` and `ChatApp.settled` ask instead, every test does that waits for a worker (`test_two_workers.py`).
- no heartbeats while Faust's callbacks for a new assignment run, because aiokafka stops them before it joins again: it
  takes a Kafka that ends sessions. So nothing slow is in them: tables come back after them (`test_table_recovery.py`),
  and the tail of tokens does not wait for Kafka there (`test_token_log_hub.py`).
- a thousand lines of aiokafka's in twelve seconds while a broker is away: it takes the outage. That of such lines the
  first and their number are logged is tested in `test_logging.py`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import faust
import pytest
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import NotLeaderForPartitionError
from aiokafka.structs import ConsumerRecord
from faust.types import TP

from domain.errors import LogUnavailable
from streams import handling
from streams.app import app as chat
from streams.records import Question, encode
from tests.support.consumers import (
    TOPIC,
    FakeKafka,
    Whose,
    assign,
    consumer_of,
    deliver,
    fetched,
    revoke,
    stream_of,
    turns_of_the_loop,
)
from tests.support.runner_fakes import question

PARTITION = TP(TOPIC, 0)

# The fault is expected of Faust, and its absence of us.
both = pytest.mark.parametrize("whose", ["stock", "ours"])


@pytest.fixture
def kafka() -> FakeKafka:
    return FakeKafka()


@both
async def test_an_older_message_is_in_work_when_a_later_one_is_finished(whose: Whose, kafka: FakeKafka) -> None:
    consumer = consumer_of(whose, kafka)
    await assign(consumer, kafka, [0])
    in_work = deliver(consumer, 0)
    consumer.ack(deliver(consumer, 1))

    await consumer.commit()

    assert not in_work.acked
    assert kafka.committed == ({PARTITION: 2} if whose == "stock" else {})


@both
async def test_the_first_message_after_the_committed_offset_is_in_work(whose: Whose, kafka: FakeKafka) -> None:
    consumer = consumer_of(whose, kafka)
    kafka.committed = {PARTITION: 4}
    await assign(consumer, kafka, [0])
    in_work = deliver(consumer, 4)
    consumer.ack(deliver(consumer, 5))

    await consumer.commit()

    assert not in_work.acked
    assert kafka.committed == {PARTITION: 6 if whose == "stock" else 4}


@both
async def test_the_message_behind_a_gap_in_the_log_is_in_work(whose: Whose, kafka: FakeKafka) -> None:
    consumer = consumer_of(whose, kafka)
    await assign(consumer, kafka, [0])
    consumer.ack(deliver(consumer, 0))
    await consumer._add_gap(PARTITION, 1, 3)  # as Faust calls it when 3 comes after 0
    in_work = deliver(consumer, 3)
    consumer.ack(deliver(consumer, 4))

    await consumer.commit()

    assert not in_work.acked
    assert kafka.committed == {PARTITION: 5 if whose == "stock" else 3}


@both
async def test_a_gap_in_the_log_does_not_hold_the_commit_back(whose: Whose, kafka: FakeKafka) -> None:
    consumer = consumer_of(whose, kafka)
    await assign(consumer, kafka, [0])
    consumer.ack(deliver(consumer, 0))
    await consumer._add_gap(PARTITION, 1, 3)
    consumer.ack(deliver(consumer, 3))

    await consumer.commit()

    assert kafka.committed == {PARTITION: 4}


@both
async def test_what_was_in_work_is_cancelled_and_let_go(whose: Whose, kafka: FakeKafka) -> None:
    consumer = consumer_of(whose, kafka)
    kafka.committed = {PARTITION: 4}
    await assign(consumer, kafka, [0])
    cancelled = deliver(consumer, 4)
    consumer.ack(deliver(consumer, 5))
    del cancelled

    await consumer.commit()

    assert kafka.committed == {PARTITION: 6 if whose == "stock" else 4}


@both
async def test_a_message_of_an_earlier_assignment_is_finished(whose: Whose, kafka: FakeKafka) -> None:
    consumer = consumer_of(whose, kafka)
    await assign(consumer, kafka, [0])
    before = [deliver(consumer, offset) for offset in range(2)]
    await wait_empty_as_far_as_it_goes(consumer, revoke(consumer, kafka))
    await assign(consumer, kafka, [0])

    consumer.ack(before[1])
    await consumer.commit()

    assert kafka.committed == ({PARTITION: 2} if whose == "stock" else {})


@both
async def test_a_handler_raises(whose: Whose, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    await handled(whose, kafka, fails, monkeypatch)

    assert kafka.committed == ({PARTITION: 1} if whose == "stock" else {})


@both
async def test_a_handler_is_cancelled(whose: Whose, kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Faust does on SIGTERM, with ``stream_wait_empty=False``."""
    await handled(whose, kafka, never_ends, monkeypatch)

    assert kafka.committed == ({PARTITION: 1} if whose == "stock" else {})


async def fails(_: Question) -> None:
    raise LogUnavailable("not now")


async def never_ends(_: Question) -> None:
    await asyncio.Event().wait()


async def handled(
    whose: Whose, kafka: FakeKafka, handle: Callable[[Question], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run an agent over one question for a while, cancel it, and commit."""
    consumer = consumer_of(whose, kafka)
    await assign(consumer, kafka, [0])
    monkeypatch.setattr(handling, "pause", lambda *_, **__: 0)

    class App:
        generation = consumer.app.consumer_generation_id

        async def settled(self) -> None:
            pass

        async def dead_letter(self, **_: object) -> None:
            raise AssertionError("nothing is to be set aside")

    async def handle_with_partition(record: Question, _: int) -> None:
        await handle(record)

    async def agent(stream: Any) -> None:
        if whose == "stock":
            async for event in stream.events():
                await handle(event.value)
        else:
            await handling.handle_each(App(), stream, Question, handle_with_partition)

    async with stream_of(consumer, fetched(consumer, 0, value=encode(question("t")))) as stream:
        task = asyncio.create_task(agent(stream))
        await turns_of_the_loop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del task
        await turns_of_the_loop()
        await consumer.commit()


@both
async def test_a_batch_is_taken_and_its_handler_raises(whose: Whose, kafka: FakeKafka) -> None:
    """We do not use ``take``: a runner over ``noack`` is what takes many at a time."""
    consumer = consumer_of(whose, kafka)
    await assign(consumer, kafka, [0])

    async def agent(stream: Any) -> None:
        async for _ in stream.take(1, within=0) if whose == "stock" else stream.noack().events():
            raise LogUnavailable("not now")

    async with stream_of(consumer, fetched(consumer, 0)) as stream:
        with pytest.raises(LogUnavailable):
            await agent(stream)
        await turns_of_the_loop()
        await consumer.commit()

    assert kafka.committed == ({PARTITION: 1} if whose == "stock" else {})


@both
async def test_finished_messages_are_not_committed_yet_when_partitions_are_revoked(
    whose: Whose, kafka: FakeKafka
) -> None:
    consumer = consumer_of(whose, kafka)
    await assign(consumer, kafka, [0])
    consumer.ack(deliver(consumer, 0))

    await revoke(consumer, kafka)

    assert kafka.committed == ({} if whose == "stock" else {PARTITION: 1})


@both
async def test_a_message_is_in_work_when_partitions_are_revoked(whose: Whose, kafka: FakeKafka) -> None:
    consumer = consumer_of(whose, kafka)
    await assign(consumer, kafka, [0])
    in_work = deliver(consumer, 0)

    went_through = await wait_empty_as_far_as_it_goes(consumer, revoke(consumer, kafka))

    assert not in_work.acked
    assert went_through == (whose == "ours")
    # What is left there of an earlier assignment makes the next one's drain wait, too.
    assert (in_work in consumer._unacked_messages) == (whose == "stock")


@pytest.fixture(autouse=True)
def _no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust collects garbage while it waits, which takes a second with all that a test run has loaded."""
    monkeypatch.setattr("faust.transport.consumer.gc.collect", int)


async def wait_empty_as_far_as_it_goes(consumer: Any, rebalance: Awaitable[None]) -> bool:
    """Run a rebalance until it has waited for messages three times; return whether it came to its end before."""
    waits = 0
    patience = asyncio.Event()

    async def wait_for_ack(timeout: float) -> None:  # noqa: ASYNC109 - Faust's signature
        nonlocal waits
        waits += 1
        if waits == 3:
            patience.set()
        await asyncio.sleep(0)

    consumer._wait_for_ack = wait_for_ack
    going = asyncio.ensure_future(rebalance)
    enough = asyncio.create_task(patience.wait())
    await asyncio.wait((going, enough), return_when=asyncio.FIRST_COMPLETED)
    went_through = going.done()
    going.cancel()
    enough.cancel()
    await asyncio.gather(going, enough, return_exceptions=True)
    return went_through


@both
async def test_a_partition_without_a_committed_offset_was_read_and_comes_again(whose: Whose, kafka: FakeKafka) -> None:
    consumer = consumer_of(whose, kafka)
    kafka.begins = {PARTITION: 2}
    await assign(consumer, kafka, [0])
    kafka.position = {PARTITION: 9}  # fetched, and thrown away because of the rebalance

    await wait_empty_as_far_as_it_goes(consumer, revoke(consumer, kafka))
    await assign(consumer, kafka, [0])

    assert kafka.position == {PARTITION: 9 if whose == "stock" else 2}


@both
async def test_kafka_does_not_take_a_commit(whose: Whose, kafka: FakeKafka) -> None:
    consumer = consumer_of(whose, kafka)
    await assign(consumer, kafka, [0])
    consumer.ack(deliver(consumer, 0))
    kafka.refuses_commits = True
    await consumer.commit()

    kafka.refuses_commits = False
    await consumer.commit()

    assert kafka.committed == ({} if whose == "stock" else {PARTITION: 1})


@both
async def test_a_partition_is_held_back_while_what_was_fetched_of_it_is_delivered(
    whose: Whose, kafka: FakeKafka
) -> None:
    """``pause_partitions`` is Faust's way, and ``on_buffer_full`` the one that our app takes."""
    consumer = consumer_of(whose, kafka)
    await assign(consumer, kafka, [0])
    consumer.app._assignment = kafka.assigned
    records = {PARTITION: [record(offset) for offset in range(3)]}

    async def getmany(**_: object) -> dict[TP, list[ConsumerRecord[bytes, bytes]]]:
        return records

    consumer._getmany = getmany
    seen = []
    async for _, message in consumer.getmany(timeout=1.0):
        seen.append(message.offset)
        if whose == "stock":
            consumer.pause_partitions([PARTITION])
        else:
            consumer.on_buffer_full(PARTITION)

    assert seen == ([0] if whose == "stock" else [0, 1, 2])
    assert PARTITION not in consumer._get_active_partitions()


def record(offset: int) -> ConsumerRecord[bytes, bytes]:
    """Return a record of aiokafka's."""
    return ConsumerRecord(TOPIC, 0, offset, 0, 0, b"c", b"{}", None, 1, 2, [])


@both
async def test_a_partition_is_fetched_again_that_another_worker_has_by_now(whose: Whose, kafka: FakeKafka) -> None:
    consumer = consumer_of(whose, kafka)
    await assign(consumer, kafka, [0, 1])
    consumer.on_buffer_full(PARTITION)
    await revoke(consumer, kafka)
    await assign(consumer, kafka, [1])

    consumer.on_buffer_drop(PARTITION)

    # aiokafka raises when it is asked for a partition that is not its own.
    assert (PARTITION in consumer._get_active_partitions()) == (whose == "stock")


@pytest.mark.parametrize(("whose", "milliseconds"), [("stock", 1500), ("ours", 100)])
async def test_how_long_a_broker_may_hold_an_empty_fetch(whose: Whose, milliseconds: int, kafka: FakeKafka) -> None:
    """A rebalance waits for it."""
    consumer = consumer_of(whose, kafka)
    thread = consumer._new_consumer_thread()

    made = thread._create_worker_consumer(consumer.transport)

    assert made._fetch_max_wait_ms == milliseconds


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer whose brokers take nothing."""

    async def send(*_: object, **__: object) -> asyncio.Future[None]:
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failed.set_exception(ConnectionError("no broker"))
        failed.exception()  # as a producer's log does: nobody else hears of it
        return failed

    monkeypatch.setattr(chat, "_producer", type("Producer", (), {"send": staticmethod(send)})())


class Asking:
    """A fetcher's client, at a broker that does not lead the partition any more."""

    def __init__(self) -> None:
        self._client = self
        self._isolation_level = 0
        self.asked_who_leads = 0

    async def send(self, _node: int, _request: object) -> object:
        raise NotLeaderForPartitionError

    def force_metadata_update(self) -> None:
        self.asked_who_leads += 1


@both
async def test_a_partition_has_another_leader_when_its_offsets_are_asked_for(whose: Whose) -> None:
    ours = Fetcher.__dict__["_proc_offset_request"]  # as the app's start has left it
    stock = ours.args[0]
    asking = Asking()

    with pytest.raises(NotLeaderForPartitionError):
        await (stock(asking, 1, {}) if whose == "stock" else ours.__get__(asking)(1, {}))

    assert asking.asked_who_leads == (0 if whose == "stock" else 1)


@both
@pytest.mark.usefixtures("refusing")
async def test_kafka_does_not_take_a_record(whose: Whose) -> None:
    """Faust hands out a future that its agents need not look at, and commits what they worked from all the same."""
    if whose == "stock":
        _ = await chat.producer.send("turns", b"c", b"{}", 0, None, None)
    else:
        with pytest.raises(LogUnavailable, match="no broker"):
            await chat.publish(chat.topics_of.turns, "c", question("t"))


def test_a_send_that_hangs_is_given_up_in_half_a_minute_and_not_in_twenty() -> None:
    assert faust.App("stock", broker="kafka://127.0.0.1:1").conf.producer_request_timeout == 1200
    assert chat.conf.producer_request_timeout == 30


def test_the_app_promises_at_least_once() -> None:
    assert not chat.in_transaction
    assert chat.conf.stream_wait_empty  # without it, Faust cancels and commits what is in work on SIGTERM
