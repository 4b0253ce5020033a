"""Postgres has the latest revision of every row of the metrics topics, and costs nothing while it is away."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import pytest
import structlog

from adapters.document_store import DocumentStore
from adapters.log_reader import Record
from adapters.metric_store import MetricStore
from adapters.postgres import Postgres
from deploy.embedded import free_port
from domain.errors import LogUnavailable, SinkUnavailable
from streams.records import DocumentOutcome, encode
from streams.tabulating import ROWS, DocumentTable, MetricTable, Tabulator
from tables.measures import Dimensions, Measures
from tables.metric_rows import rows_of
from tests.support.postgres import rows

START = 1_790_000_040_000


class Log:
    """A topic of one partition, of which compaction leaves what it is told to."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.end = 0
        self.life = "1"
        self.down = False

    def write(self, turns: int, *, revision: int, final: bool = True, tenant: str = "acme") -> None:
        """Write a row of the metric turns."""
        where = Dimensions(tenant, "m", "p", "completed")
        _, row = next(rows_of(60_000, START, where, Measures(turns=turns), revision=revision, final=final))
        self.records.append(Record(self.end, row.key.encode(), encode(row)))
        self.end += 1

    def tell(self, outcome: DocumentOutcome) -> None:
        """Write what became of a document."""
        self.records.append(Record(self.end, b"", encode(outcome)))
        self.end += 1

    async def topic_id(self, topic: str) -> str:
        if self.down:
            raise LogUnavailable("down")
        return self.life

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, self.end)

    async def beginnings(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        raise AssertionError("nobody asks")

    async def batch(
        self, topic: str, partition: int, start: int, stop: int, *, most: int, most_bytes: int
    ) -> Sequence[Record]:
        return [record for record in self.records if start <= record.offset < stop][:most]


@pytest.fixture
async def postgres(database_url: str) -> AsyncIterator[Postgres]:
    postgres = Postgres(database_url)
    await postgres.open()
    yield postgres
    await postgres.close()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def tabulator(postgres: Postgres, log: Log) -> Tabulator:
    store = MetricStore(postgres)
    return Tabulator(store, log, {"chat.metrics.turns.1m.v1": MetricTable(store, "turns")}, lambda: True)


def stored(url: str) -> list[tuple[object, ...]]:
    return rows(url, "SELECT dimensions->>'tenant', measures->>'turns', revision, final FROM metrics_1m ORDER BY key")


def said(logs: Iterable[Mapping[str, str]]) -> list[str]:
    return [line["event"] for line in logs if line["event"].startswith("metrics")]


async def test_the_highest_revision_counts_in_one_batch_and_in_several(
    tabulator: Tabulator, log: Log, database_url: str
) -> None:
    log.write(3, revision=5, final=False)
    log.write(7, revision=8)
    log.write(1, revision=2)
    await tabulator.bring()
    assert stored(database_url) == [("acme", "7", 8, True)]

    log.write(2, revision=3)
    await tabulator.bring()
    assert stored(database_url) == [("acme", "7", 8, True)]

    log.write(9, revision=9)
    log.write(4, revision=1, tenant="other")
    await tabulator.bring()
    assert stored(database_url) == [("acme", "9", 9, True), ("other", "4", 1, True)]
    assert rows(database_url, "SELECT window_start, metric FROM metrics_1m LIMIT 1") == [
        (datetime.fromtimestamp(START / 1000, UTC), "turns")
    ]


async def test_what_was_written_is_not_read_again(tabulator: Tabulator, log: Log, database_url: str) -> None:
    log.write(3, revision=1)
    await tabulator.bring()
    log.records.clear()
    log.end += 5  # compaction has left nothing of these

    await tabulator.bring()

    assert rows(database_url, "SELECT log, partition, next FROM progress") == [("chat.metrics.turns.1m.v1@1", 0, 6)]


@pytest.mark.parametrize("life", ["1", "2"])
async def test_a_topic_that_was_made_anew_is_read_from_its_beginning(
    tabulator: Tabulator, log: Log, database_url: str, life: str
) -> None:
    log.end = 1000
    await tabulator.bring()

    log.end, log.life = 0, life
    log.write(3, revision=1)
    await tabulator.bring()

    assert stored(database_url) == [("acme", "3", 1, True)]


async def test_more_than_a_batch_is_brought_at_once(tabulator: Tabulator, log: Log, database_url: str) -> None:
    for number in range(ROWS + 1):
        log.write(1, revision=1, tenant=f"{number}")

    await tabulator.bring()

    assert len(stored(database_url)) == ROWS + 1


async def test_what_postgres_cannot_hold_or_nobody_can_read_holds_up_nothing(
    tabulator: Tabulator, log: Log, database_url: str
) -> None:
    log.records.append(Record(0, b"", b"not a row"))
    log.end = 1
    log.write(3, revision=1, tenant="a\x00b")

    await tabulator.bring()

    assert stored(database_url) == [("a\N{REPLACEMENT CHARACTER}b", "3", 1, True)]


async def test_an_outage_costs_delay_alone_and_is_said_once(
    tabulator: Tabulator, log: Log, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.tabulating.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("streams.tabulating.LONGEST_PAUSE_SECONDS", 0.01)
    log.down = True
    log.write(3, revision=1)
    with structlog.testing.capture_logs() as logs:
        running = asyncio.create_task(tabulator.run())
        async with asyncio.timeout(10):
            while "metrics wait" not in said(logs):
                await asyncio.sleep(0.01)
            log.down = False
            while "metrics go on" not in said(logs):
                await asyncio.sleep(0.01)
        running.cancel()

    assert said(logs) == ["metrics wait", "metrics go on"]
    assert stored(database_url) == [("acme", "3", 1, True)]


async def test_a_postgres_that_is_away_is_an_outage(log: Log) -> None:
    nowhere = Postgres(f"postgresql://127.0.0.1:{free_port()}/headrace")
    await nowhere.open()
    log.write(3, revision=1)

    store = MetricStore(nowhere)
    with pytest.raises(SinkUnavailable):
        await Tabulator(store, log, {"t": MetricTable(store, "turns")}, lambda: True).bring()
    await nowhere.close()


async def test_postgres_has_what_became_of_each_document_last(postgres: Postgres, log: Log, database_url: str) -> None:
    tabulator = Tabulator(
        MetricStore(postgres), log, {"chat.document-outcomes.v1": DocumentTable(DocumentStore(postgres))}, lambda: True
    )
    manual = DocumentOutcome(
        document_id="manual", tenant="acme", status="learned", at=START, revision=3, user="ann", title="Ma\x00nual",
        metadata={"team": ["data\x00"]}, passages=7,
    )  # fmt: skip
    log.tell(msgspec.structs.replace(manual, status="failed", error="no text", passages=0, revision=2))
    log.tell(manual)
    log.tell(msgspec.structs.replace(manual, document_id="leaflet"))
    log.tell(msgspec.structs.replace(manual, tenant="other", status="failed", error="no text", revision=9))
    log.tell(msgspec.structs.replace(manual, tenant="nowhere", at=1 << 62))  # no date
    await tabulator.bring()

    asked = "SELECT tenant, document_id, title, status, error, passages FROM documents ORDER BY tenant, document_id"
    learned = ("Ma\N{REPLACEMENT CHARACTER}nual", "learned", None, 7)
    failed = ("other", "manual", "Ma\N{REPLACEMENT CHARACTER}nual", "failed", "no text", 7)
    assert rows(database_url, asked) == [("acme", "leaflet", *learned), ("acme", "manual", *learned), failed]

    log.tell(msgspec.structs.replace(manual, status="failed", revision=2))  # late
    log.tell(DocumentOutcome(document_id="leaflet", tenant="acme", status="forgotten", at=START, revision=4))
    log.tell(DocumentOutcome(document_id="manual", tenant="acme", status="forgotten", at=START, revision=1))
    await tabulator.bring()
    assert rows(database_url, asked) == [("acme", "manual", *learned), failed]
