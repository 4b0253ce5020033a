"""The HTTP surface of a real worker on Kafka: what its fakes promise holds there too."""

import asyncio
from typing import Any

import aiohttp
import openai
import pytest

from tests.conftest import StartWorker
from tests.support.chat_client import ChatClient
from tests.support.model_server import ModelServer
from tests.support.scripted_answer import expected_answer
from tests.support.services import Services


def text_of(question: str) -> str:
    return "".join(expected_answer(question))


async def test_openais_client_lists_completes_and_streams_and_one_that_leaves_stops_the_model(
    services: Services, start_worker: StartWorker, model: ModelServer
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    async with openai.AsyncOpenAI(base_url=f"{worker.url}/v1", api_key="any", max_retries=0) as client:
        assert [each.id async for each in client.models.list()] == ["headrace", *model.models]

        question = "whole [tokens=20 pace=0]"
        whole = await client.chat.completions.create(model="headrace", messages=[{"role": "user", "content": question}])
        assert whole.choices[0].message.content == text_of(question)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 20

        question = "streamed [tokens=30 cut=1]"
        stream = await client.chat.completions.create(
            model=model.models[0],
            messages=[{"role": "user", "content": question}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text_of(question)
        assert chunks[-1].usage is not None

        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="none", messages=[{"role": "user", "content": "x"}])

        left = await client.chat.completions.create(
            model="headrace", messages=[{"role": "user", "content": "left [tokens=5000]"}], stream=True
        )
        await anext(aiter(left))
        await left.close()
        async with asyncio.timeout(20):
            while not model.stats.cancelled:
                await asyncio.sleep(0.02)


async def test_a_conversation_through_its_whole_life(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, worker.url)

    async def conversation() -> dict[str, Any]:
        found: dict[str, Any] = await client.call("GET", f"/v1/conversations/{conversation_id}")
        return found

    conversation_id = (await client.call("POST", "/v1/conversations", {"title": "Tea"}))["id"]
    assert (await conversation())["title"] == "Tea"
    assert [one["id"] for one in (await client.call("GET", "/v1/conversations"))["data"]] == [conversation_id]
    assert (await client.call("PATCH", f"/v1/conversations/{conversation_id}", {"title": "Coffee"}))[
        "title"
    ] == "Coffee"
    assert (await conversation())["title"] == "Coffee"

    # In work: the one shows what there is of it, the other waits.
    running = await client.ask(conversation_id, "one [tokens=60]")
    queued = await client.ask(conversation_id, "two [tokens=5 pace=0]")
    async with asyncio.timeout(30):
        while len(turns := (await conversation())["turns"]) < 2 or turns[0]["status"] == "queued":
            await asyncio.sleep(0.02)
    assert [(turn["turn_id"], turn["status"]) for turn in turns] == [(running, "running"), (queued, "queued")]
    assert text_of("one [tokens=60]").startswith(turns[0]["answer"])
    busy = await http.post(
        f"{worker.url}/v1/conversations/{conversation_id}/turns", json={"input": "three", "on_busy": "reject"}
    )
    assert busy.status == 409
    assert (await client.read(queued)).text == text_of("two [tokens=5 pace=0]")
    assert [turn["status"] for turn in (await conversation())["turns"]] == ["completed", "completed"]

    # Beside: another answer to the same question, and another question.
    again = (await client.call("POST", f"/v1/turns/{queued}/regenerate", {}))["turn_id"]
    await client.read(again)
    otherwise = (await client.call("POST", f"/v1/turns/{queued}/edit", {"input": "2 [tokens=5 pace=0]"}))["turn_id"]
    await client.read(otherwise)
    parents = {turn["turn_id"]: turn["parent"] for turn in (await conversation())["turns"]}
    assert parents == {running: None, queued: running, again: running, otherwise: running}

    # The same key, the same turn; and one answer for it.
    key = {"Idempotency-Key": "once"}
    path, body = f"/v1/conversations/{conversation_id}/turns", {"input": "once [tokens=5 pace=0]"}
    asked = await asyncio.gather(*(client.call("POST", path, body, **key) for _ in range(5)))
    assert len({each["turn_id"] for each in asked}) == 1
    await client.read(asked[0]["turn_id"])
    assert len((await conversation())["turns"]) == 5

    await client.call("DELETE", f"/v1/conversations/{conversation_id}")
    gone = await http.get(f"{worker.url}/v1/conversations/{conversation_id}")
    assert gone.status == 404
    assert (await client.call("GET", "/v1/conversations"))["data"] == []


async def test_a_reader_can_begin_at_every_event_of_a_running_and_of_a_finished_turn(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, worker.url)
    turn_id = await client.ask(await client.converse(), "all of it [tokens=40]")

    async def rest(after: int) -> list[Any]:
        return [event async for event in client.events(turn_id, after=after)]

    running = await asyncio.gather(*(rest(after) for after in range(-1, 20)))
    finished = await asyncio.gather(*(rest(after) for after in range(-1, 41)))

    whole = finished[0]
    assert len(whole) == 42
    assert running == [whole[after + 1 :] for after in range(-1, 20)]
    assert finished == [whole[after + 1 :] for after in range(-1, 41)]


async def test_a_worker_that_shuts_down_sends_its_readers_on_at_once_and_they_miss_nothing(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, worker.url)
    question = "long [tokens=200]"
    turn_id = await client.ask(await client.converse(), question)
    reader = asyncio.create_task(client.read(turn_id, within=90))
    answer = await http.get(f"{worker.url}/v1/turns/{turn_id}/events")
    while b"event: token\n" not in await answer.content.readline():
        pass

    ended = asyncio.create_task(worker.terminate(within=20))
    rest = (await answer.text()).rstrip("\n").splitlines()

    assert rest[-1] == "retry: 200"
    assert await ended == 0
    await worker.start()
    seen = await reader
    assert (seen.text, seen.outcome) == (text_of(question), "completed")
    assert seen.connections > 1


async def test_each_user_sees_their_own_and_nothing_else(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    keys = "acme/ann:key-of-ann-012345,acme/bob:key-of-bob-012345"
    worker = await start_worker(
        services, OPENAI_BASE_URL=model.base_url, HEADRACE_AUTH="required", HEADRACE_API_KEYS=keys
    )
    ann, bob = ({"Authorization": f"Bearer key-of-{name}-012345"} for name in ("ann", "bob"))
    client = ChatClient(http, worker.url)
    conversation = await client.call("POST", "/v1/conversations", {}, **ann)
    path = f"/v1/conversations/{conversation['id']}"
    turn = await client.call("POST", f"{path}/turns", {"input": "hers [tokens=3 pace=0]"}, **ann)

    for who, status in ((ann, 200), (bob, 404), ({}, 401)):
        for where in (path, f"/v1/turns/{turn['turn_id']}", f"/v1/turns/{turn['turn_id']}/events"):
            async with http.get(worker.url + where, headers=who) as answer:
                assert answer.status == status
    assert (await client.call("GET", "/v1/conversations", **bob))["data"] == []


async def test_fausts_own_pages_are_off(
    services: Services, start_worker: StartWorker, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services)

    for path in ("/tables/", "/router/", "/stats/", "/graph/"):
        async with http.get(worker.url + path) as answer:
            assert answer.status == 404
            assert (await answer.json())["error"]["code"]
