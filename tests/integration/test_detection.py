"""Dead workers are found in a moment: by their supervisor, or by their peers; without both, by Kafka's own time-out.

Each of the three is tested alone: the other two are switched off, or out of reach.
"""

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from tests.conftest import StartWorker
from tests.support.chat_client import ChatClient
from tests.support.model_server import ModelServer
from tests.support.scripted_answer import expected_answer
from tests.support.services import Services
from tests.support.worker import Worker

# Ten times as long as what is shown here may take, so that nothing else can explain it.
SESSION = "60"
WITHIN = 20.0
BACKSTOP = 6
"""What a session has by default, in seconds, for whom nobody else looks after."""

StartPair = Callable[..., Awaitable[list[Worker]]]


@pytest.fixture
def start_pair(
    real_kafka: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> StartPair:
    """Starts two workers that share the partitions."""

    async def start(*, supervised: bool = False, **environ: str) -> list[Worker]:
        settings = {"OPENAI_BASE_URL": model.base_url, "HEADRACE_SESSION_SECONDS": SESSION, **environ}
        pair = [await start_worker(real_kafka, ready=False, supervised=supervised, **settings) for _ in range(2)]
        await asyncio.gather(*(worker.ready() for worker in pair))
        await shared(http, pair)
        return pair

    return start


async def partitions(http: aiohttp.ClientSession, worker: Worker) -> int:
    """Return how many partitions a worker says that it owns; none while it is not there or not ready."""
    try:
        async with http.get(f"{worker.url}/readyz") as answer:
            return len((await answer.json()).get("partitions", ()))
    except aiohttp.ClientError:
        return 0


async def shared(http: aiohttp.ClientSession, workers: list[Worker]) -> None:
    """Return when all partitions are owned, and each worker owns some."""
    async with asyncio.timeout(60):
        while sum(found := [await partitions(http, worker) for worker in workers]) != 8 or not all(found):
            await asyncio.sleep(0.1)


async def logged(worker: Worker, text: str) -> None:
    """Return when a worker has logged this."""
    async with asyncio.timeout(WITHIN):
        while text not in worker.log.read_text():
            await asyncio.sleep(0.05)


class Answers:
    """Sixteen answers in work over all partitions, each followed by a reader on one worker."""

    def __init__(self, client: ChatClient, model: ModelServer) -> None:
        self._client = client
        self._model = model
        self._questions = [f"question {number} [tokens=100]" for number in range(16)]

    async def begin(self) -> None:
        """Ask, and return when all are being written."""
        conversations = [await self._client.converse() for _ in self._questions]
        asked = zip(conversations, self._questions, strict=True)
        before = self._model.tokens_sent
        turns = await asyncio.gather(*(self._client.ask(*each) for each in asked))
        self._readers = [asyncio.create_task(self._client.read(turn)) for turn in turns]
        while self._model.tokens_sent < before + 160:
            await asyncio.sleep(0.02)

    @property
    def over(self) -> int:
        """How many readers have seen the end."""
        return sum(reader.done() for reader in self._readers)

    async def whole(self) -> None:
        """Return when all readers have seen every word once, in order, on one connection each."""
        async with asyncio.timeout(WITHIN):
            seen = await asyncio.gather(*self._readers)
        assert [each.text for each in seen] == ["".join(expected_answer(question)) for question in self._questions]
        assert {each.connections for each in seen} == {1}


async def test_answers_go_on_when_a_worker_is_killed_and_its_supervisor_tells_kafka(
    start_pair: StartPair, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    killed, survivor = await start_pair(supervised=True, HEADRACE_PEER_SECONDS="0")
    answers = Answers(ChatClient(http, survivor.url), model)
    await answers.begin()

    killed.kill()

    await answers.whole()
    log = killed.log.read_text()
    assert log.index("dead members evicted") < log.index("worker ended")
    await killed.ready()
    await shared(http, [killed, survivor])


async def test_answers_go_on_when_a_machine_is_lost_and_a_peer_tells_kafka(
    start_pair: StartPair, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    lost, survivor = await start_pair()
    answers = Answers(ChatClient(http, survivor.url), model)
    await answers.begin()

    lost.lose_machine()

    await answers.whole()
    assert "peer evicted" in survivor.log.read_text()


async def test_a_worker_that_was_frozen_is_evicted_and_joins_again_and_nothing_is_doubled(
    start_pair: StartPair, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    frozen, other = await start_pair()
    answers = Answers(ChatClient(http, other.url), model)
    await answers.begin()

    frozen.freeze()
    await logged(other, "peer evicted")
    frozen.thaw()

    await answers.whole()
    await shared(http, [frozen, other])
    assert "peer evicted" not in frozen.log.read_text(), "it was frozen, and took that for the silence of others"


async def test_answers_go_on_when_nobody_but_kafka_finds_out_that_a_worker_is_dead(
    start_pair: StartPair, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    killed, survivor = await start_pair(HEADRACE_PEER_SECONDS="0", HEADRACE_SESSION_SECONDS=str(BACKSTOP))
    answers = Answers(ChatClient(http, survivor.url), model)
    await answers.begin()
    assert not answers.over

    killed.kill()

    async with asyncio.timeout(2 * BACKSTOP):
        while await partitions(http, survivor) != 8:
            await asyncio.sleep(0.05)
    await answers.whole()
    logs = killed.log.read_text() + survivor.log.read_text()
    assert "peer evicted" not in logs
    assert "members evicted" not in logs
