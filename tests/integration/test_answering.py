"""Questions through the whole worker on Kafka, against a scripted model server whose answers are known."""

import asyncio
import json
import re

import aiohttp

from tests.conftest import StartWorker
from tests.support.chat_client import ChatClient
from tests.support.model_server import ModelServer
from tests.support.scripted_answer import expected_answer
from tests.support.services import Services


async def test_200_questions_in_50_conversations_at_once(
    real_kafka: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(real_kafka, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, worker.url)

    async def converse(number: int) -> None:
        conversation = await client.converse()
        questions = [f"conversation {number}, question {which} [tokens=40]" for which in range(4)]
        turns = [await client.ask(conversation, question) for question in questions]
        seen = await asyncio.gather(*(client.read(turn, within=120) for turn in turns))
        assert [each.text for each in seen] == ["".join(expected_answer(question)) for question in questions]
        assert {each.outcome for each in seen} == {"completed"}
        kept = (await client.call("GET", f"/v1/conversations/{conversation}"))["turns"]
        assert [turn["turn_id"] for turn in kept] == turns
        assert [turn["parent"] for turn in kept] == [None, *turns[:-1]]

    await asyncio.gather(*(converse(number) for number in range(50)))


async def test_the_second_question_sees_the_first_ones_answer(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, worker.url)
    conversation = await client.converse()
    first = await client.ask(conversation, "first [tokens=5 pace=0]")
    second = await client.ask(conversation, "second [tokens=5 pace=0]")
    await client.read(second)

    messages = model.requests[-1]["messages"]
    assert [message["content"] for message in messages[1:]] == [
        "first [tokens=5 pace=0]",
        (await client.call("GET", f"/v1/turns/{first}"))["answer"],
        "second [tokens=5 pace=0]",
    ]


async def test_every_accepted_question_survives_kill_9(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, worker.url)
    conversations = [await client.converse() for _ in range(10)]
    questions = [f"question {n} [tokens=60]" for n in range(20)]
    turns = [await client.ask(conversations[n % 10], question) for n, question in enumerate(questions)]
    readers = [asyncio.create_task(client.read(turn, within=120)) for turn in turns]
    while model.tokens_sent < 100:
        await asyncio.sleep(0.02)

    worker.kill()
    await worker.start()
    seen = await asyncio.gather(*readers)

    assert [each.text for each in seen] == ["".join(expected_answer(question)) for question in questions]
    states = [await client.call("GET", f"/v1/turns/{turn}") for turn in turns]
    assert [state["answer"] for state in states] == [each.text for each in seen]
    assert max(state["claims"] for state in states) > 1


async def test_a_reader_that_loses_its_connection_ten_times_sees_exactly_the_log(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, worker.url)
    question = "a long answer [tokens=100]"
    turn = await client.ask(await client.converse(), question)

    seen = await client.read(turn, drop_after=range(8, 88, 8))

    assert seen.connections == 11
    assert seen.text == "".join(expected_answer(question))
    again = await client.read(turn)
    assert again.events == seen.events


async def test_a_conversation_survives_a_restart_and_is_rebuilt_from_its_changelog_elsewhere(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, worker.url)
    conversation = await client.converse()
    turn = await client.ask(conversation, "remember this [tokens=5 pace=0]")
    await client.read(turn)
    await client.call("PATCH", f"/v1/conversations/{conversation}", {"title": "Kept"})
    while (before := await client.call("GET", f"/v1/conversations/{conversation}"))["turns"][0]["last_event_id"]:
        await asyncio.sleep(0.05)  # the turn has ended, and is not in the conversation's row yet
    assert before["title"] == "Kept"

    await worker.terminate()
    await worker.start()
    assert await client.call("GET", f"/v1/conversations/{conversation}") == before

    await worker.terminate()
    elsewhere = await start_worker(services, folder="elsewhere", OPENAI_BASE_URL=model.base_url)
    client.urls = [elsewhere.url]
    assert await client.call("GET", f"/v1/conversations/{conversation}") == before
    assert [each["id"] for each in (await client.call("GET", "/v1/conversations"))["data"]] == [conversation]


async def test_a_queued_turn_is_stopped_at_once_and_keeps_its_place_in_the_conversation(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    client = ChatClient(http, (await start_worker(services, OPENAI_BASE_URL=model.base_url)).url)
    conversation = await client.converse()
    first = await client.ask(conversation, "a long one [tokens=2000]")
    second = await client.ask(conversation, "queued behind it [tokens=5]")
    third = await client.ask(conversation, "after both [tokens=5]")

    await client.call("POST", f"/v1/turns/{second}/stop")
    stopped = await client.read(second)
    assert (stopped.outcome, stopped.text) == ("stopped", "")
    assert (await client.call("GET", f"/v1/turns/{first}"))["status"] == "running"

    await client.call("POST", f"/v1/turns/{first}/stop")
    await client.read(third)
    async with asyncio.timeout(10):  # it is put into its conversation after its reader saw the end
        while len(kept := (await client.call("GET", f"/v1/conversations/{conversation}"))["turns"]) < 3:
            await asyncio.sleep(0.02)
    assert [(turn["turn_id"], turn["parent"]) for turn in kept] == [(first, None), (second, first), (third, second)]


async def test_a_turn_that_waits_in_kafka_is_stopped_at_once_and_stays_so_whoever_dies(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(
        services, OPENAI_BASE_URL=model.base_url, HEADRACE_TURNS_IN_WORK="1", HEADRACE_TURNS_HELD="1"
    )
    client = ChatClient(http, worker.url)
    conversation = await client.converse()
    before = [await client.ask(await client.converse(), "a long one [tokens=2000]") for _ in range(2)]
    async with asyncio.timeout(20):
        while "headrace_turns_held 1.0" not in await (await http.get(f"{worker.url}/metrics")).text():
            await asyncio.sleep(0.02)
    turn = await client.ask(conversation, "beyond what may be held [tokens=5]")

    await client.call("POST", f"/v1/turns/{turn}/stop")
    stopped = await client.read(turn)
    assert (stopped.outcome, stopped.text) == ("stopped", "")
    # Which of the two is answered first is not said: they may be in different partitions.
    assert {(await client.call("GET", f"/v1/turns/{each}"))["status"] for each in before} == {"running", "queued"}

    worker.kill()
    await worker.start()
    for each in before:
        await client.call("POST", f"/v1/turns/{each}/stop")
    async with asyncio.timeout(20):
        while not (kept := (await client.call("GET", f"/v1/conversations/{conversation}"))["turns"]):
            await asyncio.sleep(0.02)
    assert [(each["turn_id"], each["status"]) for each in kept] == [(turn, "stopped")]
    assert not any("beyond" in str(body["messages"]) for body in model.requests)


async def test_a_model_is_tried_out_when_its_worker_starts(
    services: Services, start_worker: StartWorker, model: ModelServer
) -> None:
    await start_worker(services, OPENAI_BASE_URL=model.base_url)

    async with asyncio.timeout(20):
        while not model.probes:
            await asyncio.sleep(0.02)
    assert (model.probes, model.stats.requests) == (1, 0)


async def test_stop_keeps_the_text_so_far(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    client = ChatClient(http, worker.url)
    question = "an answer nobody needs [tokens=500]"
    turn = await client.ask(await client.converse(), question)
    reading = asyncio.create_task(client.read(turn))
    async with asyncio.timeout(20):
        while not (await client.call("GET", f"/v1/turns/{turn}"))["answer"]:
            await asyncio.sleep(0.05)

    await client.call("POST", f"/v1/turns/{turn}/stop")
    seen = await reading

    assert seen.outcome == "stopped"
    assert "".join(expected_answer(question)).startswith(seen.text)
    assert seen.text
    assert (await client.call("GET", f"/v1/turns/{turn}"))["answer"] == seen.text


async def measured(http: aiohttp.ClientSession, url: str, turns: int) -> None:
    """Wait until a worker has counted so many turns in their windows."""
    async with asyncio.timeout(60):
        counted = 0.0
        while counted < turns:
            await asyncio.sleep(0.05)
            text = await (await http.get(f"{url}/metrics")).text()
            found = re.findall(r'^headrace_window_turns_total{arrival="(?:in_time|late)"} (.+)$', text, re.MULTILINE)
            counted = sum(map(float, found))


async def test_what_cannot_be_decoded_goes_to_the_dead_letters_and_the_stream_goes_on(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession, names: object
) -> None:
    from tests.support.kafka import everything, produce  # noqa: PLC0415

    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    prefix = names.topic_prefix  # type: ignore[attr-defined]
    client = ChatClient(http, worker.url)
    conversation = await client.converse()
    for topic in ("chat.questions.v1", "chat.controls.v1", "chat.turns.v1"):
        produce(services.bootstrap, prefix + topic, b"{broken", key=conversation.encode())

    turn = await client.ask(conversation, "still there? [tokens=3 pace=0]")

    assert (await client.read(turn)).outcome == "completed"
    # Turns are measured batch by batch: when another one is, that with the record that is none is done with.
    await measured(http, worker.url, 1)
    await client.read(await client.ask(conversation, "and now? [tokens=3 pace=0]"))
    await measured(http, worker.url, 2)
    letters = [json.loads(each) for each in await everything(services.bootstrap, f"{prefix}chat.dead-letters.v1")]
    assert sorted(letter["topic"] for letter in letters) == [
        f"{prefix}chat.{name}.v1" for name in ("controls", "questions", "turns")
    ]
    assert all(letter["code"] == "bad_record" and "malformed" in letter["reason"] for letter in letters)
