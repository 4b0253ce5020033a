"""What Postgres, Elasticsearch and the metrics topics say, read past the product's code."""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec
import psycopg
from confluent_kafka import Consumer, TopicPartition
from elasticsearch import AsyncElasticsearch
from psycopg.rows import dict_row

Found = Iterable[tuple[Any, Mapping[str, Any]]]

INDEX: Final = "headrace-turns"
LABELS: Final = {10: "10s", 60: "1m", 300: "5m"}
TIMES: Final = ("asked_at", "ended_at", "created_at", "updated_at", "given_at")
DIMENSIONS: Final = ("tenant", "model", "prompt", "outcome", "cache", "experiment")
# Of each table of Postgres, what tells its rows apart.
KEYS: Final = {
    "turns": ("turn_id",),
    "usage": ("turn_id",),
    "citations": ("turn_id", "n"),
    "conversations": ("conversation_id",),
    "feedback": ("turn_id",),
}


async def in_postgres(connection: psycopg.AsyncConnection[Any], table: str) -> Found:
    """Return a table's rows by their keys."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(f"SELECT * FROM {table}".encode())  # noqa: S608 - one of ours
        rows = [{name: plain(value, name) for name, value in row.items()} for row in await cursor.fetchall()]
    keys = [tuple(row.pop(name) for name in KEYS[table]) for row in rows]
    return [(key if len(key) > 1 else key[0], row) for key, row in zip(keys, rows, strict=True)]


async def metrics_in_postgres(connection: psycopg.AsyncConnection[Any], metric: str) -> Found:
    """Return the final rows of a one-minute metric."""
    query = "SELECT window_start, dimensions, measures FROM metrics_1m WHERE final AND metric = %s"
    rows = await (await connection.execute(query, (metric,))).fetchall()
    return [(_cell(start, dimensions), measures) for start, dimensions, measures in rows]


async def in_elasticsearch(client: AsyncElasticsearch) -> Found:
    """Return the turns by id."""
    return [
        (row.pop("turn_id"), {name: plain(value, name) for name, value in row.items()})
        async for row in _documents(client)
    ]


def metrics_in_kafka(bootstrap: str, metric: str, width: int) -> Found:
    """Return of each row of a topic the highest revision, and only if that is final."""
    topic = f"chat.metrics.{metric}.{LABELS[width]}.v1"
    latest: dict[bytes, dict[str, Any]] = {}
    for key, value in _records(bootstrap, topic):
        row = msgspec.json.decode(value)
        if key not in latest or row["revision"] >= latest[key]["revision"]:
            latest[key] = row
    return [
        (_cell(datetime.fromisoformat(row["window_start"]), row["dimensions"]), row["measures"])
        for row in latest.values()
        if row["final"]
    ]


def plain(value: Any, name: str) -> Any:
    """Return a value as what was written has it: times in Unix ms, ids as texts, money as a float."""
    match value:
        case Decimal():
            return float(value)
        case datetime():
            return round(value.timestamp() * 1000)
        case str() if name in TIMES:
            return round(datetime.fromisoformat(value).timestamp() * 1000)
        case None | bool() | int() | float() | str() | list() | dict():
            return value
        case _:
            return str(value)


def _cell(start: datetime, dimensions: Mapping[str, str]) -> tuple[Any, ...]:
    return (int(start.timestamp()), *(dimensions[name] for name in DIMENSIONS))


async def _documents(client: AsyncElasticsearch) -> AsyncIterator[dict[str, Any]]:
    after: Sequence[Any] | None = None
    while True:
        found = await client.search(
            index=INDEX, size=1000, sort=[{"turn_id": "asc"}], query={"match_all": {}}, search_after=after
        )
        hits = found["hits"]["hits"]
        for hit in hits:
            yield hit["_source"]
        if not hits:
            return
        after = hits[-1]["sort"]


def _records(bootstrap: str, topic: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a topic of one partition, up to its end."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "check", "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        while True:
            for message in consumer.consume(1000, 0.5):
                if message.error() is not None:
                    return
                yield message.key() or b"", message.value() or b""
    finally:
        consumer.close()
