"""A place of one's own in a Postgres that many tests share, and a look at what is in it past our own code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
from psycopg import sql


@contextmanager
def own_schema(url: str) -> Iterator[str]:
    """Yield a URL whose tables are nobody else's; they are dropped at the end."""
    name = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        try:
            yield f"{url}{'&' if '?' in url else '?'}options={quote(f'-csearch_path={name}')}"
        finally:
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


def rows(url: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Return what a query finds."""
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode(), values).fetchall()


def schema_of(url: str) -> str:
    """Return the schema that a URL leads to."""
    return str(rows(url, "SELECT current_schema()")[0][0])
