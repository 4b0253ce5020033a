"""The log reader returns what it is asked for, and says so where it cannot."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from confluent_kafka import Message

from adapters.log_reader import LogReader, open_log_reader
from domain.errors import LogUnavailable
from tests.support.mock_kafka import MockKafka, open_mock_kafka

TOPIC = "records"


@pytest.fixture
def kafka() -> Iterator[MockKafka]:
    with open_mock_kafka() as kafka:
        kafka.create(TOPIC)
        for number in range(10):
            kafka.write(TOPIC, 0, str(number).encode())
        kafka.write(TOPIC, 1, b"elsewhere")
        yield kafka


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (3, 7), (9, 10), (5, 5), (7, 3), (0, 99), (50, 60)])
async def test_a_range_is_returned_as_far_as_the_log_has_it(kafka: MockKafka, start: int, stop: int) -> None:
    async with open_log_reader(kafka.bootstrap) as reader:
        records = await reader.read(TOPIC, 0, start, stop)

    assert records == [(number, str(number).encode()) for number in range(10) if start <= number < stop]


async def test_one_warm_consumer_serves_many_ranges(kafka: MockKafka) -> None:
    async with open_log_reader(kafka.bootstrap, threads=1) as reader:
        for _ in range(3):
            assert len(await reader.read(TOPIC, 0, 2, 8)) == 6
            assert await reader.read(TOPIC, 1, 0, 1) == [(0, b"elsewhere")]


async def test_more_who_read_than_threads_are_served_in_turn(kafka: MockKafka) -> None:
    async with open_log_reader(kafka.bootstrap, threads=2) as reader:
        ranges = await asyncio.gather(*(reader.read(TOPIC, 0, start, start + 1) for start in range(10)))

    assert ranges == [[(number, str(number).encode())] for number in range(10)]


async def test_the_ends_of_partitions_are_asked_for_together(kafka: MockKafka) -> None:
    async with open_log_reader(kafka.bootstrap) as reader:
        assert await reader.ends(TOPIC, [0, 1, 2]) == {0: 10, 1: 1, 2: 0}


async def test_a_visitor_that_has_seen_enough_is_shown_no_more(kafka: MockKafka) -> None:
    seen: list[int | None] = []

    def visit(record: Message) -> bool:
        seen.append(record.offset())
        return len(seen) == 4

    async with open_log_reader(kafka.bootstrap) as reader:
        await reader.scan(TOPIC, 0, 0, 10, visit)

    assert seen == [0, 1, 2, 3]


async def test_an_error_of_the_visitor_is_the_callers(kafka: MockKafka) -> None:
    async with open_log_reader(kafka.bootstrap, threads=1) as reader:
        with pytest.raises(ZeroDivisionError):
            await reader.scan(TOPIC, 0, 0, 10, lambda _: 1 // 0 == 1)

        assert len(await reader.read(TOPIC, 0, 0, 10)) == 10


async def test_a_caller_that_gives_up_frees_its_thread(kafka: MockKafka) -> None:
    shown, go_on = threading.Event(), threading.Event()

    def visit(_: object) -> bool:
        shown.set()
        return not go_on.wait(10)

    async with open_log_reader(kafka.bootstrap, threads=1) as reader:
        reading = asyncio.create_task(reader.scan(TOPIC, 0, 0, 10, visit))
        await asyncio.to_thread(shown.wait, 10)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        go_on.set()

        assert len(await reader.read(TOPIC, 0, 0, 10)) == 10


async def test_a_broker_that_is_gone_is_named_as_the_reason(kafka: MockKafka) -> None:
    async with open_log_reader(kafka.bootstrap) as warm:
        reader = LogReader(kafka.bootstrap, patience=0.3)
        kafka.die()

        with pytest.raises(LogUnavailable, match="Kafka"):
            await reader.ends(TOPIC, [0])
        with pytest.raises(LogUnavailable, match="in time"):
            await reader.read(TOPIC, 0, 0, 10)
        await reader.close()
        with pytest.raises(LogUnavailable, match="closed"):
            await reader.read(TOPIC, 0, 0, 10)
    assert warm is not reader
