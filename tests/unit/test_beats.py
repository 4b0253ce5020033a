"""Beats through a broker: who is alone writes none, who leaves says so, and who is not heard is told of."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition

from adapters.peers import Beats
from domain.peers import Silent
from tests.support.mock_kafka import MockKafka, open_mock_kafka

TOPIC = "chat.workers.v1"


@pytest.fixture
def kafka() -> Iterator[MockKafka]:
    """A broker with the topic."""
    with open_mock_kafka() as broker:
        broker.create(TOPIC)
        yield broker


async def written(kafka: MockKafka, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Return what is in the topic from its beginning, once it is enough."""
    return await asyncio.to_thread(_written, kafka, enough)


def _written(kafka: MockKafka, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    # Without a group: joining one takes 3 s here.
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "none", "enable.auto.commit": False})
    consumer.assign([TopicPartition(TOPIC, 0, 0)])
    beats: list[dict[str, Any]] = []
    deadline = time.monotonic() + 20
    while not enough(beats):
        assert time.monotonic() < deadline, beats
        beats += [msgspec.json.decode(message.value() or b"") for message in consumer.consume(1, 1)]
    consumer.close()
    return beats


def heard(*workers: str) -> Callable[[list[dict[str, Any]]], bool]:
    """Return whether each of these workers has written three beats."""
    return lambda beats: all([beat["worker"] for beat in beats].count(worker) >= 3 for worker in workers)


class Start(Protocol):
    """Starts the beats of a worker."""

    def __call__(self, worker: str, on_silent: Callable[[Silent], None] = ..., **options: Any) -> Beats: ...


@pytest.fixture
async def start(kafka: MockKafka) -> AsyncIterator[Start]:
    """Workers that beat, and are closed at the end."""
    started: list[Beats] = []

    def start(worker: str, on_silent: Callable[[Silent], None] = lambda _: None, **options: Any) -> Beats:
        started.append(
            Beats(
                kafka.bootstrap,
                TOPIC,
                worker=worker,
                limit=1.0,
                member=lambda: f"{worker}-member",
                on_silent=on_silent,
                **options,
            )
        )
        return started[-1]

    yield start
    for beats in started:
        await beats.close()


@pytest.mark.parametrize("rest", [False, True])
async def test_a_peer_that_is_not_heard_any_more_is_told_of_with_its_member_id(
    kafka: MockKafka, start: Start, rest: bool
) -> None:
    told: asyncio.Queue[Silent] = asyncio.Queue()
    watcher, peer = start("watcher", told.put_nowait, rest=rest), start("peer")
    watcher.accompany(True)
    peer.accompany(True)
    await written(kafka, heard("watcher", "peer"))

    kafka.write(TOPIC, 0, b"no beat")
    peer.accompany(False)  # which it is not told by anyone: to the watcher it just falls silent

    silent = await asyncio.wait_for(told.get(), 20)
    assert (silent.worker, silent.member) == ("peer", "peer-member")
    assert silent.seconds > 1.0


async def test_a_peer_that_died_while_the_watcher_began_is_told_of(kafka: MockKafka, start: Start) -> None:
    peer = start("peer")
    peer.accompany(True)
    await written(kafka, heard("peer"))
    peer.accompany(False)

    told: asyncio.Queue[Silent] = asyncio.Queue()
    start("watcher", told.put_nowait).accompany(True)

    assert (await asyncio.wait_for(told.get(), 20)).member == "peer-member"


async def test_who_is_alone_writes_nothing_and_who_leaves_says_so(kafka: MockKafka, start: Start) -> None:
    alone, leaving = start("alone"), start("leaving")
    leaving.accompany(True)
    await written(kafka, heard("leaving"))

    await alone.close()
    await leaving.close()

    beats = await written(kafka, lambda beats: bool(beats) and beats[-1]["kind"] == "left")
    assert {beat["worker"] for beat in beats} == {"leaving"}
    assert [beat["kind"] for beat in beats] == ["alive"] * (len(beats) - 1) + ["left"]


async def test_an_eviction_is_told_to_the_others(kafka: MockKafka, start: Start) -> None:
    beats = start("me")
    beats.accompany(True)

    beats.tell_evicted(Silent("dead", "dead-member", 2.0))

    told = (await written(kafka, lambda beats: bool(beats) and beats[-1]["kind"] == "evicted"))[-1]
    assert (told["worker"], told["member"]) == ("dead", "dead-member")


async def test_a_loop_that_hangs_makes_the_worker_fall_silent(kafka: MockKafka, start: Start) -> None:
    beats = start("hanging", hung_seconds=0.2)
    beats.accompany(True)
    await written(kafka, heard("hanging"))

    began = time.monotonic()
    time.sleep(1.5)  # noqa: ASYNC251 - this is the fault
    ended = time.monotonic()

    found = await written(kafka, lambda beats: bool(beats) and beats[-1]["at"] > ended)
    assert [beat for beat in found if began + 0.6 < beat["at"] < ended] == []
