"""Tokens leave in order, gathered and paced; what Kafka did not take is never passed over in silence."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence

import pytest
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError, NotLeaderForPartitionError

from adapters import token_producer
from adapters.frames import decode
from adapters.leaders import Broker
from adapters.log_reader import LogReader, open_log_reader
from adapters.produce_request import Written
from adapters.token_producer import TokenProducer
from domain.errors import LogUnavailable
from domain.tokens import Fold, Token
from tests.support.mock_kafka import MockKafka, open_mock_kafka
from tests.support.turns import claim, end, whole, words

TOPIC = "tokens"
NOT_LEADER = NotLeaderForPartitionError.errno
TOO_LARGE = MessageSizeTooLargeError.errno
Batches = Sequence[tuple[int, bytes]]


@pytest.fixture
def kafka() -> Iterator[MockKafka]:
    with open_mock_kafka() as kafka:
        kafka.create(TOPIC)
        yield kafka


@pytest.fixture
async def reader(kafka: MockKafka) -> AsyncIterator[LogReader]:
    async with open_log_reader(kafka.bootstrap) as reader:
        yield reader


@pytest.fixture
async def producer(kafka: MockKafka) -> AsyncIterator[TokenProducer]:
    producer = TokenProducer(kafka.bootstrap, TOPIC, frame_ms=5)
    yield producer
    await producer.close()


async def frames(reader: LogReader, partition: int = 0) -> list[list[Token]]:
    stop = (await reader.ends(TOPIC, [partition]))[partition]
    return [decode(raw) for _, raw in await reader.read(TOPIC, partition, 0, stop)]


async def test_what_is_put_never_overtakes_what_was_appended(producer: TokenProducer, reader: LogReader) -> None:
    await producer.put(0, claim("t"))
    for token in words("t", 1, 3):
        producer.append(0, token)
    await producer.put(0, end("t", 4))

    tokens = [token for frame in await frames(reader) for token in frame]
    assert tokens == [claim("t"), *words("t", 1, 3), end("t", 4)]


async def test_a_put_tells_where_it_stands(producer: TokenProducer, reader: LogReader) -> None:
    await producer.put(0, claim("a"))
    producer.append(0, words("a", 1, 1)[0])
    offset = await producer.put(0, claim("b"))

    assert claim("b") in (await frames(reader))[offset]


async def test_claims_of_the_same_moment_share_a_frame(producer: TokenProducer, reader: LogReader) -> None:
    offsets = await asyncio.gather(*(producer.put(0, claim(turn_id)) for turn_id in "abcdef"))

    assert len(set(offsets)) == 1
    assert await frames(reader) == [[claim(turn_id) for turn_id in "abcdef"]]


async def test_tokens_of_many_turns_share_frames(producer: TokenProducer, reader: LogReader) -> None:
    await producer.put(0, claim("first"))
    for turn_id in ("a", "b", "c"):
        for token in words(turn_id, 1, 100):
            producer.append(0, token)
    await producer.put(0, end("first", 1))

    assert [len(frame) for frame in await frames(reader)] == [1, 301]


async def test_a_token_that_comes_alone_goes_without_being_followed(producer: TokenProducer, reader: LogReader) -> None:
    producer.append(0, claim("t"))

    while not await frames(reader):
        await asyncio.sleep(0.01)
    assert await frames(reader) == [[claim("t")]]


async def test_frames_keep_to_their_caps(
    producer: TokenProducer, reader: LogReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_producer, "MAX_FRAME_TOKENS", 50)
    monkeypatch.setattr(token_producer, "MAX_FRAME_BYTES", 1000)
    long = Token("t", 1, 201, "token", "x" * 3000)
    for token in [*words("t", 1, 200), long]:
        producer.append(0, token)
    await producer.put(0, end("t", 202))

    written = await frames(reader)
    assert [token for frame in written for token in frame] == [*words("t", 1, 200), long, end("t", 202)]
    assert max(len(frame) for frame in written) <= 50
    assert [long] in written


async def test_partitions_do_not_wait_for_each_other(producer: TokenProducer, reader: LogReader) -> None:
    await asyncio.gather(*(producer.put(partition, claim(f"t{partition}")) for partition in range(4)))

    assert [await frames(reader, partition) for partition in range(4)] == [[[claim(f"t{p}")]] for p in range(4)]


async def test_a_model_is_held_back_while_too_much_is_unacknowledged(
    producer: TokenProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_producer, "MAX_UNACKNOWLEDGED_TOKENS", 10)
    assert producer.room(0) is None
    for token in words("t", 1, 11):
        producer.append(0, token)

    room = producer.room(1)
    assert room is not None
    waiting = asyncio.ensure_future(room)
    await asyncio.sleep(0)
    assert not waiting.done()

    await waiting


@pytest.fixture
async def impatient(kafka: MockKafka) -> AsyncIterator[TokenProducer]:
    """A producer that soon gives up, to a broker that has just gone."""
    producer = TokenProducer(kafka.bootstrap, TOPIC, frame_ms=5, delivery_seconds=2)
    await producer.put(0, claim("t"))
    kafka.die()
    yield producer
    await producer.close()


async def test_a_put_that_kafka_does_not_take_says_so(impatient: TokenProducer) -> None:
    with pytest.raises(LogUnavailable, match="did not take"):
        await impatient.put(0, end("t", 1))


async def test_a_model_is_held_back_while_a_partition_is_silent(
    impatient: TokenProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_producer, "MAX_UNACKNOWLEDGED_SECONDS", 0)
    putting = asyncio.create_task(impatient.put(0, end("t", 1)))
    await asyncio.sleep(0.01)
    room = impatient.room(0)
    assert room is not None
    waiting = asyncio.ensure_future(room)
    assert impatient.room(1) is None
    await asyncio.sleep(0)
    assert not waiting.done()

    await waiting
    with pytest.raises(LogUnavailable):
        await putting


async def test_a_turn_that_lost_tokens_takes_no_more_until_it_is_claimed_again(impatient: TokenProducer) -> None:
    impatient.append(0, words("t", 1, 1)[0])
    with pytest.raises(LogUnavailable):
        await impatient.put(0, claim("other"))

    with pytest.raises(LogUnavailable, match="claim it again"):
        impatient.append(0, words("t", 2, 2)[0])
    with pytest.raises(LogUnavailable, match="claim it again"):
        await impatient.put(0, end("t", 3))
    impatient.append(0, words("untouched", 1, 1)[0])
    impatient.append(0, words("t", 1, 1, epoch=2)[0])


async def test_a_claim_opens_a_shut_turn_for_its_own_epoch_alone(impatient: TokenProducer) -> None:
    impatient.append(0, words("t", 1, 1)[0])
    with pytest.raises(LogUnavailable):
        await impatient.put(0, end("t", 2))

    claiming = asyncio.create_task(impatient.put(0, claim("t", epoch=2)))
    await asyncio.sleep(0)
    impatient.append(0, words("t", 1, 1, epoch=2)[0])
    with pytest.raises(LogUnavailable):
        await claiming


Answer = dict[int, Written] | Exception | None


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """What the broker says to the next requests, each of which it has not seen; None: it writes it, and is cut off."""
    answers: list[Answer] = []
    produce = Broker.produce

    async def meddled(self: Broker, topic: str, batches: Batches) -> Mapping[int, Written]:
        answer = answers.pop(0) if answers else {}
        if answer is None:
            await produce(self, topic, batches)
            raise KafkaConnectionError("the connection was lost")
        if isinstance(answer, Exception):
            raise answer
        return answer or await produce(self, topic, batches)

    monkeypatch.setattr(Broker, "produce", meddled)
    return answers


async def test_partitions_of_one_broker_share_a_request(
    producer: TokenProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await producer.put(0, claim("t"))
    requests: list[list[int]] = []
    produce = Broker.produce

    def noted(self: Broker, topic: str, batches: Batches) -> Awaitable[Mapping[int, Written]]:
        requests.append([partition for partition, _ in batches])
        return produce(self, topic, batches)

    monkeypatch.setattr(Broker, "produce", noted)
    await asyncio.gather(*(producer.put(partition, claim(f"t{partition}")) for partition in range(4)))

    assert requests == [[0, 1, 2, 3]]


@pytest.mark.parametrize("answer", [{0: Written(NOT_LEADER, -1)}, {7: Written(0, 1)}, KafkaConnectionError("lost")])
async def test_what_was_not_taken_is_written_again_before_what_came_later(
    producer: TokenProducer, reader: LogReader, answers: list[Answer], answer: Answer
) -> None:
    await producer.put(0, claim("t"))
    answers += [answer, answer]
    first = asyncio.create_task(producer.put(0, words("t", 1, 1)[0]))
    while len(answers) == 2:
        await asyncio.sleep(0)
    for token in words("t", 2, 3):
        producer.append(0, token)
    await producer.put(0, end("t", 4))

    assert await first == 1
    assert [token for frame in await frames(reader) for token in frame] == [claim("t"), *words("t", 1, 3), end("t", 4)]


async def test_a_frame_whose_acknowledgement_was_lost_counts_once(
    producer: TokenProducer, reader: LogReader, answers: list[Answer]
) -> None:
    answers += [None, {}, None]
    await producer.put(0, claim("t"))
    for token in words("t", 1, 3):
        producer.append(0, token)
    await producer.put(0, end("t", 4))

    written = [token for frame in await frames(reader) for token in frame]
    fold = Fold()
    assert written.count(claim("t")) == 2
    assert [token for token in written if fold.feed(token)] == whole("t", 3)
    assert fold.claims == 1


async def test_partitions_of_a_broker_that_is_gone_wait_for_their_leader_together(
    producer: TokenProducer, reader: LogReader, answers: list[Answer]
) -> None:
    await producer.put(0, claim("t"))
    answers += [OSError("gone")]
    await asyncio.gather(*(producer.put(partition, claim(f"t{partition}")) for partition in range(4)))

    assert [len(await frames(reader, partition)) for partition in range(4)] == [2, 1, 1, 1]


async def test_what_kafka_will_never_take_is_lost_aloud_and_at_once(
    producer: TokenProducer, answers: list[Answer]
) -> None:
    await producer.put(0, claim("t"))
    answers += [{0: Written(TOO_LARGE, -1)}]

    with pytest.raises(LogUnavailable, match="MessageSizeTooLarge"):
        await producer.put(0, end("t", 1))
    await producer.put(0, claim("t", epoch=2))


async def test_closing_sends_what_is_pending(kafka: MockKafka, reader: LogReader) -> None:
    producer = TokenProducer(kafka.bootstrap, TOPIC, frame_ms=1000)
    await producer.put(0, claim("t"))
    for token in words("t", 1, 3):
        producer.append(0, token)

    await producer.close()

    assert await frames(reader) == [[claim("t")], words("t", 1, 3)]


async def test_nothing_is_accepted_after_closing(kafka: MockKafka) -> None:
    producer = TokenProducer(kafka.bootstrap, TOPIC, frame_ms=5)
    await producer.close()

    with pytest.raises(LogUnavailable, match="closed"):
        producer.append(0, claim("t"))
    with pytest.raises(LogUnavailable, match="closed"):
        await producer.put(0, claim("t"))


async def test_closing_does_not_wait_for_a_broker_that_is_gone(impatient: TokenProducer) -> None:
    putting = asyncio.create_task(impatient.put(0, end("t", 1)))
    await asyncio.sleep(0)

    await impatient.close()

    with pytest.raises(LogUnavailable):
        await putting
