"""The token log on a broker: what the mock cluster cannot show, which is time, retention and many at once."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from adapters.log_reader import LogReader, open_log_reader
from adapters.token_log import TokenLog, open_token_log
from domain.errors import Expired, LogUnavailable
from domain.ids import new_turn_id
from domain.tokens import Token, text_of
from tests.conftest import Names
from tests.support.services import Services
from tests.support.turns import answer, claim, collect, end, whole, words

PARTITIONS = 4


@pytest.fixture
def admin(services: Services) -> AdminClient:
    return AdminClient({"bootstrap.servers": services.bootstrap, "log_level": 0})


@asynccontextmanager
async def created(admin: AdminClient, topic: str, partitions: int) -> AsyncIterator[str]:
    await asyncio.to_thread(admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result)
    yield topic
    await asyncio.to_thread(admin.delete_topics([topic])[topic].result)


@pytest.fixture
async def topic(admin: AdminClient, names: Names) -> AsyncIterator[str]:
    async with created(admin, f"{names.topic_prefix}tokens", PARTITIONS) as topic:
        yield topic


@pytest.fixture
async def reader(services: Services) -> AsyncIterator[LogReader]:
    async with open_log_reader(services.bootstrap) as reader:
        yield reader


@pytest.fixture
async def workers(services: Services, topic: str, reader: LogReader) -> AsyncIterator[list[TokenLog]]:
    """The token logs of two workers."""
    pause = 0 if services.real else 5
    async with (
        open_token_log(services.bootstrap, topic, log_reader=reader, idle_fetch_pause_ms=pause) as one,
        open_token_log(services.bootstrap, topic, log_reader=reader, idle_fetch_pause_ms=pause) as other,
    ):
        yield [one, other]


def new_turn(partition: int) -> str:
    return new_turn_id(time.time_ns() // 1_000_000, partition, random.getrandbits(62))


async def test_forty_answers_reach_readers_on_both_workers_whole(workers: list[TokenLog]) -> None:
    owner, other = workers
    await owner.own(set(range(PARTITIONS)))
    turns = [(new_turn(number % PARTITIONS), number % PARTITIONS) for number in range(40)]
    reading = [asyncio.create_task(collect(worker, *turn)) for worker in workers for turn in turns]

    await asyncio.gather(*(answer(owner, turn_id, partition, 100) for turn_id, partition in turns))

    assert await asyncio.gather(*reading) == [whole(turn_id, 100) for turn_id, _ in turns] * 2
    late = await asyncio.gather(*(collect(other, *turn) for turn in turns))
    assert late == [whole(turn_id, 100) for turn_id, _ in turns]


async def test_a_new_owner_goes_on_where_the_log_ends(workers: list[TokenLog]) -> None:
    old, new = workers
    turn_id = new_turn(0)
    await old.own({0})
    reading = asyncio.create_task(collect(old, turn_id, 0))
    await old.put(0, claim(turn_id, 1))
    for token in words(turn_id, 1, 20, epoch=1):
        old.append(0, token)
    await old.put(0, Token(turn_id, 1, 21, "token", "w21 "))

    await new.own({0})
    offset = await new.put(0, claim(turn_id, 2))
    for token in words(turn_id, 22, 30, epoch=1):
        old.append(0, token)
    await new.until(0, offset)
    async with new.attach(turn_id, 0, 0) as turn:
        resume = turn.fold.next
    for token in words(turn_id, resume, 39, epoch=2):
        new.append(0, token)
    await new.put(0, end(turn_id, 40, epoch=2))

    assert resume == 22
    assert text_of(await reading) == text_of(words(turn_id, 1, 39))
    assert await collect(new, turn_id, 0) == await collect(old, turn_id, 0)


async def test_a_record_is_found_by_its_time(workers: list[TokenLog], reader: LogReader, topic: str) -> None:
    token_log = workers[0]
    await token_log.put(1, claim("before"))
    await asyncio.sleep(0.05)
    asked_at = time.time_ns() // 1_000_000
    await token_log.put(1, claim("wanted"))
    await token_log.put(1, claim("after"))
    shown: list[bytes] = []

    def match(raw: bytes) -> int | None:
        shown.append(raw)
        return len(raw) if b"wanted" in raw else None

    assert await reader.find(topic, 1, asked_at, match)
    assert all(b"before" not in raw for raw in shown)
    assert await reader.find(topic, 1, asked_at, lambda raw: b"nothing" in raw or None) is None
    assert await reader.find(topic, 1, asked_at + 3_600_000, lambda _: True) is None
    assert await reader.find(topic, 1, asked_at - 3_600_000, lambda _: True, within_ms=1000) is None


@dataclass(frozen=True, slots=True)
class OnRealKafka:
    """A topic of one partition on a real Kafka, and who reads and writes it."""

    bootstrap: str
    admin: AdminClient
    topic: str
    reader: LogReader
    token_log: TokenLog


@pytest.fixture
async def real(real_kafka: Services, names: Names) -> AsyncIterator[OnRealKafka]:
    bootstrap = real_kafka.bootstrap
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    async with (
        created(admin, f"{names.topic_prefix}real", 1) as topic,
        open_log_reader(bootstrap) as reader,
        open_token_log(bootstrap, topic, log_reader=reader) as token_log,
    ):
        yield OnRealKafka(bootstrap, admin, topic, reader, token_log)


async def test_a_token_too_big_for_kafka_is_lost_aloud_and_at_once(real: OnRealKafka) -> None:
    await real.token_log.put(0, claim("t"))
    async with asyncio.timeout(5):
        with pytest.raises(LogUnavailable, match="MessageSizeTooLarge"):
            await real.token_log.put(0, Token("t", 1, 1, "end", "x" * 2_000_000))
    await real.token_log.put(0, claim("t", epoch=2))


async def test_a_turn_beyond_retention_is_expired(real: OnRealKafka) -> None:
    await answer(real.token_log, "old", 0, 3)
    kept_from = await real.token_log.put(0, claim("kept"))
    await real.token_log.put(0, end("kept", 1))
    deleted = real.admin.delete_records([TopicPartition(real.topic, 0, kept_from)])
    await asyncio.gather(*(asyncio.wrap_future(future) for future in deleted.values()))
    # Another worker, whose tail has not seen any of it.
    async with open_token_log(real.bootstrap, real.topic, log_reader=real.reader) as fresh:
        with pytest.raises(Expired):
            await collect(fresh, "old", 0)
        assert len(await collect(fresh, "kept", 0)) == 2
