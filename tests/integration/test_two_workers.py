"""Two workers that share the work: every one serves everything, and each goes on where the other was killed."""

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.conftest import StartWorker
from tests.support.chat_client import ChatClient
from tests.support.model_server import ModelServer
from tests.support.scripted_answer import expected_answer
from tests.support.services import Services
from tests.support.worker import Worker


@pytest.fixture
async def workers(real_kafka: Services, start_worker: StartWorker, model: ModelServer) -> list[Worker]:
    """Two workers, each of which owns some partitions."""
    pair = [await start_worker(real_kafka, ready=False, OPENAI_BASE_URL=model.base_url) for _ in range(2)]
    await asyncio.gather(*(worker.ready() for worker in pair))
    return pair


async def owners(http: aiohttp.ClientSession, workers: list[Worker]) -> list[int]:
    """Return how many partitions each worker says that it owns."""
    found = []
    for worker in workers:
        async with http.get(f"{worker.url}/readyz") as answer:
            found.append(len((await answer.json())["partitions"]))
    return found


async def shared(http: aiohttp.ClientSession, workers: list[Worker]) -> None:
    """Return when all partitions are owned, and each worker owns some."""
    async with asyncio.timeout(60):
        while sum(found := await owners(http, workers)) != 8 or not all(found):
            await asyncio.sleep(0.1)


async def test_every_worker_serves_every_turn_and_conversation(
    workers: list[Worker], http: aiohttp.ClientSession
) -> None:
    await shared(http, workers)
    here, there = (ChatClient(http, worker.url) for worker in workers)
    conversations = [await here.converse() for _ in range(8)]
    turns = [await there.ask(conversation, f"in {conversation} [tokens=5]") for conversation in conversations]

    for conversation, turn in zip(conversations, turns, strict=True):
        seen = await here.read(turn)
        assert seen.text == "".join(expected_answer(f"in {conversation} [tokens=5]"))
        assert (await there.read(turn)).events == seen.events
        for client in (here, there):
            assert (await client.call("GET", f"/v1/turns/{turn}"))["answer"] == seen.text
            whole = await client.call("GET", f"/v1/conversations/{conversation}")
            assert [each["turn_id"] for each in whole["turns"]] == [turn]

    async with asyncio.timeout(10):  # the last turn is put into its conversation after its reader saw the end
        while await listed(here) != (found := await listed(there)):
            await asyncio.sleep(0.05)
    assert {each["id"] for each in found} == set(conversations)


async def listed(client: ChatClient) -> list[dict[str, Any]]:
    """Return a user's conversations."""
    found: list[dict[str, Any]] = (await client.call("GET", "/v1/conversations?limit=100"))["data"]
    return found


async def test_a_reader_sees_one_seamless_answer_when_the_worker_that_writes_it_is_killed(
    workers: list[Worker], model: ModelServer, http: aiohttp.ClientSession
) -> None:
    await shared(http, workers)
    killed, survivor = workers
    client = ChatClient(http, survivor.url)
    conversations = [await client.converse() for _ in range(16)]
    questions = [f"question {number} [tokens=60]" for number in range(16)]
    turns = [await client.ask(*pair) for pair in zip(conversations, questions, strict=True)]
    readers = [asyncio.create_task(client.read(turn)) for turn in turns]
    while model.tokens_sent < 160:
        await asyncio.sleep(0.02)

    killed.kill()
    seen = await asyncio.gather(*readers)

    assert [each.text for each in seen] == ["".join(expected_answer(question)) for question in questions]
    assert {each.connections for each in seen} == {1}
    states = [await client.call("GET", f"/v1/turns/{turn}") for turn in turns]
    assert {state["claims"] for state in states} == {1, 2}
