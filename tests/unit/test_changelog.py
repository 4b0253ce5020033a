"""Copying changelogs into stores, on librdkafka's mock cluster: what is copied, what is set aside, and when it ends."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, cast

import msgspec
import pytest
from confluent_kafka import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.changelog import CLAIM_KEY, Changelogs, Progress, Replica
from adapters.rocksdb import Database, Origin
from tests.support.mock_kafka import MockKafka, open_mock_kafka

TOPIC = "group-rows-changelog"
PARTITIONS = 4


@pytest.fixture(scope="module")
def kafka() -> Iterator[MockKafka]:
    """A cluster for all tests of this module; each has a topic of its own."""
    with open_mock_kafka() as cluster:
        yield cluster


@pytest.fixture
def topic(kafka: MockKafka, request: pytest.FixtureRequest) -> str:
    """A changelog of this test alone."""
    return kafka.create(f"{request.node.name}-changelog")


@asynccontextmanager
async def copying(kafka: MockKafka) -> AsyncIterator[tuple[Changelogs, list[tuple[int, str]]]]:
    """Yield changelogs, and the offsets and reasons of what they set aside."""
    bad: list[tuple[int, str]] = []

    def note(record: Message, reason: str) -> None:
        bad.append((record.offset() or 0, reason))

    changelogs = Changelogs(kafka.bootstrap, PARTITIONS, note, topic_id=lambda _: "the mock cluster has no ids")
    try:
        yield changelogs, bad
    finally:
        await changelogs.close()


@pytest.fixture
def replica(topic: str, tmp_path: Path) -> Iterator[Replica]:
    """An empty copy of partition 0."""
    database = Database(tmp_path / "rows-0.db")
    yield Replica(topic, 0, database)
    database.close()


async def restored(kafka: MockKafka, *replicas: Replica) -> list[tuple[int, str]]:
    """Restore; return what was set aside."""
    async with copying(kafka) as (changelogs, bad), asyncio.timeout(30):
        assert await changelogs.restore(Progress(replicas))
    return bad


def rows(replica: Replica) -> dict[bytes, bytes]:
    """Return what a copy holds."""
    return dict(replica.database.items())


async def test_a_copy_has_the_last_value_of_every_key_and_no_deleted_one(
    kafka: MockKafka, topic: str, replica: Replica
) -> None:
    for number in range(3000):
        kafka.write(topic, 0, b"%d" % number, key=b"key-%d" % (number % 100))
    kafka.write(topic, 0, None, key=b"key-7")

    bad = await restored(kafka, replica)

    assert rows(replica) == {b"key-%d" % n: b"%d" % (2900 + n) for n in range(100) if n != 7}
    assert replica.database.offset == 3000
    assert bad == []


async def test_empty_partitions_are_restored_at_once(kafka: MockKafka, topic: str, tmp_path: Path) -> None:
    replicas = [Replica(topic, n, Database(tmp_path / f"{n}.db")) for n in range(PARTITIONS)]

    await restored(kafka, *replicas)

    assert [replica.database.offset for replica in replicas] == [None] * PARTITIONS
    for replica in replicas:
        replica.database.close()


async def test_a_copy_reads_on_from_its_offset(kafka: MockKafka, topic: str, replica: Replica) -> None:
    kafka.write(topic, 0, b"first", key=b"a")
    await restored(kafka, replica)
    kafka.write(topic, 0, b"second", key=b"b")

    async with copying(kafka) as (changelogs, _):
        progress = Progress([replica])
        await changelogs.restore(progress)

    assert rows(replica) == {b"a": b"first", b"b": b"second"}
    assert progress.records == 1


async def test_a_record_that_is_no_row_is_set_aside_and_passed(kafka: MockKafka, topic: str, replica: Replica) -> None:
    replica.check = msgspec.json.Decoder(dict[str, int]).decode
    kafka.write(topic, 0, b'{"n":1}', key=b"good")
    kafka.write(topic, 0, b'{"n":1}')
    kafka.write(topic, 0, b"{broken", key=b"bad")
    kafka.write(topic, 0, b'{"n":"text"}', key=b"wrong")
    kafka.write(topic, 0, b'{"n":2}', key=b"last")

    bad = await restored(kafka, replica)

    assert rows(replica) == {b"good": b'{"n":1}', b"last": b'{"n":2}'}
    assert [offset for offset, _ in bad] == [1, 2, 3]
    assert replica.database.offset == 4


async def test_a_store_ahead_of_its_changelog_is_rebuilt(kafka: MockKafka, topic: str, replica: Replica) -> None:
    kafka.write(topic, 0, b"value", key=b"kept")
    await restored(kafka, replica)
    replica.database.copy([(b"lost", b"Kafka acknowledged it and died")], 5)

    await restored(kafka, replica)

    assert rows(replica) == {b"kept": b"value"}
    assert replica.database.offset == 0


async def test_a_store_that_has_seen_what_the_claim_took_the_place_of_is_rebuilt(
    kafka: MockKafka, topic: str, replica: Replica
) -> None:
    kafka.write(topic, 0, b"value", key=b"kept")
    await restored(kafka, replica)
    replica.database.copy([(b"lost", b"Kafka acknowledged it and died")], 1)
    claimed(kafka, replica, 2, 1)

    replica.position = 0  # as a new recovery begins
    await restored(kafka, replica)

    assert rows(replica) == {b"kept": b"value"}
    assert (replica.database.offset, replica.database.epoch) == (1, 2)


@pytest.mark.parametrize(
    "other", [{"topic": "of another table"}, {"partitions": 5}, {"topic_id": "made anew"}, {"format": 0}]
)
async def test_a_store_made_of_something_else_is_rebuilt(
    kafka: MockKafka, tmp_path: Path, other: dict[str, str | int]
) -> None:
    topic = kafka.create(f"foreign-{''.join(other)}-changelog")
    replica = Replica(topic, 0, Database(tmp_path / "rows-0.db"))
    kafka.write(topic, 0, b"value", key=b"mine")
    await restored(kafka, replica)
    origin = replica.database.origin
    assert origin is not None
    replica.database.made_of(msgspec.structs.replace(origin, **other))
    replica.database.put(b"foreign", b"row")

    await restored(kafka, replica)

    assert rows(replica) == {b"mine": b"value"}
    assert replica.database.origin == origin
    replica.database.close()


@pytest.mark.parametrize(("first", "kept"), [(2, True), (3, True), (4, False)])
async def test_a_store_that_ends_before_its_changelog_begins_is_rebuilt(
    kafka: MockKafka, replica: Replica, first: int, *, kept: bool
) -> None:
    replica.database.made_of(Origin(replica.topic, "the mock cluster has no ids", PARTITIONS))
    replica.database.copy([(b"key", b"its deletion may be gone")], 2)

    async with copying(kafka) as (changelogs, _):
        changelogs._fit(replica, first, 9)  # the mock cluster cannot delete records

    assert bool(rows(replica)) is kept


async def test_a_store_that_does_not_say_what_it_is_made_of_is_rebuilt(
    kafka: MockKafka, topic: str, replica: Replica
) -> None:
    replica.database.copy([(b"of an older version", b"row")], 0)
    kafka.write(topic, 0, b"value", key=b"mine")

    await restored(kafka, replica)

    assert rows(replica) == {b"mine": b"value"}
    assert isinstance(replica.database.origin, Origin)


async def test_a_follower_copies_what_comes_until_it_is_cancelled(
    kafka: MockKafka, topic: str, replica: Replica
) -> None:
    async with copying(kafka) as (changelogs, _), asyncio.timeout(30):
        following = asyncio.create_task(changelogs.follow(Progress([replica])))
        for number in range(3):
            kafka.write(topic, 0, b"%d" % number, key=b"key")
            while rows(replica) != {b"key": b"%d" % number}:
                await asyncio.sleep(0.01)

        await changelogs.cancel()

        await following


async def test_a_cancelled_restore_says_so_and_can_be_taken_up_again(
    kafka: MockKafka, topic: str, replica: Replica
) -> None:
    kafka.write(topic, 0, b"value", key=b"key")
    async with copying(kafka) as (changelogs, _):
        restoring = asyncio.create_task(changelogs.restore(Progress([replica])))
        await asyncio.sleep(0)  # it has begun
        changelogs.stop_soon()
        assert not await restoring

        assert await changelogs.restore(Progress([replica]))

    assert rows(replica) == {b"key": b"value"}


async def test_a_restore_waits_while_kafka_is_away_and_can_be_cancelled_there(tmp_path: Path) -> None:
    replica = Replica("any-changelog", 0, Database(tmp_path / "rows-0.db"))
    with open_mock_kafka() as kafka:
        bootstrap = kafka.bootstrap
    changelogs = Changelogs(bootstrap, PARTITIONS, lambda *_: None, topic_id=lambda _: "")
    restoring = asyncio.create_task(changelogs.restore(Progress([replica])))
    await asyncio.sleep(0)  # it has begun

    async with asyncio.timeout(30):
        await changelogs.cancel()

    assert not await restoring
    await changelogs.close()
    replica.database.close()


# -- the fence: who may write to a changelog


def claimed(kafka: MockKafka, replica: Replica, epoch: int, offset: int) -> None:
    """Claim a changelog, as its new owner does; the claim is expected at this offset."""
    kafka.write(replica.topic, 0, b"", key=CLAIM_KEY, epoch=epoch)
    replica.claim, replica.epoch = offset, epoch


async def test_what_a_replaced_worker_writes_after_the_claim_does_not_count(
    kafka: MockKafka, topic: str, replica: Replica
) -> None:
    kafka.write(topic, 0, b"first", key=b"a", epoch=1)
    claimed(kafka, replica, 2, 1)
    kafka.write(topic, 0, b"second", key=b"a", epoch=2)
    kafka.write(topic, 0, b"of the sleeper", key=b"a", epoch=1)
    kafka.write(topic, 0, None, key=b"b", epoch=1)

    await restored(kafka, replica)

    assert rows(replica) == {b"a": b"second"}
    assert replica.database.epoch == 2
    assert replica.database.fenced == {b"a", b"b"}


async def test_a_hidden_row_is_no_longer_hidden_once_it_is_written_again(
    kafka: MockKafka, topic: str, replica: Replica
) -> None:
    claimed(kafka, replica, 2, 0)
    for key in (b"a", b"b"):
        kafka.write(topic, 0, b"kept", key=key, epoch=2)
        kafka.write(topic, 0, b"of the sleeper", key=key, epoch=1)
    await restored(kafka, replica)
    kafka.write(topic, 0, b"again", key=b"a", epoch=2)
    replica.database.close()
    replica.database = Database(replica.database.path)  # what is hidden is remembered on disk
    assert replica.database.fenced == {b"a", b"b"}

    await restored(kafka, replica)
    assert replica.database.fenced == {b"b"}
    replica.database.mended(b"b")

    assert replica.database.fenced == frozenset()
    assert rows(replica) == {b"a": b"again", b"b": b"kept"}


async def test_a_store_with_a_row_of_its_own_that_does_not_count_is_rebuilt(
    kafka: MockKafka, topic: str, replica: Replica
) -> None:
    claimed(kafka, replica, 1, 0)
    await restored(kafka, replica)
    replica.database.own(1)
    replica.database.put(b"a", b"written in its sleep")
    claimed(kafka, replica, 2, 1)  # by another worker
    kafka.write(topic, 0, b"written in its sleep", key=b"a", epoch=1)
    claimed(kafka, replica, 3, 3)

    await restored(kafka, replica)

    assert rows(replica) == {}
    assert replica.database.epoch == 3


async def test_a_caught_up_store_takes_its_claim_without_reading_it(
    kafka: MockKafka, topic: str, replica: Replica
) -> None:
    kafka.write(topic, 0, b"value", key=b"a", epoch=1)
    await restored(kafka, replica)
    claimed(kafka, replica, 2, 1)

    async with copying(kafka) as (changelogs, _):
        progress = Progress([replica])
        await changelogs.restore(progress)

    assert (replica.database.offset, replica.database.epoch, progress.records) == (1, 2, 0)
    assert rows(replica) == {b"a": b"value"}


class Record(NamedTuple):
    """A changelog's record, as librdkafka hands it on."""

    at: int
    epoch: int
    name: bytes
    content: bytes | None

    def topic(self) -> str:
        return "rows"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.at

    def error(self) -> None:
        return None

    def key(self) -> bytes:
        return self.name

    def value(self) -> bytes | None:
        return self.content

    def headers(self) -> list[tuple[str, bytes]]:
        return [("epoch", b"%d" % self.epoch)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([b"a", b"b", b"c", CLAIM_KEY]), st.booleans()), max_size=25),
    st.lists(st.integers(1, 6), max_size=25),
)
def test_batches_of_any_size_leave_what_the_log_says_record_by_record(
    log: list[tuple[int, bytes, bool]], sizes: list[int]
) -> None:
    records = [Record(at, epoch, key, b"%d" % at if kept else None) for at, (epoch, key, kept) in enumerate(log)]
    kept: dict[bytes, bytes | None] = {}
    hidden: set[bytes] = set()
    highest = -1
    for record in records:
        counts = record.epoch >= highest
        highest = max(highest, record.epoch)
        if record.name == CLAIM_KEY:
            continue
        if counts:
            kept[record.name] = record.content
            hidden.discard(record.name)
        else:
            hidden.add(record.name)

    with TemporaryDirectory() as folder:
        replica = Replica("rows", 0, Database(Path(folder, "rows-0.db")))
        changelogs = Changelogs("127.0.0.1:1", 1, lambda *_: None, topic_id=lambda _: "")
        left = records
        for size in [*sizes, *[6] * len(records)]:
            changelogs._write({("rows", 0): replica}, cast("list[Message]", left[:size]))
            left = left[size:]
            replica.database.close()
            replica.database = Database(replica.database.path)  # a crash between any two batches

        assert rows(replica) == {key: value for key, value in kept.items() if value is not None}
        assert replica.database.fenced == hidden
        assert replica.database.epoch == highest
        replica.database.close()
