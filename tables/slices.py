"""Long work on a table's rows, in slices between which tokens go out and partitions come and go.

Nothing of the store is held from one slice to the next, because it may be closed meanwhile. What is written follows
from what was read, so it is refused once the rows may be others: that is what an epoch tells.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice, takewhile
from typing import Final, Protocol

from faust.types import FutureMessage

from domain.errors import NotOwner
from tables.row_table import acknowledged

ROWS_AT_ONCE: Final = 50
# With each table's writers, what bounds the records that wait for Kafka (`streams.app.BUFFERED_RECORDS`).
WRITTEN_AT_ONCE: Final = 20

Change = tuple[str, bytes | None]


class Rows(Protocol):
    """A table, as `tables.row_table` has it."""

    def row(self, partition: int, key: str) -> bytes | None:
        """Return a row."""
        ...

    def after(self, partition: int, key: str) -> Iterator[tuple[str, bytes]]:
        """Yield the rows whose keys come after this one, in order."""
        ...

    def put(self, partition: int, key: str, value: bytes | None) -> FutureMessage:
        """Write a row, or delete it."""
        ...

    def epoch(self, partition: int) -> int:
        """Return under which epoch this worker writes."""
        ...


class Slices:
    """See the module. One for each table; ``writers`` of it write at once."""

    def __init__(self, rows: Rows, *, writers: int) -> None:
        self._rows = rows
        self._writing = asyncio.Semaphore(writers)

    async def scan(
        self, partition: int, start: str, stop: str, most: int = sys.maxsize
    ) -> AsyncIterator[tuple[str, bytes]]:
        """Yield the rows whose keys come after ``start`` and before ``stop``, ``most`` of them."""
        while most > 0:
            ahead = takewhile(lambda row: row[0] < stop, self._rows.after(partition, start))
            found = list(islice(ahead, min(ROWS_AT_ONCE, most)))
            for row in found:
                yield row
            if len(found) < ROWS_AT_ONCE:
                return
            start, most = found[-1][0], most - len(found)
            await asyncio.sleep(0)

    async def write(self, partition: int, epoch: int, changes: Iterable[Change]) -> None:
        """Write rows that follow from what was read under this epoch; return when the changelog has them.

        Raises `NotOwner`, `StoreUnavailable` and `LogUnavailable`; some may be written then.
        """
        rest = iter(changes)
        while some := list(islice(rest, WRITTEN_AT_ONCE)):
            async with self._writing:
                if self._rows.epoch(partition) != epoch:
                    raise NotOwner("the partition was shared out anew meanwhile", retry_after=1)
                await acknowledged(*[self._rows.put(partition, key, value) for key, value in some])
