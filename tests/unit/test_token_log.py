"""What readers of the token log are promised, on a log in memory and on librdkafka's mock cluster."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from adapters.frames import encode
from adapters.log_reader import open_log_reader
from adapters.token_log import TokenLog, open_token_log
from adapters.token_tail import Batch, Cut, Read, TokenTail
from domain.errors import LogUnavailable
from domain.tokens import Token, text_of
from tests.support.mock_kafka import MockKafka, open_mock_kafka
from tests.support.turns import claim, end, whole, words

TOPIC = "tokens"


@pytest.fixture
def kafka() -> Iterator[MockKafka]:
    with open_mock_kafka() as kafka:
        kafka.create(TOPIC)
        yield kafka


class Bad(list[tuple[int, int, bytes, str]]):
    """The bad frames that were reported."""

    def report(self, partition: int, offset: int, raw: bytes, reason: str) -> None:
        self.append((partition, offset, raw, reason))


@pytest.fixture
def bad() -> Bad:
    return Bad()


@pytest.fixture
async def token_log(kafka: MockKafka, bad: Bad) -> AsyncIterator[TokenLog]:
    async with (
        open_log_reader(kafka.bootstrap) as log_reader,
        open_token_log(kafka.bootstrap, TOPIC, log_reader=log_reader, on_bad_frame=bad.report) as token_log,
    ):
        yield token_log


@pytest.fixture
async def other(kafka: MockKafka) -> AsyncIterator[TokenLog]:
    """The token log of another worker."""
    async with (
        open_log_reader(kafka.bootstrap) as log_reader,
        open_token_log(kafka.bootstrap, TOPIC, log_reader=log_reader) as token_log,
    ):
        yield token_log


async def collect(token_log: TokenLog, turn_id: str, after: int = -1, partition: int = 0) -> list[Token]:
    pieces: list[Token] = []
    await token_log.follow(turn_id, partition, 0, after, pieces.extend)
    return pieces


async def write(token_log: TokenLog, tokens: list[Token], partition: int = 0) -> None:
    """Write what a worker writes: claims and ends are put, the rest appended with pauses."""
    for token in tokens:
        if token.kind in {"claim", "end"}:
            await token_log.put(partition, token)
        else:
            if (room := token_log.room(partition)) is not None:
                await room
            token_log.append(partition, token)
            await asyncio.sleep(0)


async def test_a_reader_that_came_first_and_one_that_comes_late_see_the_same(token_log: TokenLog) -> None:
    await token_log.own({0})
    early = asyncio.create_task(collect(token_log, "t"))
    await asyncio.sleep(0)
    await write(token_log, whole("t", 200))

    assert await early == whole("t", 200)
    assert await collect(token_log, "t") == whole("t", 200)


async def test_a_reader_on_another_worker_sees_the_same(token_log: TokenLog, other: TokenLog) -> None:
    middle = asyncio.Event()

    async def answer() -> None:
        await write(token_log, [claim("t"), *words("t", 1, 100)])
        middle.set()
        await write(token_log, [*words("t", 101, 200), end("t", 201)])

    answering = asyncio.create_task(answer())
    await middle.wait()

    assert await collect(other, "t") == whole("t", 200)
    await answering
    assert await collect(other, "t") == whole("t", 200)


async def test_a_reader_goes_on_after_the_last_piece_that_it_has(token_log: TokenLog) -> None:
    await write(token_log, whole("t", 9))

    assert await collect(token_log, "t", after=4) == [*words("t", 5, 9), end("t", 10)]
    assert await collect(token_log, "t", after=10) == []
    assert await collect(token_log, "t", after=99) == []


async def test_a_reader_that_is_cancelled_again_and_again_misses_and_repeats_nothing(token_log: TokenLog) -> None:
    await token_log.own({0})
    answering = asyncio.create_task(write(token_log, whole("t", 300)))
    seen: list[Token] = []
    while not seen or seen[-1].kind != "end":
        last = seen[-1].seq if seen else -1
        reading = asyncio.create_task(token_log.follow("t", 0, 0, last, seen.extend))
        await asyncio.wait([reading], timeout=0.003)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    await answering
    assert seen == whole("t", 300)


async def test_a_paused_worker_that_wakes_up_is_not_read(token_log: TokenLog, other: TokenLog) -> None:
    await token_log.own({0})
    reading = asyncio.create_task(collect(token_log, "t"))
    await write(other, [claim("t", 1), *words("t", 1, 3, epoch=1)])
    await other.put(0, claim("marker"))
    offset = await token_log.put(0, claim("t", 2))
    await token_log.until(0, offset)
    async with token_log.attach("t", 0, 0) as turn:
        resumed = turn.fold.next
    assert resumed == 4

    await write(other, [Token("t", 1, 4, "token", "zombie"), end("t", 5, epoch=1)])
    await write(token_log, [*words("t", 4, 6, epoch=2), end("t", 7, epoch=2)])

    assert text_of(await reading) == text_of(words("t", 1, 6))


async def test_a_record_that_is_no_frame_is_reported_and_passed_over(
    token_log: TokenLog, kafka: MockKafka, bad: Bad
) -> None:
    await token_log.own({0})
    await token_log.put(0, claim("t"))
    kafka.write(TOPIC, 0, b"garbage")
    kafka.write(TOPIC, 0, encode([])[:1] + b"\x09\x90")
    await write(token_log, [*words("t", 1, 2), end("t", 3)])

    assert await collect(token_log, "t") == whole("t", 2)
    assert [(partition, offset, raw) for partition, offset, raw, _ in bad] == [
        (0, 1, b"garbage"),
        (0, 2, b"\x92\x09\x90"),
    ]
    assert "version 9" in bad[1][3]


async def test_a_tail_says_when_its_place_is_not_in_the_log(kafka: MockKafka) -> None:
    batches: asyncio.Queue[Batch] = asyncio.Queue()
    tail = TokenTail(kafka.bootstrap, TOPIC, batches.put_nowait)
    tail.follow({0: 0, 1: 1000})
    kafka.write(TOPIC, 0, encode([claim("t")]))

    read: Batch = []
    while len(read) < 2:  # in one batch or in two, as the fetches happen to come back
        read += await batches.get()

    assert Cut(1) in read
    assert Read(0, 0, [claim("t")]) in read
    await tail.close()


@pytest.mark.parametrize("idle_pause", [0.0, 0.001])
async def test_a_tail_takes_up_and_leaves_partitions_while_it_runs(kafka: MockKafka, idle_pause: float) -> None:
    batches: asyncio.Queue[Batch] = asyncio.Queue()
    tail = TokenTail(kafka.bootstrap, TOPIC, batches.put_nowait, idle_pause=idle_pause)
    tail.follow({0: 0, 1: 0})
    for number in range(3):
        kafka.write(TOPIC, 0, encode([claim(f"t{number}")]))
        assert await batches.get() == [Read(0, number, [claim(f"t{number}")])]
    tail.leave(0)
    tail.follow({2: 0})
    kafka.write(TOPIC, 2, encode([claim("other")]))
    assert await batches.get() == [Read(2, 0, [claim("other")])]

    kafka.write(TOPIC, 0, encode([claim("unread")]))
    kafka.write(TOPIC, 1, encode([claim("last")]))

    assert await batches.get() == [Read(1, 0, [claim("last")])]
    await tail.close()


async def test_the_end_that_is_told_is_never_beyond_what_is_written_next(token_log: TokenLog, other: TokenLog) -> None:
    for _ in range(5):
        for told in (await token_log.end_offset(0), await other.end_offset(0)):
            assert told <= await token_log.put(0, claim("t"))
        await token_log.own({0})


async def test_a_worker_that_shuts_down_tells_its_readers_to_go_elsewhere(kafka: MockKafka) -> None:
    async with (
        open_log_reader(kafka.bootstrap) as log_reader,
        open_token_log(kafka.bootstrap, TOPIC, log_reader=log_reader) as token_log,
    ):
        reading = asyncio.create_task(collect(token_log, "t"))
        await token_log.put(0, claim("t"))

    with pytest.raises(LogUnavailable):
        await reading
