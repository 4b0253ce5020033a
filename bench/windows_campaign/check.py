"""Compares what Postgres, Elasticsearch and the metrics topics say in the end with what was written."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from time import monotonic, time
from typing import Any, Final

import msgspec
import psycopg
from confluent_kafka import Consumer, TopicPartition
from elasticsearch import AsyncElasticsearch

from bench.windows_campaign.load import Truth

PATIENCE_SECONDS: Final = 120.0
POLL_SECONDS: Final = 1.0
SHOWN: Final = 3
TURNS: Final = """
    SELECT turn_id::text, (extract(epoch FROM ended_at) * 1000)::bigint, tenant, model, outcome, answer,
           input_tokens, output_tokens, first_token_ms, claims
    FROM turns
"""

INDEX: Final = "headrace-turns"

Row = tuple[Any, ...]
Window = tuple[int, str, str, str]
Sums = tuple[int, ...]


async def check(
    truth: Mapping[str, Truth], environ: Mapping[str, str], widths: Iterable[int], say: Callable[[str], None]
) -> bool:
    """Wait until all have had the time to say it; say what is right and what is not, and return whether all is."""
    is_right = True
    checks = {
        "Postgres": _postgres(truth, environ["DATABASE_URL"]),
        "Elasticsearch": _elasticsearch(truth, environ["ELASTICSEARCH_URL"]),
        **{f"windows of {width} s": _metrics(truth, environ["KAFKA_BOOTSTRAP_SERVERS"], width) for width in widths},
    }
    for name, checking in checks.items():
        wrong = await checking
        for line in wrong or [f"{name}: every row is as it was written"]:
            say(line)
        is_right = is_right and not wrong
    return is_right


async def _postgres(truth: Mapping[str, Truth], url: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:

        async def count() -> int:
            found = await (await connection.execute("SELECT count(*) FROM turns")).fetchone()
            return int(found[0]) if found else 0

        await _until(len(truth), count)
        rows = await (await connection.execute(TURNS)).fetchall()
    expected: dict[str, Row] = {
        each.turn_id: (
            *(each.turn_id, each.ended_at, each.tenant, each.model, each.outcome, each.answer),
            *(each.input_tokens, each.output_tokens, each.first_token_ms, each.claims),
        )
        for each in truth.values()
    }
    return _differences("Postgres", expected, rows)


async def _elasticsearch(truth: Mapping[str, Truth], url: str) -> list[str]:
    async with AsyncElasticsearch(url) as client:

        async def count() -> int:
            await client.indices.refresh(index=INDEX)
            return int((await client.count(index=INDEX))["count"])

        await _until(len(truth), count)
        rows = [row async for row in _documents(client)]
    expected: dict[str, Row] = {
        each.turn_id: (each.turn_id, each.tenant, each.model, each.outcome, each.answer) for each in truth.values()
    }
    return _differences("Elasticsearch", expected, rows)


async def _metrics(truth: Mapping[str, Truth], bootstrap: str, width: int) -> list[str]:
    """Wait until the windows of a width say what they should, or no more of them do for a while."""
    expected = _expected_windows(truth.values(), width)
    closes_in = width - (time() - max(each.ended_at for each in truth.values()) / 1000)
    wrong: list[Window] = list(expected)
    since = monotonic() + max(closes_in, 0.0)
    while True:
        found = await asyncio.to_thread(_windows, bootstrap, width)
        left = [window for window, sums in expected.items() if found.get(window) != sums]
        if len(left) < len(wrong):
            since = max(since, monotonic())
        wrong = left
        if not wrong or monotonic() - since > PATIENCE_SECONDS:
            break
        await asyncio.sleep(POLL_SECONDS)
    more = [window for window in found if window not in expected]
    lines = [f"{len(wrong)} of {len(expected)} windows of {width} s are wrong"] if wrong else []
    lines += [f"  {window} is {found.get(window)}, and not {expected[window]}" for window in wrong[:SHOWN]]
    return lines + ([f"{len(more)} windows of {width} s of nothing, such as {more[0]}"] if more else [])


def _expected_windows(truth: Iterable[Truth], width: int) -> dict[Window, Sums]:
    """Return what each final row has to say: turns, resumed, input and output tokens, first tokens in the sketch."""
    windows: dict[Window, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for each in truth:
        start = each.ended_at // (width * 1000) * width
        sums = windows[start, each.tenant, each.model, each.outcome]
        for place, more in enumerate((1, each.claims > 1, each.input_tokens, each.output_tokens, 1)):
            sums[place] += more
    return {window: tuple(sums) for window, sums in windows.items()}


def _windows(bootstrap: str, width: int) -> dict[Window, Sums]:
    """Return what the topics say by now: of each row the highest revision, and only if that is final."""
    label = {10: "10s", 60: "1m", 300: "5m"}[width]
    turns, tokens = (_latest(bootstrap, f"chat.metrics.{name}.{label}.v1") for name in ("turns", "tokens"))
    found: dict[Window, Sums] = {}
    for key, row in turns.items():
        other = tokens.get(key)
        if other is not None and row["final"] and other["final"]:
            named, counted, spent = row["dimensions"], row["measures"], other["measures"]
            start = int(datetime.fromisoformat(row["window_start"]).timestamp())
            found[start, named["tenant"], named["model"], named["outcome"]] = (
                *(counted["turns"], counted["resumed"], spent["input_tokens"], spent["output_tokens"]),
                sum(spent["first_token_ms"]["sketch"].values()),
            )
    return found


def _latest(bootstrap: str, topic: str) -> dict[str, dict[str, Any]]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "check", "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, 0, 0)])
    latest: dict[str, dict[str, Any]] = {}
    try:
        while True:
            for message in consumer.consume(1000, 0.5):
                if message.error() is not None:
                    return latest
                row = msgspec.json.decode(message.value() or b"")
                key = (message.key() or b"").decode()
                if key not in latest or row["revision"] >= latest[key]["revision"]:
                    latest[key] = row
    finally:
        consumer.close()


async def _documents(client: AsyncElasticsearch) -> AsyncIterator[Row]:
    after: Sequence[Any] | None = None
    while True:
        found = await client.search(
            index=INDEX, size=1000, sort=[{"turn_id": "asc"}], query={"match_all": {}}, search_after=after
        )
        hits = found["hits"]["hits"]
        for hit in hits:
            source = hit["_source"]
            yield tuple(source[name] for name in ("turn_id", "tenant", "model", "outcome", "answer"))
        if not hits:
            return
        after = hits[-1]["sort"]


async def _until(expected: int, count: Callable[[], Awaitable[int]]) -> None:
    """Wait until there are so many, or no more came for a while."""
    seen, since = -1, monotonic()
    while seen < expected and monotonic() - since < PATIENCE_SECONDS:
        found = await count()
        if found != seen:
            seen, since = found, monotonic()
        await asyncio.sleep(POLL_SECONDS)


def _differences(store: str, expected: Mapping[str, Row], rows: Sequence[Row]) -> list[str]:
    """Say which turns a store lacks, has twice, has otherwise, or has of nobody."""
    times = Counter(row[0] for row in rows)
    found = {
        "lacks": [turn_id for turn_id in expected if turn_id not in times],
        "has more than once": [turn_id for turn_id, count in times.items() if count > 1],
        "has of nobody": [turn_id for turn_id in times if turn_id not in expected],
        "has otherwise": [row[0] for row in rows if row[0] in expected and expected[row[0]] != row],
    }
    return [
        f"{store} {what} {len(turn_ids):,} of {len(expected):,} turns, such as {', '.join(turn_ids[:SHOWN])}"
        for what, turn_ids in found.items()
        if turn_ids
    ]
