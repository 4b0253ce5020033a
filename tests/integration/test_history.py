"""What Postgres has of a user's past is read as the fake says it is, in a second or not, and joined with the tables."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import psycopg
import pytest

from adapters.history import History
from adapters.postgres import Postgres
from adapters.turn_store import TurnStore
from deploy.embedded import Embedded
from domain.errors import SinkUnavailable
from domain.history import Owner, StoredConversation, StoredFeedback, StoredTurn
from tests.conftest import StartWorker
from tests.support.chat_client import ChatClient
from tests.support.fakes import FakeHistory
from tests.support.model_server import ModelServer
from tests.support.past import LONG_AGO, MINUTE, old_conversation, old_conversation_id, old_turn, old_turn_id, seed
from tests.support.postgres import rows
from tests.support.services import Services
from web.ports import History as HistoryPort

ALICE, BOB, OTHER_ALICE = Owner("acme", "alice"), Owner("acme", "bob"), Owner("corp", "alice")
DEV = Owner("dev", "dev")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[History]:
    postgres = Postgres(url, connections=2)
    await postgres.open()
    history = History(postgres)
    try:
        yield history
    finally:
        await history.close()
        await postgres.close()


async def prepare(url: str) -> None:
    """Make the tables."""
    postgres = Postgres(url)
    await postgres.open()
    await TurnStore(postgres).prepare()
    await postgres.close()


SAID = StoredFeedback(old_turn_id(2), -1, "Wrong", "It is 4.", LONG_AGO)
PAST: dict[Owner, list[StoredConversation | StoredTurn]] = {
    ALICE: [
        *(old_conversation(number) for number in range(1, 8)),
        *(old_turn(number, old_conversation_id(1)) for number in range(1, 8)),
        old_turn(9, old_conversation_id(1), in_conversation=False),
    ],
    BOB: [old_conversation(20), old_turn(20, old_conversation_id(20))],
    OTHER_ALICE: [old_conversation(21), old_turn(21, old_conversation_id(21))],
}


@pytest.fixture(params=["fake", "postgres"])
async def history(request: pytest.FixtureRequest) -> AsyncIterator[HistoryPort]:
    if request.param == "fake":
        fake = FakeHistory()
        for owner, found in PAST.items():
            for each in found:
                if isinstance(each, StoredTurn):
                    fake.kept_turns[each.turn_id] = owner, each
                else:
                    fake.kept_conversations[each.conversation_id] = owner, each
        fake.kept_feedback[SAID.turn_id] = ALICE, SAID
        yield fake
        return
    url = request.getfixturevalue("database_url")
    await prepare(url)
    for owner, found in PAST.items():
        seed(url, owner, *found)
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO feedback VALUES (%s, %s, %s, %s, -1, 'Wrong', 'It is 4.', to_timestamp(%s))",
            (SAID.turn_id, old_conversation_id(1), *ALICE, LONG_AGO / 1000),
        )
    async with opened(url) as real:
        yield real


# -- the fake and Postgres alike


async def test_conversations_come_latest_first_without_the_known_up_to_the_limit(history: HistoryPort) -> None:
    known = [old_conversation_id(6), old_conversation_id(99)]

    assert await history.conversations(ALICE, known=known, limit=3) == [old_conversation(each) for each in (7, 5, 4)]


async def test_conversations_continue_after_a_place(history: HistoryPort) -> None:
    at = datetime.fromtimestamp((LONG_AGO + 3 * MINUTE) / 1000, UTC)

    found = await history.conversations(ALICE, before=(at, old_conversation_id(3)), limit=9)
    with_it = await history.conversations(ALICE, before=(at, old_conversation_id(4)), limit=9)

    assert found == [old_conversation(2), old_conversation(1)]
    assert with_it == [old_conversation(3), *found]


async def test_turns_come_latest_first_before_one_without_the_known_and_outsiders(history: HistoryPort) -> None:
    conversation = old_conversation_id(1)

    latest = await history.turns(ALICE, conversation, limit=2)
    before = await history.turns(ALICE, conversation, before=old_turn_id(5), known=[old_turn_id(3)], limit=9)

    assert latest == [old_turn(7, conversation), old_turn(6, conversation)]
    assert before == [old_turn(number, conversation) for number in (4, 2, 1)]


async def test_one_turn_is_found_in_a_conversation_or_not(history: HistoryPort) -> None:
    outside = old_turn(9, old_conversation_id(1), in_conversation=False)

    assert await history.turn(ALICE, old_turn_id(9)) == outside
    assert await history.turn(ALICE, old_turn_id(8)) is None
    assert await history.conversation(ALICE, old_conversation_id(2)) == old_conversation(2)


async def test_what_was_said_of_turns_is_found_by_their_ids(history: HistoryPort) -> None:
    assert await history.feedback(ALICE, [old_turn_id(1), old_turn_id(2)]) == [SAID]
    assert await history.feedback(ALICE, [old_turn_id(1)]) == []
    assert await history.feedback(ALICE, []) == []


@pytest.mark.parametrize("asker", [BOB, OTHER_ALICE, Owner("corp", "bob")])
async def test_nobody_gets_what_is_anothers(history: HistoryPort, asker: Owner) -> None:
    theirs = {old_conversation_id(number) for number in range(1, 8)}

    assert theirs.isdisjoint(one.conversation_id for one in await history.conversations(asker, limit=99))
    assert await history.conversation(asker, old_conversation_id(1)) is None
    assert await history.turns(asker, old_conversation_id(1), limit=99) == []
    assert await history.turn(asker, old_turn_id(1)) is None
    assert await history.feedback(asker, [SAID.turn_id]) == []


# -- Postgres in trouble


async def test_a_query_that_takes_too_long_is_given_up(database_url: str) -> None:
    await prepare(database_url)
    async with opened(database_url) as history:
        with psycopg.connect(database_url) as connection:
            connection.execute("LOCK TABLE conversations IN ACCESS EXCLUSIVE MODE")
            assert "statement timeout" in await refusal(history)
        assert await refusal(history) == ""


async def test_a_postgres_that_stops_in_mid_query_is_soon_left_alone_and_asked_again_later(tmp_path: Path) -> None:
    with Embedded(tmp_path / "postgres", only={"pg"}) as postgres:
        url = postgres.environ["DATABASE_URL"]
        await prepare(url)
        async with opened(url) as history:
            assert await refusal(history) == ""
            with frozen(url):
                async with asyncio.timeout(20):
                    reasons = [await refusal(history)]
                    while "left alone" not in reasons[-1]:
                        reasons.append(await refusal(history))
            assert "did not answer" in reasons[0]
            async with asyncio.timeout(30):
                while await refusal(history):
                    await asyncio.sleep(0.05)


@contextmanager
def frozen(url: str) -> Iterator[None]:
    """Stop the server that is at a URL on this machine, and all its processes, for a while."""
    ((folder,),) = rows(url, "SHOW data_directory")
    server = psutil.Process(int(Path(folder, "postmaster.pid").read_text().split()[0]))
    processes = [server, *server.children(recursive=True)]
    try:
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # the backend of the question above has ended meanwhile
                process.suspend()
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


async def refusal(history: History) -> str:
    """Return why a read was refused, "" if it was not."""
    try:
        await history.conversations(ALICE, limit=1)
    except SinkUnavailable as error:
        return str(error)
    return ""


# -- a worker


async def test_a_worker_shows_a_conversation_to_the_first_turn_while_postgres_comes_and_goes(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    with Embedded(tmp_path / "postgres", only={"pg"}) as postgres:
        url = postgres.environ["DATABASE_URL"]
        await prepare(url)
        seed(url, DEV, *PAST[ALICE])
        seed(url, BOB, *PAST[BOB])
        worker = await start_worker(
            services,
            OPENAI_BASE_URL=model.base_url,
            DATABASE_URL=url,
            HEADRACE_WINDOW_SECONDS="1",
            HEADRACE_CONTEXT_TOKENS="512",
            HEADRACE_SESSION_TOKENS="512",
        )
        client = ChatClient(http, worker.url)
        conversation = await client.converse()
        asked = [f"Question {number} [tokens=120 pace=0]" for number in range(8)]
        for question in asked:
            await client.read(await client.ask(conversation, question))
            # Also the moment in which a turn has left the table and is not in Postgres.
            assert await whole(client, conversation, 3) == asked[: asked.index(question) + 1]
        async with asyncio.timeout(30):
            while len(rows(url, "SELECT FROM turns WHERE conversation_id = %s::uuid", conversation)) < len(asked):
                await asyncio.sleep(0.1)
        assert await whole(client, conversation, 3) == asked
        everything = [conversation, *(old_conversation_id(number) for number in range(7, 0, -1))]
        assert await listed(client, 3) == everything
        assert await whole(client, old_conversation_id(1), 2) == [f"Question {number}?" for number in range(1, 8)]

        postgres.stop()
        recent = await client.call("GET", f"/v1/conversations/{conversation}")
        texts = [turn["input"] for turn in recent["turns"]]
        assert recent["older_unavailable"]
        assert 0 < len(texts) < len(asked)
        assert texts == asked[-len(texts) :]
        page = await client.call("GET", "/v1/conversations")
        assert ([one["id"] for one in page["data"]], page["older_unavailable"]) == ([conversation], True)

        postgres.start()
        async with asyncio.timeout(30):
            while (await client.call("GET", "/v1/conversations"))["older_unavailable"]:
                await asyncio.sleep(0.1)
        assert await whole(client, conversation, 3) == asked
        await client.call("DELETE", f"/v1/conversations/{old_conversation_id(7)}")
        everything.remove(old_conversation_id(7))
        assert await listed(client, 100) == everything
        await worker.stop()


async def complete(client: ChatClient, path: str) -> Any:
    """Return a page; one that says that it lacks what Postgres has is asked for again, as a page is worth a second."""
    async with asyncio.timeout(15):
        while (page := await client.call("GET", path))["older_unavailable"]:
            await asyncio.sleep(0.1)
    return page


async def whole(client: ChatClient, conversation_id: str, limit: int) -> list[str]:
    """Return a conversation's questions, read page by page."""
    found: list[str] = []
    query, more = f"limit={limit}", True
    while more:
        part = await complete(client, f"/v1/conversations/{conversation_id}?{query}")
        found = [turn["input"] for turn in part["turns"]] + found
        more = part["has_more"]
        query = f"limit={limit}&before={part['turns'][0]['turn_id']}" if more else ""
    return found


async def listed(client: ChatClient, limit: int) -> list[str]:
    """Return the ids of the user's conversations, read page by page."""
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await complete(client, f"/v1/conversations?limit={limit}&after={after}")
        found += [one["id"] for one in page["data"]]
        after = page["next"]
    return found
