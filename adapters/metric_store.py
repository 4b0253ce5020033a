"""The one-minute metrics in Postgres, for whoever would rather ask SQL than Kafka.

A row of a higher revision is written over one of a lower, never the other way round. So rows may come twice and in any
order, and the progress, which is written with them, only saves reading.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg.types.json import Jsonb

from adapters.postgres import Postgres
from adapters.schema import bring_up_to_date, statement

_KEEP: Final = statement("keep_metrics")
_SET_PROGRESS: Final = statement("set_progress")


class StoredMetric(NamedTuple):
    """A row of `metrics_1m`."""

    metric: str
    window_start: datetime
    key: str
    revision: int
    final: bool
    dimensions: Mapping[str, Any]
    measures: Mapping[str, Any]


class MetricStore:
    """Every method raises `SinkUnavailable`."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def prepare(self) -> None:
        """Bring the schema up to date."""
        await bring_up_to_date(self._postgres)

    async def progress(self, log: str) -> int:
        """Return the next offset of a log's only partition."""
        async with self._postgres.connection() as connection:
            found = await connection.execute("SELECT next FROM progress WHERE log = %s AND partition = 0", (log,))
            row = await found.fetchone()
            return int(row[0]) if row else 0

    async def keep(self, log: str, stop: int, rows: Iterable[StoredMetric]) -> None:
        """Write rows, and that ``stop`` is the next offset."""
        latest: dict[tuple[str, datetime, str], StoredMetric] = {}
        for row in rows:
            where = row.metric, row.window_start, row.key
            if where not in latest or latest[where].revision < row.revision:
                latest[where] = row
        kept = list(latest.values())
        async with self._postgres.connection() as connection, connection.transaction():
            if kept:
                await connection.execute(
                    _KEEP,
                    {
                        "metrics": [row.metric for row in kept],
                        "starts": [row.window_start for row in kept],
                        "keys": [row.key for row in kept],
                        "revisions": [row.revision for row in kept],
                        "finals": [row.final for row in kept],
                        "dimensions": [Jsonb(row.dimensions) for row in kept],
                        "measures": [Jsonb(row.measures) for row in kept],
                    },
                )
            await connection.execute(_SET_PROGRESS, {"log": log, "partition": 0, "next": stop})
