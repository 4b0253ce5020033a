"""What people ask and are answered is in both stores a window later; a store that is away costs delay alone."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import psycopg

from deploy.embedded import Embedded
from tests.conftest import StartWorker
from tests.support.chat_client import ChatClient
from tests.support.model_server import ModelServer
from tests.support.postgres import rows
from tests.support.search import FailingSearch, documents
from tests.support.services import Services


async def found(url: str, query: str, enough: Callable[[list[tuple[Any, ...]]], bool]) -> list[tuple[Any, ...]]:
    """Return what a query finds as soon as it is enough."""
    async with asyncio.timeout(60):
        while True:
            try:
                if enough(result := await asyncio.to_thread(rows, url, query)):
                    return result
            except psycopg.Error:
                pass  # the server or the tables are not there yet
            await asyncio.sleep(0.1)


async def searched(url: str, index: str, count: int) -> dict[str, dict[str, Any]]:
    """Return the documents of an index as soon as there are so many."""
    async with asyncio.timeout(60):
        while len(result := await asyncio.to_thread(documents, url, index)) != count:
            await asyncio.sleep(0.1)
    return result


async def metric(http: aiohttp.ClientSession, url: str, line: str) -> float:
    """Return the value of one series."""
    async with http.get(f"{url}/metrics") as answer:
        values = [each.rpartition(" ")[2] for each in (await answer.text()).splitlines() if each.startswith(line)]
    return float(values[0]) if values else -1.0


async def test_turns_and_their_conversation_are_in_postgres_a_window_later(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession, database_url: str
) -> None:
    worker = await start_worker(
        services, OPENAI_BASE_URL=model.base_url, DATABASE_URL=database_url, HEADRACE_WINDOW_SECONDS="1"
    )
    client = ChatClient(http, worker.url)
    kept, erased = await client.converse(), await client.converse()
    asked = [await client.ask(conversation, "what? [tokens=5 pace=0]") for conversation in (kept, kept, erased)]
    seen = [await client.read(turn) for turn in asked]

    query = "SELECT turn_id::text, conversation_id::text, answer, outcome FROM turns ORDER BY turn_id"
    assert await found(database_url, query, lambda turns: len(turns) == 3) == [
        (turn, conversation, each.text, "completed")
        for turn, conversation, each in zip(asked, (kept, kept, erased), seen, strict=True)
    ]

    await client.call("PATCH", f"/v1/conversations/{kept}", {"title": "Mine"})
    await client.call("DELETE", f"/v1/conversations/{erased}")
    query = "SELECT conversation_id::text, title, erased_at IS NOT NULL FROM conversations ORDER BY 1"
    expected = sorted([(kept, "Mine", False), (erased, "", True)])
    assert await found(database_url, query, lambda conversations: conversations == expected)
    assert len(rows(database_url, "SELECT FROM turns")) == 2


async def test_a_worker_answers_without_postgres_and_writes_what_it_lacks_when_it_is_there(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    postgres = Embedded(tmp_path / "postgres", only={"pg"})
    url = postgres.environ["DATABASE_URL"]
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url, DATABASE_URL=url, HEADRACE_WINDOW_SECONDS="1")
    client = ChatClient(http, worker.url)
    conversation = await client.converse()
    async with asyncio.timeout(60):
        while "archive waits" not in worker.log.read_text():
            await asyncio.sleep(0.1)
    first = await client.ask(conversation, "first [tokens=5 pace=0]")
    assert (await client.read(first)).outcome == "completed"
    assert await metric(http, worker.url, 'headrace_archive_up{sink="postgres"}') == 0

    with postgres:
        query = "SELECT turn_id::text FROM turns ORDER BY turn_id"
        assert await found(url, query, lambda turns: len(turns) == 1) == [(first,)]
        assert "archive goes on" in worker.log.read_text()

        postgres.stop()
        second = await client.ask(conversation, "second [tokens=5 pace=0]")
        assert (await client.read(second)).outcome == "completed"
        postgres.start()
        assert await found(url, query, lambda turns: len(turns) == 2) == [(first,), (second,)]
        await worker.stop()


async def test_turns_are_found_in_elasticsearch_a_window_later_until_they_are_erased(
    services: Services, index_prefix: str, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(
        services, OPENAI_BASE_URL=model.base_url, HEADRACE_INDEX_PREFIX=index_prefix, HEADRACE_WINDOW_SECONDS="1"
    )
    client = ChatClient(http, worker.url)
    kept, erased = await client.converse(), await client.converse()
    asked = [await client.ask(conversation, "what? [tokens=5 pace=0]") for conversation in (kept, erased)]
    seen = [await client.read(turn) for turn in asked]

    found = await searched(services.elasticsearch_url, f"{index_prefix}turns", 2)
    assert {key: (each["conversation_id"], each["answer"]) for key, each in found.items()} == {
        turn: (conversation, each.text) for turn, conversation, each in zip(asked, (kept, erased), seen, strict=True)
    }

    await client.call("DELETE", f"/v1/conversations/{erased}")
    assert set(await searched(services.elasticsearch_url, f"{index_prefix}turns", 1)) == {asked[0]}


async def test_a_worker_answers_without_elasticsearch_and_writes_what_it_lacks_when_it_is_there(
    services: Services,
    index_prefix: str,
    database_url: str,
    start_worker: StartWorker,
    model: ModelServer,
    http: aiohttp.ClientSession,
) -> None:
    search = FailingSearch(services.elasticsearch_url)
    search.down = True
    async with search.serving():
        worker = await start_worker(
            services,
            OPENAI_BASE_URL=model.base_url,
            ELASTICSEARCH_URL=search.url.replace("://", "://elastic:hunter2hunter2@"),
            DATABASE_URL=database_url,
            HEADRACE_INDEX_PREFIX=index_prefix,
            HEADRACE_WINDOW_SECONDS="1",
        )
        client = ChatClient(http, worker.url)
        conversation = await client.converse()
        asked = [await client.ask(conversation, "what? [tokens=5 pace=0]")]
        assert (await client.read(asked[0])).outcome == "completed"
        # One sink waits, and the other does not wait for it.
        assert await found(database_url, "SELECT FROM turns", lambda turns: len(turns) == 1)
        assert await metric(http, worker.url, 'headrace_archive_up{sink="elasticsearch"}') == 0

        search.down = False
        assert set(await searched(services.elasticsearch_url, f"{index_prefix}turns", 1)) == set(asked)

        search.down = True
        asked.append(await client.ask(conversation, "what? [tokens=5 pace=0]"))
        assert (await client.read(asked[1])).outcome == "completed"
        search.down = False
        assert set(await searched(services.elasticsearch_url, f"{index_prefix}turns", 2)) == set(asked)
        await worker.stop()
    said = worker.log.read_text()
    assert "archive waits" in said
    assert "archive goes on" in said
    assert "hunter2" not in said
