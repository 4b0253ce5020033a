"""What finished turns add up to, in windows of their own time: open rows, closed rows, and which turns are in them.

**The order of the keys is the index.** What may close is what a scan finds from the first open row on, so nothing has
to be brought back after a restart or a rebalance but the rows. Of each partition, in order:

- ``c SIZE START DIMENSIONS``: a closed row, what the window's latest part said, kept as long as it can be corrected;
- ``o SIZE START DIMENSIONS``: an open row, with all of its turns, those of a closed one of the same window, too;
- ``p``: the moment before which nothing is kept any more, and no turn is taken;
- ``t ENDED TURN_ID``: a turn that is counted, and its offset; a turn that was published twice counts once.

A row is whole: it has every turn of its partition up to its offset. So a turn that is handled again, after a crash in
the middle of anything, adds nothing; and of an open and a closed row the one with the later offset counts.

What is said of turns (`votes`) goes the same way, at the time at which it was said. Its rows have the vote of each
turn, so that of two in one window the later counts and a repeated one changes nothing; there are no rows ``t``.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import reduce
from operator import add
from typing import Final, NamedTuple

import msgspec

from config import metrics
from domain.errors import BadRecord, Rejected, TooLate
from domain.prices import FREE, Prices
from domain.windows import LARGEST_MS, SIZES_MS, closable, purgeable, start_of
from streams.app import app
from streams.records import Feedback, Turn
from tables.measures import Dimensions, Measures, Part, PartRow, measured, voted
from tables.row_table import row_table
from tables.slices import ROWS_AT_ONCE, Change, Rows, Slices
from tables.window_keys import END_OF_TIME, first_key, rest_of, size_in, start_in, time_digits

OPEN, CLOSED, PURGED, TURN = "o", "c", "p", "t"
# Between two pauses in which tokens go out.
TURNS_AT_ONCE: Final = 20
PURGED_AT_ONCE: Final = 1000
WRITERS: Final = 4

Publish = Callable[[Part], Awaitable[None]]


class Row(msgspec.Struct, frozen=True):
    """The sum of a window's turns of the same dimensions, up to an offset; the last part that had it, 0 if none did."""

    measures: Measures
    offset: int
    revision: int = 0


class Cell(NamedTuple):
    """Where a row stands. ``dimensions`` are JSON, so that free text in them cannot be taken for anything else."""

    size: int
    start: int
    dimensions: str

    def key(self, state: str) -> str:
        """Return the row's key."""
        return first_key(state, self.size, self.start) + self.dimensions

    @classmethod
    def of(cls, key: str) -> "Cell":
        """Return where the row of a key stands."""
        return cls(size_in(key), start_in(key), rest_of(key))

    def of_turns(self) -> Dimensions:
        """Return the dimensions that the row's turns share."""
        return msgspec.json.decode(self.dimensions, type=Dimensions)


EMPTY: Final = Row(Measures(), -1)
_row = msgspec.msgpack.Decoder(Row)
_number = msgspec.msgpack.Decoder(int)


class Windows:
    """See the module. One change at a time for each partition.

    ``first``: the number that its parts call the first partition by.
    """

    def __init__(self, rows: Rows, prices: Prices, *, first: int = 0) -> None:
        self._rows = rows
        self._prices = prices
        self._first = first
        self._changing: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._slices = Slices(rows, writers=WRITERS)
        self._latest: dict[int, int] = {}  # by partition: the latest end of a turn since this worker started
        self._announced: dict[tuple[int, int], tuple[int, int]] = {}  # by partition and size: epoch, closed through
        # Where to begin to look, and under which epoch that holds: a scan passes every deleted row on its way.
        self._open_from: dict[tuple[int, int], tuple[int, int]] = {}  # by partition and size
        self._kept_from: dict[int, tuple[int, int]] = {}  # by partition
        self._tried: dict[tuple[int, int, int], int] = {}  # by partition, size and start: a revision that may be out

    async def add(self, partition: int, records: Mapping[int, Turn | Feedback]) -> dict[int, Rejected]:
        """Add records of one log to their windows, in the order of their offsets; return those that are refused.

        Returns when the changelog has all others. Raises `NotOwner`, `StoreUnavailable` and `LogUnavailable`; the same
        records can be added again then.
        """
        async with self._changing[partition]:
            batch = _Batch(self._rows, partition, self._prices, self._closed_through(partition, SIZES_MS[0]))
            for number, (offset, record) in enumerate(records.items(), 1):
                batch.add(offset, record)
                if number % TURNS_AT_ONCE == 0:
                    await asyncio.sleep(0)
            for at in batch.places():
                self._look_from(partition, at.size, min(at.start, self._first_start(partition, at.size)))
            await self._slices.write(partition, batch.epoch, batch.changes())
        self._latest[partition] = max(self._latest.get(partition, 0), batch.latest)
        for kind, count in batch.counted.items():
            metrics.window_turns.labels(kind).inc(count)
        return batch.refused

    async def close(self, partition: int, at: int, *, grace: int, publish: Publish) -> None:
        """Close the windows that were over for ``grace`` at a moment up to which all turns are handled.

        ``publish`` returns when Kafka has the part, and only then does the window close. Where that fails, it stays
        open and goes out again under a higher revision. Raises what `add` does.
        """
        for size in SIZES_MS:
            end, first = closable(at, size=size, grace=grace), self._first_start(partition, size)
            self._look_from(partition, size, max(first, end))  # what comes late meanwhile goes below it again
            try:
                start = first
                while start < end:
                    async with self._changing[partition]:
                        start = await self._close_next(partition, size, start, end, publish)
            except BaseException:
                self._open_from.pop((partition, size), None)
                raise
            await self._announce(partition, size, end, publish)

    async def purge(self, partition: int, now: int, *, keep: int) -> None:
        """Delete what is not corrected any more, a bounded part of it at a time. Raises what `add` does."""
        async with self._changing[partition]:
            epoch = self._rows.epoch(partition)
            before = await self._purge_before(partition, epoch, now, keep)
            doomed: list[Change] = []
            of, kept = self._kept_from.get(partition, (epoch, 0))
            after = kept if of == epoch else 0
            ranges = [(first_key(CLOSED, size, after), first_key(CLOSED, size, before)) for size in SIZES_MS]
            for start, stop in (*ranges, (TURN + time_digits(after), TURN + time_digits(before))):
                async for key, _ in self._slices.scan(partition, start, stop, PURGED_AT_ONCE - len(doomed)):
                    doomed.append((key, None))
            await self._slices.write(partition, epoch, doomed)
            if len(doomed) < PURGED_AT_ONCE:
                self._kept_from[partition] = (epoch, before)

    def oldest(self, partition: int) -> int | None:
        """Return the end of the oldest open window, None if none is open."""
        return min((at.start + at.size for at in self._first_open(partition)), default=None)

    # -- closing

    async def _close_next(self, partition: int, size: int, start: int, end: int, publish: Publish) -> int:
        """Close the first open window of [start, end); return where the one after it may start."""
        epoch = self._rows.epoch(partition)
        found = next(self._rows.after(partition, first_key(OPEN, size, start)), None)
        if found is None or found[0] >= first_key(OPEN, size, end):
            return end
        window = Cell.of(found[0]).start
        opened = await self._window(partition, OPEN, size, window)
        rows = await self._window(partition, CLOSED, size, window)
        rows |= {at: row for at, row in opened.items() if at not in rows or rows[at].offset <= row.offset}
        # What Kafka did not acknowledge may be in the log all the same.
        tried = self._tried.get((partition, size, window), 0)
        revision = self._tried[partition, size, window] = 1 + max(tried, *(row.revision for row in rows.values()))
        part = Part(
            partition=self._first + partition,
            epoch=epoch,
            size=size,
            closed_through=self._closed_through(partition, size),
            start=window,
            revision=revision,
            rows=tuple(PartRow(at.of_turns(), row.measures.counted()) for at, row in rows.items()),
        )
        await publish(part)
        changes: list[Change] = []
        for at in opened:
            # In this order: a crash in between leaves both, and the window closes again.
            changes.append((at.key(CLOSED), _encode(msgspec.structs.replace(rows[at], revision=revision))))
            changes.append((at.key(OPEN), None))
        await self._slices.write(partition, epoch, changes)
        del self._tried[partition, size, window]
        return window + size

    async def _window(self, partition: int, state: str, size: int, start: int) -> dict[Cell, Row]:
        """Return a window's rows of a state."""
        scan = self._slices.scan(partition, first_key(state, size, start), first_key(state, size, start + 1))
        return {Cell.of(key): _row.decode(value) async for key, value in scan}

    async def _announce(self, partition: int, size: int, end: int, publish: Publish) -> None:
        """Tell that every window up to ``end`` is closed, also where there was none."""
        epoch = self._rows.epoch(partition)
        if self._announced.get((partition, size)) != (epoch, end):
            await publish(Part(partition=self._first + partition, epoch=epoch, size=size, closed_through=end))
            self._announced[partition, size] = (epoch, end)

    def _closed_through(self, partition: int, size: int) -> int:
        return self._announced.get((partition, size), (0, 0))[1]

    # -- purging

    async def _purge_before(self, partition: int, epoch: int, now: int, keep: int) -> int:
        """Return the moment before which nothing is kept, after moving it on: past windows that there were.

        Not simply to where the clock is: had it been a day ahead, then everything would be too late for a day.
        """
        before = _purged(self._rows, partition)
        horizon = purgeable(now, latest=self._latest.get(partition, 0), keep=keep)
        horizon = min([horizon, *(start_of(cell.start, LARGEST_MS) for cell in self._first_open(partition))])
        start, stop = first_key(CLOSED, LARGEST_MS, before), first_key(CLOSED, LARGEST_MS, horizon)
        async for key, _ in self._slices.scan(partition, start, stop, ROWS_AT_ONCE):
            before = Cell.of(key).start + LARGEST_MS
        if before != _purged(self._rows, partition):
            await self._slices.write(partition, epoch, [(PURGED, _encode(before))])
        return before

    def _first_open(self, partition: int) -> Iterator[Cell]:
        """Yield the place of the first open row of each size."""
        for size in SIZES_MS:
            start = self._first_start(partition, size)
            found = next(self._rows.after(partition, first_key(OPEN, size, start)), None)
            if found is not None and found[0] < first_key(OPEN, size, END_OF_TIME):
                yield Cell.of(found[0])

    def _first_start(self, partition: int, size: int) -> int:
        """Return a start that no open window of a size is before."""
        epoch, start = self._open_from.get((partition, size), (0, 0))
        return start if epoch == self._rows.epoch(partition) else 0

    def _look_from(self, partition: int, size: int, start: int) -> None:
        self._open_from[partition, size] = (self._rows.epoch(partition), start)


class _Batch:
    """What a batch of records changes in a partition's rows."""

    def __init__(self, rows: Rows, partition: int, prices: Prices, closed_through: int) -> None:
        self._rows = rows
        self._partition = partition
        self._prices = prices
        self._closed_through = closed_through
        self._purged = _purged(rows, partition)
        self._turns: dict[str, int] = {}  # by key: the offset
        self._found: dict[Cell, tuple[str, Row]] = {}  # as they were before the batch, with their state
        self._added: defaultdict[Cell, list[Measures]] = defaultdict(list)
        self._offsets: dict[Cell, int] = {}
        self.epoch = rows.epoch(partition)
        self.latest = 0
        self.refused: dict[int, Rejected] = {}
        self.counted = Counter[str]()

    def add(self, offset: int, record: Turn | Feedback) -> None:
        """Add a record to each of its windows that does not have it."""
        moment = record.ended_at if isinstance(record, Turn) else record.at
        if not 0 <= moment <= END_OF_TIME:
            self.refused[offset] = BadRecord(f"nothing can have been at {moment}")
            return
        if moment < self._purged:
            self.refused[offset] = TooLate(f"its windows, which end by {self._purged}, are not corrected any more")
            self.counted["too_late"] += 1
            return
        if isinstance(record, Turn):
            key = TURN + time_digits(moment) + record.turn_id
            if self._offset_of(key, offset) < offset:
                self.counted["repeated"] += 1
                return
            self._turns[key] = offset
            dimensions, measures = measured(record, self._prices)
        else:
            dimensions, measures = voted(record)
        self.latest = max(self.latest, moment)
        free_text = msgspec.json.encode(dimensions).decode()
        for size in SIZES_MS:
            at = Cell(size, start_of(moment, size), free_text)
            if self._row(at)[1].offset < offset:
                self._added[at].append(measures)
                self._offsets[at] = offset
        late = start_of(moment, SIZES_MS[0]) < self._closed_through
        self.counted["late" if late else "in_time"] += 1

    def places(self) -> Iterable[Cell]:
        """Return where the rows are that the batch's records belong to."""
        return self._found.keys()

    def changes(self) -> Iterator[Change]:
        """Yield the rows to write.

        Those that have all of the batch's turns already are written again: they may be on this disk alone.
        """
        for key, offset in self._turns.items():
            yield key, _encode(offset)
        for at, (state, row) in self._found.items():
            if added := self._added[at]:
                whole = Row(row.measures + reduce(add, added), self._offsets[at], row.revision)
                yield at.key(OPEN), _encode(whole)
            else:
                yield at.key(state), _encode(row)

    def _offset_of(self, key: str, default: int) -> int:
        """Return at which offset a turn is counted."""
        if key in self._turns:
            return self._turns[key]
        found = self._rows.row(self._partition, key)
        return default if found is None else _number.decode(found)

    def _row(self, at: Cell) -> tuple[str, Row]:
        if at not in self._found:
            found = [
                (state, _row.decode(value))
                for state in (OPEN, CLOSED)
                if (value := self._rows.row(self._partition, at.key(state))) is not None
            ]
            self._found[at] = max(found, key=lambda one: one[1].offset, default=(OPEN, EMPTY))
        return self._found[at]


def _encode(value: Row | int) -> bytes:
    return msgspec.msgpack.encode(value)


def _purged(rows: Rows, partition: int) -> int:
    """Return the moment before which nothing is kept."""
    found = rows.row(partition, PURGED)
    return 0 if found is None else _number.decode(found)


windows = Windows(
    row_table("windows", check=msgspec.msgpack.Decoder(Row | int).decode),
    Prices(*app.settings.prices),
)
# In a table of its own: its rows name offsets of another log.
votes = Windows(
    row_table("votes", check=msgspec.msgpack.Decoder(Row | int).decode), FREE, first=app.settings.partitions
)
