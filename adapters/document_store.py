"""What became of documents, in Postgres: a row a document, for whoever would rather ask SQL.

A row of a higher revision is written over one of a lower, never the other way round. So outcomes may come twice and in
any order, and the progress, which is written with them, only saves reading.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple

from psycopg.types.json import Jsonb

from adapters.postgres import Postgres
from adapters.schema import statement

_KEEP: Final = statement("keep_document")
_FORGET: Final = statement("forget_document")
_SET_PROGRESS: Final = statement("set_progress")


class DocumentRow(NamedTuple):
    """A row of `documents`. A ``status`` of forgotten is none: there is no row then."""

    tenant: str
    document_id: str
    user_id: str
    title: str
    url: str | None
    status: str
    error: str | None
    passages: int
    metadata: dict[str, Any]
    updated_at: datetime
    revision: int


class DocumentStore:
    """Raises `SinkUnavailable`."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def keep(self, log: str, stop: int, rows: Iterable[DocumentRow]) -> None:
        """Write rows, or that they are gone, and that ``stop`` is the next offset."""
        latest: dict[tuple[str, str], DocumentRow] = {}
        for row in rows:
            where = row.tenant, row.document_id
            if where not in latest or latest[where].revision <= row.revision:
                latest[where] = row
        gone = [row for row in latest.values() if row.status == "forgotten"]
        kept = [row for row in latest.values() if row.status != "forgotten"]
        async with self._postgres.connection() as connection, connection.transaction():
            async with connection.cursor() as cursor:
                await cursor.executemany(_FORGET, [row._asdict() for row in gone])
                await cursor.executemany(_KEEP, [row._asdict() | {"metadata": Jsonb(row.metadata)} for row in kept])
            await connection.execute(_SET_PROGRESS, {"log": log, "partition": 0, "next": stop})
