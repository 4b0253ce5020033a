"""Compares all that Postgres, Elasticsearch and the metrics topics say in the end with what was written."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from time import monotonic, time
from typing import Any, Final

import psycopg
from elasticsearch import AsyncElasticsearch

from bench.windows_campaign import truth
from bench.windows_campaign.found import (
    INDEX,
    KEYS,
    LABELS,
    Found,
    in_elasticsearch,
    in_postgres,
    metrics_in_kafka,
    metrics_in_postgres,
)
from bench.windows_campaign.load import Written
from bench.windows_campaign.truth import MEASURES, Durations, Row, Rows

Look = Callable[[], Awaitable[Found]]

PATIENCE_SECONDS: Final = 120.0
POLL_SECONDS: Final = 1.0
SHOWN: Final = 3
HEADER: Final = f"{'':32}{'expected':>9}{'missing':>9}{'twice':>7}{'unknown':>9}{'otherwise':>11}"
# DDSketch's promise, and the three decimals that quantiles are rounded to.
ACCURACY: Final = 0.01
ROUNDED: Final = 0.0005
QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
BIN_GROWTH: Final = 1.01 / 0.99


@dataclass
class Compared:
    """How the rows of one table, index or topic are. Each is named in one list at most, with what is wrong with it."""

    what: str
    expected: int
    missing: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    otherwise: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """How many rows are not as they should be."""
        return sum(map(len, (self.missing, self.twice, self.unknown, self.otherwise)))

    def __str__(self) -> str:
        found = (len(self.missing), len(self.twice), len(self.unknown), len(self.otherwise))
        missing, twice, unknown, otherwise = (f"{count:,}" if count else "-" for count in found)
        return f"{self.what:32}{self.expected:>9,}{missing:>9}{twice:>7}{unknown:>9}{otherwise:>11}"

    def examples(self) -> Iterable[str]:
        """Yield some of what is wrong."""
        for what in ("missing", "twice", "unknown", "otherwise"):
            for row in getattr(self, what)[:SHOWN]:
                yield f"{self.what}: {what}: {row}"


async def check(
    written: Written, environ: Mapping[str, str], widths: Iterable[int], say: Callable[[str], None]
) -> bool:
    """Wait until all have had the time to say it; print a table of it, and return whether all is right."""
    done = []
    say(HEADER)
    async for each in _comparisons(written, environ, sorted(widths)):
        done.append(each)
        say(str(each))
    wrong = [line for each in done for line in each.examples()]
    for line in wrong or ["every row is as it was written"]:
        say(line)
    return not wrong


async def _comparisons(written: Written, environ: Mapping[str, str], widths: Iterable[int]) -> AsyncIterator[Compared]:
    bootstrap, patience = environ["KAFKA_BOOTSTRAP_SERVERS"], Patience()
    async with AsyncExitStack() as stack:
        connect = psycopg.AsyncConnection.connect(environ["DATABASE_URL"], autocommit=True)
        connection = await stack.enter_async_context(await connect)
        client = await stack.enter_async_context(AsyncElasticsearch(environ["ELASTICSEARCH_URL"]))
        await patience.until(len(written.turns), partial(_count, connection))
        for table in KEYS:
            expected = getattr(truth, table)(written)
            yield await patience.settled(f"Postgres {table}", expected, partial(in_postgres, connection, table))
        await patience.until(len(written.turns), partial(_count_documents, client))
        yield await patience.settled("Elasticsearch turns", truth.documents(written), partial(in_elasticsearch, client))
        for width in widths:
            closes_in = _closes_in(written, width)
            for metric in MEASURES:
                look: Look = partial(asyncio.to_thread, metrics_in_kafka, bootstrap, metric, width)
                expected = truth.metrics(written, metric, width)
                yield await patience.settled(f"topic {metric} {LABELS[width]}", expected, look, closes_in=closes_in)
                if width == 60:
                    look = partial(metrics_in_postgres, connection, metric)
                    yield await patience.settled(f"Postgres metrics_1m {metric}", expected, look)


# -- waiting


class Patience:
    """Waits for rows to become right. Once that was in vain nothing is waited for any more: all had the same time."""

    def __init__(self) -> None:
        self._seconds = PATIENCE_SECONDS

    async def settled(self, what: str, expected: Rows, look: Look, *, closes_in: float = 0.0) -> Compared:
        """Return how the rows are once all are right, or no more of them become so for a while."""
        best, since = -1, monotonic() + closes_in
        while True:
            compared = compare(what, expected, await look())
            if not compared.wrong:
                return compared
            if monotonic() - since > self._seconds:
                self._seconds = 0.0
                return compared
            if best < 0 or compared.wrong < best:
                best, since = compared.wrong, max(since, monotonic())
            await asyncio.sleep(POLL_SECONDS)

    async def until(self, expected: int, count: Callable[[], Awaitable[int]]) -> None:
        """Wait until there are so many, which is quicker to see, or no more came for a while."""
        seen, since = -1, monotonic()
        while seen < expected and monotonic() - since <= self._seconds:
            found = await count()
            if found != seen:
                seen, since = found, monotonic()
            await asyncio.sleep(POLL_SECONDS)


async def _count(connection: psycopg.AsyncConnection[Any]) -> int:
    found = await (await connection.execute("SELECT count(*) FROM turns")).fetchone()
    return int(found[0]) if found else 0


async def _count_documents(client: AsyncElasticsearch) -> int:
    await client.indices.refresh(index=INDEX)
    return int((await client.count(index=INDEX))["count"])


def _closes_in(written: Written, width: int) -> float:
    """Return in how many seconds the last window is over."""
    moments = [each.ended_at for each in written.turns.values()] + [vote.at for vote in written.votes]
    last = max(moments)
    return max(0.0, last / 1000 // width * width + width - time())


# -- comparing


def compare(what: str, expected: Rows, found: Found) -> Compared:
    """Return which rows are missing, there twice, of nobody, or otherwise than expected."""
    rows = list(found)
    times = Counter(key for key, _ in rows)
    compared = Compared(what, len(expected))
    compared.missing = [str(key) for key in expected if key not in times]
    compared.twice = [str(key) for key, count in times.items() if count > 1]
    compared.unknown = [str(key) for key in times if key not in expected]
    for key, row in rows:
        if times[key] == 1 and key in expected and (wrong := _difference(expected[key], row)):
            compared.otherwise.append(f"{key}: {wrong}")
    return compared


def _difference(expected: Row, row: Row) -> str:
    """Return what is otherwise in a row. What it has besides is not looked at: a new column needs no new check here."""
    for name, value in expected.items():
        if name not in row:
            return f"{name} is not there, and not {value!r}"
        if isinstance(value, Durations):
            if wrong := _spread_difference(value.each, row[name]):
                return f"{name}: {wrong}"
        elif row[name] != value:
            return f"{name} is {row[name]!r}, and not {value!r}"
    return ""


def _spread_difference(values: tuple[float, ...], spread: Row) -> str:
    """Return what a sketch and its quantiles say that the values do not; within 1 % they are the same."""
    sketched = [
        (1 - ACCURACY) * BIN_GROWTH ** int(number)
        for number, count in sorted(spread["sketch"].items(), key=lambda item: int(item[0]))
        for _ in repeat(None, count)
    ]
    if len(sketched) != len(values) or spread["count"] != len(values):
        return f"{spread['count']} values, {len(sketched)} in the sketch, and not {len(values)}"
    for value, stands_for in zip(values, sketched, strict=True):
        if not _is_near(stands_for, value):
            return f"the sketch says {stands_for:.3f} ms, and not {value:.3f}"
    for name, share in QUANTILES.items():
        exact = values[int(share * (len(values) - 1))] if values else None
        if (spread[name] is None) != (exact is None) or (exact is not None and not _is_near(spread[name], exact)):
            return f"{name} is {spread[name]}, and not {exact}"
    return ""


def _is_near(found: float, exact: float) -> bool:
    return abs(found - exact) <= ACCURACY * exact * (1 + 1e-9) + ROUNDED
