"""An Idempotency-Key holds across workers and crashes: whoever repeats a request gets what its first try has made."""

import asyncio
from collections import Counter
from typing import Any

import aiohttp

from tests.conftest import StartWorker
from tests.integration.test_two_workers import shared
from tests.support.chat_client import ChatClient
from tests.support.model_server import ModelServer
from tests.support.scripted_answer import expected_answer
from tests.support.services import Services
from tests.support.worker import Worker

KEYS = 40
UNHEARD = 10
COMPLETIONS = "/v1/chat/completions"


def question(number: int) -> str:
    return f"question {number} [tokens=5 pace=0]"


class Asker:
    """A client that asks each question under a key of its own, of any of several workers, as often as it takes."""

    def __init__(self, http: aiohttp.ClientSession, *workers: Worker) -> None:
        self.http = http
        self.client = ChatClient(http, *(worker.url for worker in workers))
        self.conversations: list[str] = []

    async def begin(self, number: int) -> None:
        """Begin conversations, each under a key of its own."""
        begun = [
            self.client.call("POST", "/v1/conversations", {}, **{"Idempotency-Key": f"conversation {each}"})
            for each in range(number)
        ]
        self.conversations = [each["id"] for each in await asyncio.gather(*begun)]

    def path(self, number: int) -> str:
        return f"/v1/conversations/{self.conversations[number % len(self.conversations)]}/turns"

    async def once(self, worker: Worker, number: int) -> Any:
        """Ask once; return the answer, None where there was none."""
        try:
            async with self.http.post(
                worker.url + self.path(number),
                json={"input": question(number)},
                headers={"Idempotency-Key": f"k-{number}"},
            ) as answer:
                return await answer.json() if answer.status == 202 else None
        except aiohttp.ClientError:
            return None

    async def until_answered(self, number: int) -> Any:
        """Ask until a worker takes it."""
        return await self.client.call(
            "POST", self.path(number), {"input": question(number)}, **{"Idempotency-Key": f"k-{number}"}
        )

    async def complete(self, number: int, **more: Any) -> Any:
        """Have a list of messages completed under a key, as often as it takes."""
        body = {"model": "headrace", "messages": [{"role": "user", "content": question(number)}], **more}
        return await self.client.call("POST", COMPLETIONS, body, **{"Idempotency-Key": f"k-{number}"})

    async def turns(self) -> list[dict[str, Any]]:
        """Return the turns of all conversations, when all have ended."""
        while True:
            read = [self.client.call("GET", f"/v1/conversations/{each}") for each in self.conversations]
            turns = [turn for each in await asyncio.gather(*read) for turn in each["turns"]]
            if all(turn["outcome"] for turn in turns):
                return turns
            await asyncio.sleep(0.05)


async def check_one_turn_a_key(asker: Asker, model: ModelServer, first: list[Any], again: list[Any]) -> None:
    """Check that each key has one turn, which was answered once and is what every try was told."""
    assert all(one in (None, other) for one, other in zip(first, again, strict=True))
    assert await asyncio.gather(*(asker.until_answered(number) for number in range(KEYS))) == again
    turns = await asker.turns()
    assert sorted(turn["turn_id"] for turn in turns) == sorted(answer["turn_id"] for answer in again)
    assert {turn["input"]: turn["answer"] for turn in turns} == {
        question(number): "".join(expected_answer(question(number))) for number in range(KEYS)
    }
    asked_of_model = Counter(request["messages"][-1]["content"] for request in model.requests)
    resumed = sum([(await asker.client.call("GET", f"/v1/turns/{turn['turn_id']}"))["claims"] - 1 for turn in turns])
    assert sum(asked_of_model.values()) <= KEYS + resumed


async def kill_in_the_middle(worker: Worker, asker: Asker, *workers: Worker) -> list[Any]:
    """Ask everything of these workers in turn, and kill one in the middle of it; return what clients heard.

    Of the first ten, nobody hears the answer, although Kafka has them.
    """
    asking = [asyncio.create_task(asker.once(workers[number % len(workers)], number)) for number in range(UNHEARD)]
    while await accepted(asker.http, *workers) < UNHEARD:
        await asyncio.sleep(0.01)
    for unheard in asking:
        unheard.cancel()
    asking = [
        asyncio.create_task(asker.once(workers[number % len(workers)], number)) for number in range(UNHEARD, KEYS)
    ]
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    worker.kill()
    return [None] * UNHEARD + list(await asyncio.gather(*asking))


async def accepted(http: aiohttp.ClientSession, *workers: Worker) -> int:
    """Return how many questions Kafka has taken from these workers."""
    found = 0.0
    for worker in workers:
        async with http.get(f"{worker.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        found += sum(float(line.split()[1]) for line in lines if line.startswith("headrace_questions_accepted_total "))
    return int(found)


async def test_each_key_is_one_turn_when_the_only_worker_is_killed_and_started_again(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    asker = Asker(http, worker)
    await asker.begin(10)

    first = await kill_in_the_middle(worker, asker, worker)
    await worker.start()
    again = await asyncio.gather(*(asker.until_answered(number) for number in range(KEYS)))

    await check_one_turn_a_key(asker, model, first, again)
    conversations = asker.conversations
    await asker.begin(10)
    assert asker.conversations == conversations


async def test_each_key_is_one_turn_on_any_worker_when_one_of_two_is_killed(
    real_kafka: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    workers = [await start_worker(real_kafka, ready=False, OPENAI_BASE_URL=model.base_url) for _ in range(2)]
    await asyncio.gather(*(worker.ready() for worker in workers))
    await shared(http, workers)
    asker = Asker(http, *workers)
    await asker.begin(10)

    first = await kill_in_the_middle(workers[0], asker, *workers)
    again = await asyncio.gather(*(asker.until_answered(number) for number in range(KEYS)))
    await workers[0].start()  # and so the partitions move once more
    await check_one_turn_a_key(asker, model, first, again)

    asked = len(model.requests)
    whole = [await asker.complete(number) for number in range(8) for _ in range(2)]
    assert whole[::2] == whole[1::2]
    assert len(model.requests) == asked + 8


async def test_a_completion_is_the_same_for_its_key_after_a_restart(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    body = {"model": "headrace", "messages": [{"role": "user", "content": question(0)}]}

    async def complete(**more: Any) -> tuple[int, str]:
        key = f"k-{'stream' in more}"
        async with http.post(worker.url + COMPLETIONS, json=body | more, headers={"Idempotency-Key": key}) as answer:
            return answer.status, await answer.text()

    first = await complete(), await complete(stream=True)
    await worker.terminate()
    await worker.start()

    assert [status for status, _ in first] == [200, 200]
    assert (await complete(), await complete(stream=True)) == first
    assert len(model.requests) == 2
    assert (await complete(temperature=1))[0] == 409
