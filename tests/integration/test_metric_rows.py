"""What the metrics topics and Postgres say of a window is what its turns add up to, though the worker is killed."""

import asyncio
import time
from collections import defaultdict
from datetime import datetime
from functools import reduce
from operator import add

import psycopg
from msgspec import json, to_builtins

from config.settings import Settings
from domain.generation import Usage
from domain.ids import new_turn_id, uuid7
from domain.turns import Outcome, Timings
from domain.windows import SIZES_MS, start_of
from streams.records import Turn, decode, encode
from streams.topics import METRICS, Topics
from tables.measures import Measures, measured
from tables.metric_rows import AnyRow, rows_of
from tests.conftest import Names, StartWorker
from tests.support.kafka import everything, produce_all
from tests.support.postgres import rows
from tests.support.services import Services

OUTCOMES: tuple[Outcome, ...] = ("completed", "completed", "stopped", "failed")
Said = dict[tuple[str, int, str], AnyRow]  # by metric, size and key


def finished(number: int, over: int) -> Turn:
    """Return a turn of the five minutes before ``over``."""
    ended_at = over - number * 7919 % 300_000
    return Turn(
        turn_id=new_turn_id(ended_at, 0, number),
        conversation_id=uuid7(0, 0, number % 20),
        tenant="acme" if number % 3 else 'o\'ne "two"',
        user="u",
        input="?",
        answer="!",
        model="m",
        outcome=OUTCOMES[number % 4],
        claims=1 + number % 2,
        usage=Usage(number, number % 50),
        timings=Timings(1, number % 700, 1000 + number),
        ended_at=ended_at,
    )


def truth_of(turns: list[Turn]) -> Said:
    """Return what turns add up to, each row with revision 0."""
    sums: dict[tuple[int, int], dict[object, list[Measures]]] = defaultdict(lambda: defaultdict(list))
    for turn in turns:
        dimensions, measures = measured(turn)
        for size in SIZES_MS:
            sums[size, start_of(turn.ended_at, size)][dimensions].append(measures)
    return {
        (metric, size, row.key): decode(encode(row), AnyRow)
        for (size, start), by_dimensions in sums.items()
        for dimensions, each in by_dimensions.items()
        for metric, row in rows_of(size, start, dimensions, reduce(add, each), revision=0, final=True)  # type: ignore[arg-type]
    }


async def said(services: Services, topics: Topics) -> Said:
    """Return the latest revision of each key, as revision 0; no revision may say two things."""
    found: Said = {}
    seen: dict[tuple[str, int, str, int], AnyRow] = {}
    values = await asyncio.gather(*(everything(services.bootstrap, topic.name) for topic in topics.metrics.values()))
    for (metric, size), of_topic in zip(topics.metrics, values, strict=True):
        latest: dict[str, AnyRow] = {}
        for value in of_topic:
            row = decode(value, AnyRow)
            assert seen.setdefault((metric, size, row.key, row.revision), row) == row
            if row.key not in latest or latest[row.key].revision < row.revision:
                latest[row.key] = row
        found |= {(metric, size, key): _plain(row) for key, row in latest.items()}
    return found


def _plain(row: AnyRow) -> AnyRow:
    return decode(encode(row).replace(b'"revision":%d' % row.revision, b'"revision":0'), AnyRow)


def in_postgres(url: str) -> dict[tuple[str, datetime, str], tuple[object, ...]]:
    """Return the rows that Postgres has, by metric, window and the key's dimensions."""
    try:
        found = rows(url, "SELECT metric, window_start, key, dimensions, measures, final FROM metrics_1m")
    except psycopg.Error:  # the tables are not there yet
        return {}
    return {(metric, start, key): tuple(rest) for metric, start, key, *rest in found}


async def test_every_row_is_what_its_turns_add_up_to(
    services: Services, start_worker: StartWorker, names: Names, database_url: str
) -> None:
    topics = Topics.of(Settings(topic_prefix=names.topic_prefix))
    over = start_of(time.time_ns() // 1_000_000, SIZES_MS[-1]) - 1
    turns = [finished(number, over) for number in range(600)]
    truth = truth_of(turns)
    minutes = {
        (metric, row.window_start, json.encode(row.dimensions).decode()): (
            to_builtins(row.dimensions),
            row.measures,
            True,
        )
        for (metric, size, _), row in truth.items()
        if size == 60_000
    }

    def publish(some: list[Turn]) -> None:
        # Some of them twice, as by a worker that died before it knew that Kafka had the turn.
        records = [(each.conversation_id.encode(), encode(each)) for each in [*some, *some[::50]]]
        produce_all(services.bootstrap, topics.turns.name, records)

    worker = await start_worker(services, HEADRACE_METRICS_GRACE_SECONDS="1", DATABASE_URL=database_url)
    publish(turns[:400])
    async with asyncio.timeout(30):
        while not await said(services, topics):
            await asyncio.sleep(0.05)
    worker.kill()
    await worker.start()
    publish(turns[400:])

    async with asyncio.timeout(60):
        while await said(services, topics) != truth:
            await asyncio.sleep(0.2)
        while await asyncio.to_thread(in_postgres, database_url) != minutes:
            await asyncio.sleep(0.2)
    assert {metric for metric, _, _ in truth} == set(METRICS)
    assert await everything(services.bootstrap, topics.dead_letters.name) == []
