"""A store that lost what it had has it again after `rebuild`, while a worker goes on writing to it."""

import asyncio
import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import psycopg
from elasticsearch import Elasticsearch

from streams.records import Control, Feedback, Turn, encode
from tests.conftest import Names, StartWorker
from tests.integration.test_archive import found, searched
from tests.integration.test_turn_store import control, conversation_id, thumb, turn, turn_id
from tests.support.kafka import produce_all
from tests.support.postgres import rows
from tests.support.services import ROOT, Services
from tests.support.worker import NOT_INHERITED

CONVERSATIONS = 20


async def rebuilding(environ: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Run the command; return its exit code and all that it said."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "faust", "-A", "streams.app", "rebuild", *arguments,
        cwd=ROOT, env=kept | environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_a_rebuild_beside_a_worker_brings_back_what_was_lost_and_nothing_twice(
    services: Services, database_url: str, index_prefix: str, start_worker: StartWorker, names: Names
) -> None:
    environ = {"DATABASE_URL": database_url, "HEADRACE_INDEX_PREFIX": index_prefix}
    worker = await start_worker(
        services,
        DATABASE_URL=database_url,
        HEADRACE_INDEX_PREFIX=index_prefix,
        HEADRACE_WINDOW_SECONDS="1",
        HEADRACE_WINDOW_TURNS="50",
    )
    publish(services, names, turns=(turn(number, conversation=number % CONVERSATIONS) for number in range(400)))
    erased = {0, 7}
    publish(services, names, controls=[control("erase", conversation=number) for number in erased])
    publish(services, names, controls=[control("rename", conversation=1, title="Mine")])
    said = [thumb(number, conversation=number % CONVERSATIONS) for number in range(0, 400, 5)]
    publish(services, names, feedback=[*said, thumb(5, conversation=5, rating=-1, comment="No", at=said[0].at + 1)])
    of_feedback = "SELECT turn_id::text, rating FROM feedback ORDER BY 1"
    thumbs = sorted(
        (each.turn_id, -1 if each.turn_id == turn_id(5) else 1)
        for each in said
        if each.conversation_id not in {conversation_id(number) for number in erased}
    )
    left = {turn_id(number) for number in range(400) if number % CONVERSATIONS not in erased}
    turns = f"{index_prefix}turns"
    query = "SELECT turn_id::text FROM turns"
    await found(database_url, query, lambda kept: {key for (key,) in kept} == left)
    assert set(await searched(services.elasticsearch_url, turns, len(left))) == left
    await found(database_url, of_feedback, lambda kept: kept == thumbs)

    lose_half(services, database_url, turns)
    settings = services.environ | names.environ | environ
    an_hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds")
    running = asyncio.gather(
        *(rebuilding(settings, "--sink", sink, "--from", an_hour_ago) for sink in ("postgres", "elasticsearch"))
    )
    later = range(400, 1000)
    for number in later:
        if running.done():
            break
        await asyncio.to_thread(publish, services, names, turns=[turn(number, conversation=number % CONVERSATIONS)])
        left |= {turn_id(number)} if number % CONVERSATIONS not in erased else set()
        await asyncio.sleep(0.01)

    for code, output in await running:
        assert code == 0, output
        assert "turns written to" in output
    await found(database_url, query, lambda kept: sorted(key for (key,) in kept) == sorted(left))
    assert rows(database_url, of_feedback) == thumbs
    assert set(await searched(services.elasticsearch_url, turns, len(left))) == left
    titles = rows(database_url, "SELECT title FROM conversations WHERE conversation_id = %s", conversation_id(1))
    assert titles == [("Mine",)]
    assert worker.running


def publish(
    services: Services,
    names: Names,
    *,
    turns: Iterable[Turn] = (),
    controls: Iterable[Control] = (),
    feedback: Iterable[Feedback] = (),
) -> None:
    """Write records as a worker does: the erasure of a conversation is in its own partition."""
    for topic, records in (
        ("chat.turns.v1", turns),
        ("chat.controls.v1", controls),
        ("chat.feedback.v1", feedback),
    ):
        found = [(each.conversation_id.encode(), encode(each)) for each in records]
        produce_all(services.bootstrap, names.topic_prefix + topic, found)


def lose_half(services: Services, database_url: str, turns: str) -> None:
    """Take from both stores what they have of some conversations."""
    lost = [conversation_id(number) for number in range(CONVERSATIONS // 2)]
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM turns WHERE conversation_id = ANY(%s::uuid[])", (lost,))
        connection.execute("DELETE FROM feedback WHERE conversation_id = ANY(%s::uuid[])", (lost,))
    with Elasticsearch(services.elasticsearch_url) as client:
        client.delete_by_query(index=turns, query={"terms": {"conversation_id": lost}}, refresh=True)
