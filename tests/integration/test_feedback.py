"""What a user says of an answer is in Postgres and in the quality metrics a window later, until it is erased."""

import asyncio

import aiohttp

from config.settings import Settings
from streams.records import Feedback, decode
from streams.topics import Topics
from tables.metric_rows import AnyRow
from tests.conftest import Names, StartWorker
from tests.integration.test_archive import found
from tests.support.chat_client import ChatClient
from tests.support.kafka import everything
from tests.support.model_server import ModelServer
from tests.support.services import Services

SHORTEST_MS = 10_000


async def thumbs(services: Services, topics: Topics) -> set[tuple[str, str, int, int]]:
    """Return what the latest rows say: the turn's model and prompt, and what is up and down."""
    latest: dict[str, AnyRow] = {}
    for value in await everything(services.bootstrap, topics.metrics["quality", SHORTEST_MS].name):
        row = decode(value, AnyRow)
        if row.key not in latest or latest[row.key].revision < row.revision:
            latest[row.key] = row
    return {
        (row.dimensions.model, row.dimensions.prompt, row.measures["feedback_up"], row.measures["feedback_down"])
        for row in latest.values()
        if row.final and (row.measures["feedback_up"] or row.measures["feedback_down"])
    }


async def test_what_is_said_of_an_answer_is_kept_shown_counted_and_erased(
    services: Services,
    start_worker: StartWorker,
    model: ModelServer,
    http: aiohttp.ClientSession,
    names: Names,
    database_url: str,
) -> None:
    topics = Topics.of(Settings(topic_prefix=names.topic_prefix))
    worker = await start_worker(
        services,
        OPENAI_BASE_URL=model.base_url,
        DATABASE_URL=database_url,
        HEADRACE_WINDOW_SECONDS="1",
        HEADRACE_METRICS_GRACE_SECONDS="1",
    )
    client = ChatClient(http, worker.url)
    conversation = await client.converse()
    turn = await client.ask(conversation, "what? [tokens=5 pace=0]")
    await client.read(turn)

    given = await client.call("POST", f"/v1/turns/{turn}/feedback", {"rating": -1, "comment": "No."})
    assert (given["turn_id"], given["rating"], given["comment"]) == (turn, -1, "No.")
    (record,) = [decode(value, Feedback) for value in await everything(services.bootstrap, topics.feedback.name)]
    assert (record.turn_id, record.outcome) == (turn, "completed")

    query = "SELECT turn_id::text, rating, comment, correction FROM feedback"
    assert await found(database_url, query, lambda said: len(said) == 1) == [(turn, -1, "No.", None)]
    (shown,) = (await client.call("GET", f"/v1/conversations/{conversation}"))["turns"]
    assert shown["feedback"] == given
    async with asyncio.timeout(60):
        while await thumbs(services, topics) != {(record.model, record.prompt, 0, 1)}:
            await asyncio.sleep(0.2)
    assert record.prompt

    await client.call("DELETE", f"/v1/conversations/{conversation}")
    await found(database_url, query, lambda said: said == [])
