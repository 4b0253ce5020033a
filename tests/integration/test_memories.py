"""Told in one conversation, known in the next: through a real worker, with a model server that shows what it reads."""

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest

from adapters.elastic import Elastic
from adapters.memory_store import MemoryStore, document_id
from domain.errors import SinkUnavailable
from domain.memory import Fact, Memories
from tests.conftest import StartWorker
from tests.support.chat_client import ChatClient
from tests.support.kafka import everything
from tests.support.model_server import ModelServer
from tests.support.search import documents
from tests.support.services import Services

KEYS = {"ann": "ann-key-0123456789", "bob": "bob-key-0123456789", "eve": "eve-key-0123456789"}
USERS = f"acme/ann:{KEYS['ann']},acme/bob:{KEYS['bob']},other/ann:{KEYS['eve']}"
TELLING = "My name is Ann and we use Kafka 4. [tokens=3 pace=0]"
ASKING = "How do I upgrade Kafka? [tokens=3 pace=0]"
NAME = "The user's name is Ann."


class Person(ChatClient):
    """A client with a key of its own."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        super().__init__(session, url)
        self.headers = {"Authorization": f"Bearer {key}"}

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        return await super().call(method, path, body, **headers, **self.headers)

    async def say(self, text: str) -> str:
        """Ask in a new conversation; return the turn's id when it is answered."""
        turn = await self.ask(await self.converse(), text)
        async with asyncio.timeout(30):
            while (await self.call("GET", f"/v1/turns/{turn}"))["status"] != "completed":
                await asyncio.sleep(0.02)
        return turn

    async def memories(self) -> list[str]:
        return [each["text"] for each in (await self.call("GET", "/v1/me/memories"))["data"]]

    async def remembers(self, *texts: str) -> None:
        """Wait until this, and no more, is remembered."""
        async with asyncio.timeout(20):
            while sorted(await self.memories()) != sorted(texts):
                await asyncio.sleep(0.05)


def instructions(model: ModelServer) -> str:
    """Return what the model was told before the last question."""
    return str(model.requests[-1]["messages"][0]["content"])


async def test_what_a_user_tells_is_known_in_the_next_conversation_until_it_is_erased_and_to_nobody_else(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(
        services, OPENAI_BASE_URL=model.base_url, HEADRACE_AUTH="required", HEADRACE_API_KEYS=USERS
    )
    ann, bob, eve = (Person(http, worker.url, KEYS[who]) for who in ("ann", "bob", "eve"))

    told = await ann.say(TELLING)
    await ann.remembers(NAME, "The user uses Kafka 4.")
    await ann.say(ASKING)
    assert f"- {NAME}\n- The user uses Kafka 4." in instructions(model)

    # A fact of the same slot takes its place, also from another conversation.
    await ann.say("We use Kafka 5. [tokens=3 pace=0]")
    await ann.remembers(NAME, "The user uses Kafka 5.")

    # Neither the colleague, nor the namesake at another tenant.
    for other in (bob, eve):
        await other.say(ASKING)
        assert "Ann" not in instructions(model)
        assert "Kafka 4" not in instructions(model)
        assert await other.memories() == []

    # A bare model is not told.
    turn = await ann.ask(await ann.converse(), ASKING, model="scripted")
    async with asyncio.timeout(30):
        while (await ann.call("GET", f"/v1/turns/{turn}"))["status"] != "completed":
            await asyncio.sleep(0.02)
    assert "Ann" not in str(model.requests[-1]["messages"])

    # Switched off, it is there and not used, and nothing is added.
    await ann.call("PATCH", "/v1/me/memories", {"enabled": False})
    await ann.say("I live in Rome. [tokens=3 pace=0]")
    assert "Ann" not in instructions(model)
    await ann.call("PATCH", "/v1/me/memories", {"enabled": True})

    # Erased, it is gone from the next prompt, from the list and from the latest record.
    (name,) = [each for each in (await ann.call("GET", "/v1/me/memories"))["data"] if each["text"] == NAME]
    assert name["source"]["turn_id"] == told
    await ann.call("DELETE", f"/v1/me/memories/{name['id']}")
    await ann.remembers("The user uses Kafka 5.")
    await ann.say(ASKING)
    assert "Ann" not in instructions(model)
    await ann.say("Forget everything you know about me. [tokens=3 pace=0]")
    await ann.remembers()

    index, topic = worker.environ["HEADRACE_INDEX_PREFIX"], worker.environ["HEADRACE_TOPIC_PREFIX"]
    (kept,) = [
        each
        for each in documents(services.elasticsearch_url, f"{index}memories-v1").values()
        if (each["tenant"], each["user"]) == ("acme", "ann")
    ]
    assert kept["facts"] == []
    records = [msgspec.json.decode(each) for each in await everything(services.bootstrap, f"{topic}chat.memories.v1")]
    assert [each["facts"] for each in records if (each["tenant"], each["user"]) == ("acme", "ann")][-1] == []


async def test_an_operator_can_have_nothing_remembered(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url, HEADRACE_MEMORY="off")
    client = Person(http, worker.url, "none-0123456789abcdef")

    await client.say(TELLING)
    await client.say(ASKING)

    assert "Ann" not in instructions(model)
    found = await client.call("GET", "/v1/me/memories")
    assert (found["data"], found["enabled"], found["switchable"]) == ([], False, False)


async def test_a_long_conversation_goes_on_with_a_summary_of_what_its_prompt_has_no_room_for(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(
        services,
        OPENAI_BASE_URL=model.base_url,
        HEADRACE_CONTEXT_TOKENS="600",
        HEADRACE_SUMMARY_TOKENS="20",
    )
    client = Person(http, worker.url, "none-0123456789abcdef")
    conversation = await client.converse()

    async def say(text: str) -> str:
        turn = await client.ask(conversation, f"{text} [tokens=40 pace=0]")
        await client.read(turn)
        return turn

    def asked_for_summaries() -> list[str]:
        return [
            request["messages"][1]["content"]
            for request in model.requests
            if request["messages"][0]["content"].startswith("You condense a conversation")
        ]

    for number in range(4):
        await say(f"question {number} {'of many words ' * 10}")
    async with asyncio.timeout(20):
        while len(asked_for_summaries()) < 2:
            await say("and then?")
    first, second, *_ = asked_for_summaries()
    assert first.startswith("<conversation>\nUser: question 0 of many words")
    assert second.startswith("<conversation>\nSummary so far:\n0:")

    async with asyncio.timeout(20):
        while "<summary>\n0:" not in instructions(model):
            await say("and now?")
    assert len(model.requests[-1]["messages"]) > 2  # the latest turns are there as they were said


# -- the mirror


@pytest.fixture
async def elastic(services: Services) -> Any:
    """Elasticsearch."""
    found = Elastic(services.elasticsearch_url)
    yield found
    await found.close()


def known(revision: int, *texts: str, tenant: str = "t", user: str = "u") -> Memories:
    facts = [Fact(str(n), text, f"slot-{n}", "note", 1, 1) for n, text in enumerate(texts)]
    return Memories(tenant, user, facts=facts, revision=revision)


async def test_the_mirror_shows_every_write_at_once_and_no_older_one_after_it(
    elastic: Elastic, index_prefix: str
) -> None:
    store = MemoryStore(elastic, index_prefix)
    assert await store.of("t", "u") == Memories("t", "u")

    await store.keep(known(5, "one"))
    assert await store.of("t", "u") == known(5, "one")
    await store.keep(known(4, "older"))
    await store.keep(known(5, "one"))
    assert await store.of("t", "u") == known(5, "one")
    await store.keep(known(6))
    assert await store.of("t", "u") == known(6)


async def test_the_mirror_gives_nobody_what_another_one_told(elastic: Elastic, index_prefix: str) -> None:
    store = MemoryStore(elastic, index_prefix)
    await store.keep(known(1, "mine", tenant="a", user="b/c"))

    assert (await store.of("a/b", "c")).facts == []
    assert (await store.of("a", "b")).facts == []
    # Not even where somebody's document stands in another's place.
    async with elastic.client() as client:
        stolen = msgspec.to_builtins(known(1, "mine", tenant="a", user="b/c"))
        await client.index(index=store.index, id=document_id("x", "y"), document=stolen)
    with pytest.raises(SinkUnavailable, match="somebody else"):
        await store.of("x", "y")


async def test_a_mirror_that_is_deleted_under_a_worker_is_made_anew_as_it_was(
    elastic: Elastic, index_prefix: str
) -> None:
    store = MemoryStore(elastic, index_prefix)
    await store.keep(known(1, "one"))
    async with elastic.client() as client:
        before = (await client.indices.get_mapping(index=store.index)).body
        await client.indices.delete(index=store.index)
    assert await store.of("t", "u") == Memories("t", "u")

    await store.keep(known(2, "two"))
    async with elastic.client() as client:
        assert (await client.indices.get_mapping(index=store.index)).body == before
    assert await store.of("t", "u") == known(2, "two")


async def test_a_mirror_that_is_away_says_so(index_prefix: str) -> None:
    nobody = Elastic("http://127.0.0.1:1")
    try:
        with pytest.raises(SinkUnavailable):
            await MemoryStore(nobody, index_prefix).of("t", "u")
    finally:
        await nobody.close()


async def test_a_mirror_that_has_lost_something_says_what(elastic: Elastic, index_prefix: str) -> None:
    store = MemoryStore(elastic, index_prefix)
    there, older, gone = known(5, user="a"), known(5, user="b"), known(5, user="c")
    await store.keep(there)
    await store.keep(known(4, user="b"))

    assert await store.without([there, older, gone]) == [older, gone]
