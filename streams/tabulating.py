"""Brings topics of one partition into tables of Postgres: what it lacks, from its own progress on, to the log's end.

As with the archive, what waits through an outage waits in Kafka, and nothing is kept here.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NoReturn, Protocol

import msgspec
import structlog

from adapters.document_store import DocumentRow, DocumentStore
from adapters.metric_store import MetricStore, StoredMetric
from config import metrics
from domain.backoff import pause
from domain.errors import BadRecord, Retriable
from streams.archiving import LONGEST_PAUSE_SECONDS, Reader, Record
from streams.records import DocumentOutcome, Wire, decode
from streams.turn_rows import document_row, storable

log = structlog.get_logger(__name__)

# A minute's rows are there some seconds after the minute.
LOOK_SECONDS: Final = 5.0
ROWS: Final = 500
BYTES: Final = 4 << 20


class Row(Wire, frozen=True, kw_only=True):
    """What Postgres keeps of a row, whichever metric's it is (`tables.metric_rows`)."""

    window_start: datetime
    dimensions: dict[str, str]
    measures: dict[str, Any]
    revision: int
    final: bool


class Store(Protocol):
    """See `adapters.metric_store.MetricStore`."""

    async def prepare(self) -> None: ...  # noqa: D102
    async def progress(self, log: str) -> int: ...  # noqa: D102


class Table(Protocol):
    """Where a topic's records are kept."""

    async def keep(self, log: str, stop: int, records: Sequence[Record]) -> int:
        """Write records, and that ``stop`` is the log's next offset; return how many were rows."""
        ...


@dataclass(frozen=True, slots=True)
class MetricTable:
    """The rows of a metric."""

    store: MetricStore
    metric: str

    async def keep(self, log: str, stop: int, records: Sequence[Record]) -> int:
        """See `Table`."""
        rows = stored(self.metric, records)
        await self.store.keep(log, stop, rows)
        return len(rows)


@dataclass(frozen=True, slots=True)
class DocumentTable:
    """What became of documents."""

    store: DocumentStore

    async def keep(self, log: str, stop: int, records: Sequence[Record]) -> int:
        """See `Table`."""
        rows = document_rows(records)
        await self.store.keep(log, stop, rows)
        return len(rows)


class Tabulator:
    """The loop. ``tables`` by topic; ``is_ours`` tells whether this worker is to run it now."""

    def __init__(self, store: Store, reader: Reader, tables: Mapping[str, Table], is_ours: Callable[[], bool]) -> None:
        self._store = store
        self._reader = reader
        self._tables = tables
        self._is_ours = is_ours
        self._is_prepared = False
        self._is_up = True

    async def run(self) -> NoReturn:
        """Look again and again. Nothing but its cancellation ends it."""
        attempt = 0
        while True:
            await asyncio.sleep(pause(attempt, longest=LONGEST_PAUSE_SECONDS) if attempt else LOOK_SECONDS)
            try:
                if self._is_ours():
                    await self.bring()
                else:
                    self._is_up = True
                    metrics.tabulate_up.set(True)
                attempt = 0
            except Retriable as error:
                self._say(str(error))
                attempt += 1
            except Exception as error:
                log.exception("tabulating met an unforeseen error")
                self._say(repr(error))
                attempt += 1

    async def bring(self) -> None:
        """Write what Postgres lacks; raises `Retriable`."""
        try:
            if not self._is_prepared:
                await self._store.prepare()
                self._is_prepared = True
            for topic, table in self._tables.items():
                await self._bring(topic, table)
        except Retriable:
            self._is_prepared = False
            raise
        self._say(None)

    async def _bring(self, topic: str, table: Table) -> None:
        name = f"{topic}@{await self._reader.topic_id(topic)}"
        end = (await self._reader.ends(topic, [0]))[0]
        start = await self._store.progress(name)
        if start > end:
            start = 0  # the topic was made anew by a broker that knows no ids; rows can come twice
        while start < end:
            records = await self._reader.batch(topic, 0, start, end, most=ROWS, most_bytes=BYTES)
            # Compaction leaves gaps, also at the end.
            start = records[-1].offset + 1 if records else end
            metrics.tabulated_rows.inc(await table.keep(name, start, records))

    def _say(self, failure: str | None) -> None:
        """Tell the log when Postgres goes away and when it is back, and the metrics each time."""
        is_up = failure is None
        metrics.tabulate_up.set(is_up)
        if failure is not None and self._is_up:
            log.warning("metrics wait", sink="postgres", reason=failure)
        if is_up and not self._is_up:
            log.info("metrics go on", sink="postgres")
        self._is_up = is_up


def stored(metric: str, records: Sequence[Record]) -> list[StoredMetric]:
    """Return records as rows, without those that are none of ours."""
    rows = []
    for record in records:
        try:
            row = decode(record.value, Row)
        except BadRecord as error:
            log.warning("record left out of the metrics", metric=metric, offset=record.offset, reason=str(error))
            continue
        # The key tells a name with what Postgres cannot hold from another one.
        dimensions = {name: storable(value) for name, value in row.dimensions.items()}
        key = msgspec.json.encode(row.dimensions).decode()
        rows.append(StoredMetric(metric, row.window_start, key, row.revision, row.final, dimensions, row.measures))
    return rows


def document_rows(records: Sequence[Record]) -> list[DocumentRow]:
    """Return records as rows, without those that are none of ours."""
    rows = []
    for record in records:
        try:
            outcome = decode(record.value, DocumentOutcome)
            rows.append(document_row(outcome))
        except (BadRecord, ValueError, OverflowError, RecursionError) as error:
            log.warning("record left out of the documents", offset=record.offset, reason=str(error))
    return rows
