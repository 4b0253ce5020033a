"""The token log on a broker: what the mock cluster cannot show, which is time, retention and many at once."""

import asyncio
import random
import time
from collections.abc import AsyncIterator

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
from tests.support.turns import claim, end, whole, words

PARTITIONS = 4


@pytest.fixture
def admin(services: Services) -> AdminClient:
    return AdminClient({"bootstrap.servers": services.bootstrap, "log_level": 0})


@pytest.fixture
async def topic(admin: AdminClient, names: Names) -> AsyncIterator[str]:
    name = f"{names.topic_prefix}tokens"
    await asyncio.to_thread(admin.create_topics([NewTopic(name, PARTITIONS, 1)])[name].result)
    yield name
    await asyncio.to_thread(admin.delete_topics([name])[name].result)


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


async def collect(token_log: TokenLog, turn_id: str, partition: int, since: int = 0) -> list[Token]:
    pieces: list[Token] = []
    await token_log.follow(turn_id, partition, since, -1, pieces.extend)
    return pieces


def new_turn(partition: int) -> str:
    return new_turn_id(time.time_ns() // 1_000_000, partition, random.getrandbits(62))


async def answer(token_log: TokenLog, turn_id: str, partition: int, count: int) -> None:
    await token_log.put(partition, claim(turn_id))
    for token in words(turn_id, 1, count):
        if (room := token_log.room(partition)) is not None:
            await room
        token_log.append(partition, token)
        await asyncio.sleep(0.002)
    await token_log.put(partition, end(turn_id, count + 1))


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


async def test_a_token_too_big_for_kafka_is_lost_aloud_and_at_once(real_kafka: Services, names: Names) -> None:
    admin = AdminClient({"bootstrap.servers": real_kafka.bootstrap, "log_level": 0})
    topic = f"{names.topic_prefix}small"
    await asyncio.to_thread(admin.create_topics([NewTopic(topic, 1, 1)])[topic].result)
    async with (
        open_log_reader(real_kafka.bootstrap) as reader,
        open_token_log(real_kafka.bootstrap, topic, log_reader=reader) as token_log,
    ):
        await token_log.put(0, claim("t"))
        async with asyncio.timeout(5):
            with pytest.raises(LogUnavailable, match="MessageSizeTooLarge"):
                await token_log.put(0, Token("t", 1, 1, "end", "x" * 2_000_000))
        await token_log.put(0, claim("t", epoch=2))
    await asyncio.to_thread(admin.delete_topics([topic])[topic].result)


async def test_a_turn_beyond_retention_is_expired(real_kafka: Services, names: Names) -> None:
    admin = AdminClient({"bootstrap.servers": real_kafka.bootstrap, "log_level": 0})
    topic = f"{names.topic_prefix}expiring"
    await asyncio.to_thread(admin.create_topics([NewTopic(topic, 1, 1)])[topic].result)
    async with (
        open_log_reader(real_kafka.bootstrap) as reader,
        open_token_log(real_kafka.bootstrap, topic, log_reader=reader) as token_log,
    ):
        await answer(token_log, "old", 0, 3)
        kept_from = await token_log.put(0, claim("kept"))
        await token_log.put(0, end("kept", 1))
        deleted = admin.delete_records([TopicPartition(topic, 0, kept_from)])
        await asyncio.gather(*(asyncio.wrap_future(future) for future in deleted.values()))
        # Another worker, whose tail has not seen any of it.
        async with open_token_log(real_kafka.bootstrap, topic, log_reader=reader) as fresh:
            with pytest.raises(Expired):
                await collect(fresh, "old", 0)
            assert len(await collect(fresh, "kept", 0)) == 2
    await asyncio.to_thread(admin.delete_topics([topic])[topic].result)
