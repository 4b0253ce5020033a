"""The schema of Postgres: the numbered files of `adapters/sql`, applied once each, and the statements beside them.

    python -m adapters.schema      brings the schema at DATABASE_URL up to date

Whoever comes first applies what is missing: a worker, if its role may, or its operator by the command above, as the
owner of the tables (docs/archive.md). A file that was applied is never changed; a change is a new file.
"""

import asyncio
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import psycopg
import structlog
from psycopg import sql

from adapters.postgres import Postgres
from config import logging, settings
from domain.errors import SinkUnavailable

log = structlog.get_logger("adapters.schema")  # which under `python -m` is not __name__

FOLDER: Final = Path(__file__).parent / "sql"

# Rewriting a large table takes a while.
MIGRATE_SECONDS: Final = 3600.0

_LOCK: Final = 0x68656164  # any number, as long as all take the same

Connection = psycopg.AsyncConnection[Any]


def statement(name: str) -> sql.SQL:
    """Return a statement of `adapters/sql/statements`."""
    return sql.SQL((FOLDER / "statements" / f"{name}.sql").read_text())


async def bring_up_to_date(postgres: Postgres) -> None:
    """Apply what was not applied yet, whichever store comes first. Raises `SinkUnavailable`."""
    async with postgres.connection(answer=MIGRATE_SECONDS) as connection:
        await migrate(connection)


async def migrate(connection: Connection) -> None:
    """Apply the files that were not applied yet, all or none.

    Raises `SinkUnavailable` where this role may not, or a file has changed since it was applied; and `psycopg.Error`.
    """
    files = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.sql"))}
    async with connection.transaction():
        if not (missing := await _missing(connection, files)):
            return
        try:
            await _apply(connection, files)
        except psycopg.errors.InsufficientPrivilege as error:
            raise SinkUnavailable(
                f"the schema lacks {', '.join(missing)}, which this role may not apply: run `python -m adapters.schema`"
                " as the owner of the tables"
            ) from error


async def _apply(connection: Connection, files: Mapping[str, str]) -> None:
    # Whoever comes second waits, however long the first takes, and then has nothing to do.
    await connection.execute("SET LOCAL lock_timeout = 0")
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, digest text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT now())"
    )
    for name in await _missing(connection, files):
        await connection.execute(sql.SQL(files[name]))
        await connection.execute("INSERT INTO migrations VALUES (%s, %s)", (name, _digest(files[name])))
        log.info("schema migrated", file=name)


async def _missing(connection: Connection, files: Mapping[str, str]) -> list[str]:
    found = await (await connection.execute("SELECT to_regclass('migrations') IS NOT NULL")).fetchone()
    if found != (True,):
        return list(files)
    applied = dict(await (await connection.execute("SELECT name, digest FROM migrations")).fetchall())
    for name, text in files.items():
        if applied.get(name, _digest(text)) != _digest(text):
            raise SinkUnavailable(f"{name} is not what was applied to this database; a change needs a new file")
    return [name for name in files if name not in applied]


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


async def main() -> None:
    """Bring the schema at DATABASE_URL up to date."""
    logging.configure()
    async with await psycopg.AsyncConnection.connect(settings.load().database_url.get_secret_value()) as connection:
        await migrate(connection)


if __name__ == "__main__":
    asyncio.run(main())
