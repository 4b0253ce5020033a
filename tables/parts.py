"""What each partition said of each window, and what was published of it: where the parts are merged.

All parts of one size are in one partition, so one worker merges a size. Of each, in order of the keys:

- ``c SIZE PARTITION``: the moment through which that partition has closed its windows;
- ``d SIZE START``: a window that is due: it has something that is not published yet, or only as not final;
- ``p SIZE``: the moment before which nothing is kept any more, and no part is taken;
- ``r SIZE START DIMENSIONS PARTITION``: that partition's row of the highest epoch and revision;
- ``w SIZE START``: the revision that a window was last published with, and when.

A part is acknowledged once its rows and its due windows are in the changelog, and a window is due until Kafka has all
that was published of it: so a crash at any moment publishes it once more. It does so with another revision, because
what is merged may be more by then; and a revision begins with the epoch, so one of a worker that was replaced and does
not know it yet is lower than those of its successor.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from config import metrics
from domain.errors import BadRecord, NotOwner, Rejected, TooLate
from domain.windows import LARGEST_MS, SIZES_MS
from streams.app import app
from tables.measures import Dimensions, Measures, Part
from tables.metric_rows import AnyRow, rows_of
from tables.row_table import row_table
from tables.slices import Change, Rows, Slices
from tables.window_keys import END_OF_TIME, first_key, size_digits, start_in

CLOSED_THROUGH, DUE, PURGED, ROW, PUBLISHED = "c", "d", "p", "r", "w"
PARTITION_DIGITS: Final = 4
# Of a window's revisions under one epoch. It has one at each tick at most, and those for an hour.
REVISION_BITS: Final = 16
# How long the rest waits for a partition that has not closed a window, before it is shown without it. A rebalance
# takes 1 to 3 s.
PATIENCE_SECONDS: Final = 5.0
# A partition corrects a window this long after HEADRACE_METRICS_CORRECT_SECONDS at most: it forgets whole windows of
# the largest size, some at each tick.
SLACK_MS: Final = LARGEST_MS + 60_000
PURGED_AT_ONCE: Final = 1000
PUBLISHED_AT_ONCE: Final = 20

Send = Callable[[str, int, AnyRow], Awaitable[object]]


class PartitionRow(msgspec.Struct, frozen=True):
    """What one partition has of a window's turns of the same dimensions. Parts are ordered by epoch and revision."""

    epoch: int
    revision: int
    measures: Measures


class Published(msgspec.Struct, frozen=True):
    """What a window was last published with, ``at`` by this worker's clock."""

    revision: int
    at: int


# Of a due window: whether it has something that was not published yet.
CHANGED: Final = msgspec.msgpack.encode(True)
SHOWN: Final = msgspec.msgpack.encode(False)
NOTHING: Final = Measures()
_partition_row = msgspec.msgpack.Decoder(PartitionRow)
_published = msgspec.msgpack.Decoder(Published)
_number = msgspec.msgpack.Decoder(int)
_encode = msgspec.msgpack.encode
_dimensions = msgspec.json.Decoder(Dimensions)


class Parts:
    """See the module. One change at a time for each partition. ``clock`` is monotonic; ``partitions``: of all logs."""

    def __init__(self, rows: Rows, partitions: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rows = rows
        self._slices = Slices(rows, writers=1)
        self._partitions = partitions
        self._clock = clock
        self._changing: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        # Where to begin to look, and under which epoch that holds: a scan passes every deleted row on its way.
        self._due_from: dict[int, tuple[int, int]] = {}  # by size
        self._kept_from: dict[str, tuple[int, str]] = {}  # by kind and size
        self._since: dict[int, dict[int, float]] = {}  # by size and start: when a window was first seen to be due
        self._tried: dict[tuple[int, int], int] = {}  # by size and start: a revision that may be out

    # -- taking parts

    async def take(self, partition: int, parts: Mapping[int, Part]) -> dict[int, Rejected]:
        """Keep parts, by offset; return those that are refused once the changelog has the others.

        Raises `NotOwner`, `StoreUnavailable` and `LogUnavailable`; the same parts can be taken again then.
        """
        refused: dict[int, Rejected] = {}
        async with self._changing[partition]:
            epoch = self._rows.epoch(partition)
            changes: dict[str, bytes] = {}
            for offset, part in parts.items():
                try:
                    self._check(partition, part)
                except Rejected as error:
                    refused[offset] = error
                else:
                    await self._take(partition, part, changes)
            await self._slices.write(partition, epoch, changes.items())
        return refused

    def _check(self, partition: int, part: Part) -> None:
        if part.size not in SIZES_MS or not 0 <= part.partition < self._partitions:
            raise BadRecord(f"there are no windows of {part.size} ms in partition {part.partition}")
        if part.rows and part.start < self._number(partition, PURGED + size_digits(part.size)):
            raise TooLate(f"the window of {part.start} is not corrected any more")

    async def _take(self, partition: int, part: Part, changes: dict[str, bytes]) -> None:
        """Add what a part changes. What is there already is written again: it may be on this disk alone."""
        if part.size in self._due_from and part.rows:
            epoch, start = self._due_from[part.size]
            self._due_from[part.size] = (epoch, min(start, part.start))
        for number, row in enumerate(part.rows, 1):
            key = first_key(ROW, part.size, part.start) + msgspec.json.encode(row.dimensions).decode()
            key += _partition(part.partition)
            there = changes.get(key) or self._rows.row(partition, key)
            known = _partition_row.decode(there) if there else PartitionRow(-1, -1, NOTHING)
            if (known.epoch, known.revision) <= (part.epoch, part.revision):
                changes[key] = _encode(PartitionRow(part.epoch, part.revision, row.measures))
                changes[_window(DUE, part.size, part.start)] = CHANGED
            if number % PUBLISHED_AT_ONCE == 0:
                await asyncio.sleep(0)
        key = CLOSED_THROUGH + size_digits(part.size) + _partition(part.partition)
        there = changes.get(key) or self._rows.row(partition, key)
        changes[key] = _encode(max(part.closed_through, _number.decode(there) if there else 0))

    # -- publishing

    async def publish(self, partition: int, size: int, now: int, send: Send) -> None:
        """Publish the windows of a size that are complete, as final, and those that have waited long enough, as not.

        ``send`` takes a metric, the size and a row, and returns when Kafka has it. Raises what `take` does.
        """
        async with self._changing[partition]:
            first = self._first_due(partition, size)
        complete = self._complete(partition, size)
        known, since = self._since.get(size, {}), dict[int, float]()
        async for key, state in self._slices.scan(
            partition, first_key(DUE, size, first), first_key(DUE, size, END_OF_TIME)
        ):
            start = start_in(key)
            since[start] = known.get(start, self._clock())
            is_final = start + size <= complete
            has_waited = self._clock() - since[start] >= PATIENCE_SECONDS
            if is_final or (has_waited and state == CHANGED):
                async with self._changing[partition]:
                    await self._publish(partition, size, start, now, final=is_final, send=send)
        self._since[size] = since
        metrics.windows_waiting.labels(str(size // 1000)).set(len(since))

    async def _publish(self, partition: int, size: int, start: int, now: int, *, final: bool, send: Send) -> None:
        epoch = self._rows.epoch(partition)
        revision = self._next_revision(partition, size, start, epoch)
        merged = await self._merged(partition, size, start)
        rows = [
            (name, row)
            for dimensions, sums in merged.items()
            for name, row in rows_of(size, start, _dimensions.decode(dimensions), sums, revision=revision, final=final)
        ]
        for first in range(0, len(rows), PUBLISHED_AT_ONCE):
            # Who slept through a rebalance notices here, and keeps the rest to itself.
            if self._rows.epoch(partition) != epoch:
                raise NotOwner("the partition was shared out anew meanwhile", retry_after=1)
            await asyncio.gather(*(send(name, size, row) for name, row in rows[first : first + PUBLISHED_AT_ONCE]))
        changes: list[Change] = [
            (_window(PUBLISHED, size, start), _encode(Published(revision, now))),
            (_window(DUE, size, start), None if final else SHOWN),
        ]
        await self._slices.write(partition, epoch, changes)
        del self._tried[size, start]

    def _first_due(self, partition: int, size: int) -> int:
        """Return the start of the first window that is due, the end of time if none is."""
        epoch = self._rows.epoch(partition)
        as_of, start = self._due_from.get(size, (epoch, 0))
        begin = first_key(DUE, size, start if as_of == epoch else 0)
        key, _ = next(self._rows.after(partition, begin), ("", b""))
        if not key.startswith(DUE + size_digits(size)):
            return END_OF_TIME
        self._due_from[size] = (epoch, start_in(key))
        return start_in(key)

    def _next_revision(self, partition: int, size: int, start: int, epoch: int) -> int:
        # What Kafka did not acknowledge may be in the log all the same.
        tried = self._tried.get((size, start), 0)
        there = self._rows.row(partition, _window(PUBLISHED, size, start))
        last = _published.decode(there).revision if there else 0
        revision = self._tried[size, start] = 1 + max(tried, last, epoch << REVISION_BITS)
        return revision

    async def _merged(self, partition: int, size: int, start: int) -> dict[str, Measures]:
        """Return the sums of all partitions, by dimensions."""
        found: dict[str, Measures] = {}
        begin = first_key(ROW, size, start)
        async for key, value in self._slices.scan(partition, begin, first_key(ROW, size, start + 1)):
            dimensions = key[len(begin) : -PARTITION_DIGITS]
            found[dimensions] = found.get(dimensions, NOTHING) + _partition_row.decode(value).measures
        return found

    def _complete(self, partition: int, size: int) -> int:
        """Return the moment through which every partition has closed its windows."""
        keys = [CLOSED_THROUGH + size_digits(size) + _partition(each) for each in range(self._partitions)]
        return min(self._number(partition, key) for key in keys)

    # -- forgetting

    async def purge(self, partition: int, size: int, now: int, *, keep: int) -> None:
        """Delete windows that were last published ``keep`` ms ago, a bounded part of them at a time."""
        async with self._changing[partition]:
            epoch = self._rows.epoch(partition)
            before = await self._purge_before(partition, epoch, size, now - keep - SLACK_MS)
            for kind in (ROW, PUBLISHED):
                as_of, start = self._kept_from.get(kind + size_digits(size), (-1, ""))
                start = start if as_of == epoch else first_key(kind, size)
                stop = first_key(kind, size, before)
                doomed = [key async for key, _ in self._slices.scan(partition, start, stop, PURGED_AT_ONCE)]
                await self._slices.write(partition, epoch, [(key, None) for key in doomed])
                if doomed:
                    self._kept_from[kind + size_digits(size)] = (epoch, doomed[-1])

    async def _purge_before(self, partition: int, epoch: int, size: int, horizon: int) -> int:
        """Return the moment before which nothing is kept, after moving it past the windows that are done with.

        A window is done with by when it was published, not by its own time: turns of yesterday may all come today.
        """
        was = before = self._number(partition, PURGED + size_digits(size))
        start, stop = first_key(PUBLISHED, size, before), first_key(PUBLISHED, size, self._first_due(partition, size))
        async for key, value in self._slices.scan(partition, start, stop, PURGED_AT_ONCE):
            if _published.decode(value).at > horizon:
                break
            before = start_in(key) + size
        if before != was:
            await self._slices.write(partition, epoch, [(PURGED + size_digits(size), _encode(before))])
        return before

    def _number(self, partition: int, key: str) -> int:
        there = self._rows.row(partition, key)
        return _number.decode(there) if there else 0


def _partition(partition: int) -> str:
    return f"{partition:0{PARTITION_DIGITS}d}"


def _window(kind: str, size: int, start: int) -> str:
    """Return the key of the only row of this kind that a window has."""
    return first_key(kind, size, start) + "."


# The feedback's partitions are numbered after those of the turns.
parts = Parts(row_table("parts", check=msgspec.msgpack.decode), 2 * app.settings.partitions)
