"""Postgres: its connections, and what becomes of them when it is away.

Opening this never fails, and nothing waits long for it: who asks while Postgres is down hears `SinkUnavailable` soon,
and at once when that has happened a few times in a row (`domain/breaker.py`). The log has it from whoever asked.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from config.settings import Settings
from domain.breaker import Breaker
from domain.errors import SinkUnavailable

CONNECT_SECONDS: Final = 3.0
# A batch takes 0.1 s, and 5 on a machine that does much else. Beyond this the server or the way to it has stopped.
ANSWER_SECONDS: Final = 60.0

_CONNECTION: Final[dict[str, Any]] = {
    "application_name": "headrace",
    "connect_timeout": int(CONNECT_SECONDS),
    # A server or a network that vanished without a word is noticed after 15 s, not after the kernel's two hours.
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}
# What a worker that froze in the middle of a batch holds locked is let go by the server; whoever waits for it meanwhile
# gives up first and comes again.
_SESSION: Final = "SET idle_in_transaction_session_timeout = '20s'; SET lock_timeout = '5s'; SET TIME ZONE 'UTC'"


class Postgres:
    """A few connections, opened when they are needed. ``clock`` is monotonic."""

    def __init__(self, url: str, *, connections: int = 4, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._breaker = Breaker()
        self._reasons = _Reasons()
        self._pool = AsyncConnectionPool(
            url,
            kwargs=_CONNECTION,
            # None is kept that nobody uses: a pool that wants some tries again and again while there is no server.
            min_size=0,
            max_size=connections,
            max_idle=60.0,
            reconnect_timeout=CONNECT_SECONDS,
            configure=_configure,
            # After a restart of Postgres the first that wants one would meet each of those that were kept.
            check=AsyncConnectionPool.check_connection,
            open=False,
            name="headrace",
        )

    @asynccontextmanager
    async def connection(
        self, *, connect: float = CONNECT_SECONDS, answer: float = ANSWER_SECONDS
    ) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Lend a connection; what was done on it is committed at the end, and rolled back by an exception.

        ``connect`` and ``answer``: seconds to wait for a connection, and for everything that is done on it. Raises
        `SinkUnavailable` for every error of Postgres that the block does not handle.
        """
        if not self._breaker.admits(now := self._clock()):
            wait = self._breaker.wait(now)
            raise SinkUnavailable(f"Postgres is left alone for {wait:.1f} s: {self._reasons.last}", retry_after=wait)
        self._breaker.asked(now)
        try:
            async with self._pool.connection(connect) as connection, asyncio.timeout(answer):
                yield connection
        except PoolTimeout as error:
            raise self._down(self._reasons.last or str(error)) from error
        except TimeoutError as error:
            raise self._down(f"Postgres did not answer within {answer:.0f} s") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise self._down(_line(error)) from error
        except psycopg.Error as error:
            # It is there, and refuses: the schema is missing, or a right. Somebody has to look, and then it works.
            self._breaker.completed()
            raise SinkUnavailable(f"Postgres refuses: {_line(error)}") from error
        else:
            self._breaker.completed()

    @property
    def reachable(self) -> bool:
        """Whether it would be asked now; False after failures, until it has been left alone for a while."""
        return self._breaker.admits(self._clock())

    async def open(self) -> None:
        """Begin. Connects to nothing."""
        logging.getLogger("psycopg.pool").addFilter(self._reasons)
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()
        logging.getLogger("psycopg.pool").removeFilter(self._reasons)

    def _down(self, reason: str) -> SinkUnavailable:
        self._reasons.last = reason
        self._breaker.failed(self._clock())
        return SinkUnavailable(f"Postgres is not there: {reason}")


class _Reasons(logging.Filter):
    """Keeps why the pool cannot connect, which it tells to the log alone, once a second and try."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let nothing of it out: whoever wanted the connection says it."""
        self.last = _line(record.getMessage())
        return False


async def _configure(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute(_SESSION)
    await connection.commit()


def _line(error: object) -> str:
    """Return the first line of what Postgres says; the others quote the statement, and with it somebody's words."""
    return next(iter(str(error).strip().splitlines()), "")


@asynccontextmanager
async def open_postgres(settings: Settings, *, connections: int = 4) -> AsyncIterator[Postgres]:
    """Yield Postgres, whether it is there or not."""
    postgres = Postgres(settings.database_url.get_secret_value(), connections=connections)
    await postgres.open()
    try:
        yield postgres
    finally:
        await postgres.close()
