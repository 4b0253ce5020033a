"""Brings what the topics have into a store, a window at a time: the loop that each sink has of its own.

**A window is a range of the log.** What a sink lacks stands in Kafka, from the sink's own progress on, so nothing is
kept here between two windows, whatever a store's outage lasts: it costs delay and no memory. A window closes after
`HEADRACE_WINDOW_SECONDS`, or when so much waits that a batch is full; then everything up to the log's end of that
moment is written, in batches of bounded count and size, each together with the progress that it makes (ADR 12).

So it does not matter who runs the loop for a partition, or whether two do. The owner does, for as long as it is.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, NamedTuple, NoReturn, Protocol, Self, TypeVar

import structlog

from config import metrics
from domain.backoff import pause
from domain.errors import BadRecord, Overtaken, Retriable, SinkRefused
from domain.spans import Span
from streams.patience import MAX_ATTEMPTS, may_pass
from streams.records import Control, Feedback, Turn, Wire, decode

log = structlog.get_logger(__name__)

W = TypeVar("W", bound=Wire)

LOOK_SECONDS: Final = 1.0
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 5.0
# Between two pauses in which tokens go out: 10 us a turn of usual length.
DECODED_AT_ONCE: Final = 50


class Sink(Protocol):
    """A store that keeps finished turns and, with them, how far it has got: the next offset of each partition.

    All raise `SinkUnavailable` where the store does not answer, and may be called again then. The loop calls them
    one at a time. Before it gives a turn, it has given every control that was in the log when that turn was: what
    erases a conversation comes before a turn of it that ended later, and the sink has to keep in mind that it is gone.
    """

    @property
    def name(self) -> str:
        """What it is called in logs and metrics."""
        ...

    async def prepare(self) -> None:
        """Make what the store lacks: tables, indices. Called before the rest, and again after each failure."""
        ...

    async def progress(self, log: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return the next offset of each partition, 0 where nothing was written yet."""
        ...

    async def keep(self, span: Span, turns: Mapping[int, Turn], *, again: bool = False) -> None:
        """Write the turns of a span, by offset, and that its stop is next. A store with transactions does both or none.

        Raises `Overtaken` where the span's start is not the progress, and `SinkRefused` for turns that the store
        will never take; the loop sets these aside and calls again without them. A turn may come again under another
        offset. There may be no turns in a span. ``again``: what is there is written over, and the progress is neither
        compared nor moved (`streams.rebuilding`).
        """
        ...

    async def obey(self, span: Span, controls: Mapping[int, Control], turns_log: str, *, again: bool = False) -> None:
        """Carry out the controls of a span in their order, and write that its stop is next. Raises like `keep`.

        ``turns_log``: the log of the same conversations' turns.
        """
        ...

    async def note(self, span: Span, feedback: Mapping[int, Feedback], turns_log: str, *, again: bool = False) -> None:
        """Write what a span says of turns, and that its stop is next. Raises like `keep`.

        Of a turn the latest counts, in whatever order they come, and of an erased conversation nothing is kept.
        """
        ...

    async def rewind(self, log: str, offsets: Mapping[int, int]) -> None:
        """Set the progress of partitions, wherever it was: what follows is written again, over what is there."""
        ...


class Record(Protocol):
    """A record as it stands in the log."""

    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def key(self) -> bytes: ...  # noqa: D102
    @property
    def value(self) -> bytes: ...  # noqa: D102


class Reader(Protocol):
    """What the loop needs of `adapters.log_reader.LogReader`; all of it raises `LogUnavailable`."""

    async def topic_id(self, topic: str) -> str: ...  # noqa: D102
    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]: ...  # noqa: D102
    async def beginnings(self, topic: str, partitions: Iterable[int]) -> dict[int, int]: ...  # noqa: D102
    async def batch(  # noqa: D102
        self, topic: str, partition: int, start: int, stop: int, *, most: int, most_bytes: int
    ) -> Sequence[Record]: ...


class SetAside(Protocol):
    """What writes a dead letter (`ChatApp.dead_letter`)."""

    def __call__(  # noqa: D102
        self, *, topic: str, partition: int, offset: int, error: Exception, key: bytes, value: bytes
    ) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """When a window closes, and how large a batch may be: a window that is full before its time closes then."""

    seconds: float
    turns: int
    bytes: int


class _Log(NamedTuple):
    """One topic's part of the loop. ``name`` tells its life from that of another topic of the same name."""

    topic: str
    name: str


class _Range(NamedTuple):
    """What a sink lacks of a partition. Before ``first`` the log has nothing any more."""

    next: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class _Batch(Generic[W]):
    """The records of one range of a log, what each of them is, and who takes them."""

    span: Span
    topic: str
    records: Sequence[Record]
    kind: type[W]
    give: Callable[[Span, Mapping[int, W]], Awaitable[None]]

    def halves(self) -> tuple[Self, Self]:
        """Return its first half and its second."""
        half = len(self.records) // 2
        middle = self.records[half].offset
        return (
            replace(self, span=replace(self.span, stop=middle), records=self.records[:half]),
            replace(self, span=replace(self.span, start=middle), records=self.records[half:]),
        )


class Archiver:
    """The loop of one sink. ``owned`` are the partitions that this worker has now; ``clock`` is monotonic."""

    def __init__(
        self,
        sink: Sink,
        reader: Reader,
        limits: Limits,
        *,
        turns: str,
        controls: str,
        feedback: str,
        owned: Callable[[], set[int]],
        set_aside: SetAside,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._reader = reader
        self._limits = limits
        self._topics = turns, controls, feedback
        self._owned = owned
        self._set_aside = set_aside
        self._clock = clock
        self._is_prepared = False
        self._next: dict[int, int] = {}  # of turns, as far as it was heard: for the backlog alone
        self._ahead: set[tuple[str, int]] = set()
        self._unforeseen: dict[tuple[str, int], tuple[int, int]] = {}  # by log and partition: where, how often
        self._turn_bytes = 0.0
        self._level_at = clock()
        self._is_up: bool | None = None

    # -- windows

    async def run(self) -> NoReturn:
        """Write window after window. Nothing but its cancellation ends it."""
        # The first closes at once: a worker that is often restarted would else never come to the end of one.
        while not self._owned():  # noqa: ASYNC110 - Faust offers no event for it
            await asyncio.sleep(LOOK_SECONDS)
        while True:
            await self.close_window()
            await self._gather()

    async def close_window(self) -> None:
        """Write what the log has now; try as often as it takes."""
        attempt = 0
        while True:
            try:
                await self.write()
                return
            except Retriable as error:
                self._say(error)
            except Exception as error:
                log.exception("archiving met an unforeseen error", sink=self._sink.name)
                self._say(error)
            attempt += 1
            self._is_prepared = False
            await asyncio.sleep(pause(attempt, first=FIRST_PAUSE_SECONDS, longest=LONGEST_PAUSE_SECONDS))
            await self._look()

    async def _gather(self) -> None:
        """Return when the window closes."""
        closes = self._clock() + self._limits.seconds
        while (left := closes - self._clock()) > 0:
            await asyncio.sleep(min(LOOK_SECONDS, left))
            backlog = await self._look()
            if backlog >= self._limits.turns or backlog * self._turn_bytes >= self._limits.bytes:
                return

    async def _look(self) -> int:
        """Return how many turns wait, and tell the metrics."""
        owned = self._owned()
        try:
            ends = await self._reader.ends(self._topics[0], sorted(owned)) if owned else {}
        except Retriable:
            return 0  # the write that follows meets it too, and says so
        # Where the sink has never said how far it is, what came since is counted.
        backlog = sum(max(0, end - self._next.setdefault(partition, end)) for partition, end in ends.items())
        if not backlog and self._is_up is not False:
            self._level_at = self._clock()
        metrics.archive_left.labels(self._sink.name).set(backlog)
        metrics.archive_behind.labels(self._sink.name).set(self._clock() - self._level_at)
        return backlog

    def _say(self, error: Exception | None) -> None:
        """Tell the log when the sink goes away and when it is back, and the metrics each time."""
        is_up = error is None
        metrics.archive_up.labels(self._sink.name).set(is_up)
        if error is not None and self._is_up is not False:
            log.warning("archive waits", sink=self._sink.name, reason=str(error) or repr(error))
        if is_up and self._is_up is False:
            log.info("archive goes on", sink=self._sink.name)
        self._is_up = is_up

    # -- one window

    async def write(self) -> None:
        """Write what the sink lacks of this worker's partitions up to the log's present end.

        Raises what kept it from doing so, after every partition had its turn.
        """
        await self._prepare()
        closed_at, partitions = self._clock(), sorted(self._owned())
        turns, controls, feedback = [
            _Log(topic, f"{topic}@{await self._reader.topic_id(topic)}") for topic in self._topics
        ]
        feedback_ranges = await self._ranges(feedback, partitions)
        # The end of the controls is taken after that of the turns: so a turn of a conversation that was erased before
        # it ended never comes without what erased it.
        turn_ranges = await self._ranges(turns, partitions)
        control_ranges = await self._ranges(controls, partitions)
        self._next = {partition: each.next for partition, each in turn_ranges.items()}

        async def keep(span: Span, found: Mapping[int, Turn]) -> None:
            await self._sink.keep(span, found)
            self._next[span.partition] = span.stop
            metrics.archived_turns.labels(self._sink.name).inc(len(found))

        async def obey(span: Span, found: Mapping[int, Control]) -> None:
            await self._sink.obey(span, found, turns.name)

        async def note(span: Span, found: Mapping[int, Feedback]) -> None:
            await self._sink.note(span, found, turns.name)

        written = 0
        failure: Exception | None = None
        for partition in partitions:
            try:
                await self._bring(controls, partition, control_ranges[partition], Control, obey)
                written += await self._bring(turns, partition, turn_ranges[partition], Turn, keep)
                await self._bring(feedback, partition, feedback_ranges[partition], Feedback, note)
            except Overtaken as error:
                log.info("archive overtaken", sink=self._sink.name, reason=str(error))
            except Exception as error:  # noqa: BLE001 - it is raised below
                self._say(error)
                if failure is None or may_pass(failure):
                    failure = error
        if failure is not None:
            raise failure
        self._level_at = closed_at
        self._say(None)
        if written:
            log.info("window archived", sink=self._sink.name, turns=written, took=round(self._clock() - closed_at, 3))

    async def _prepare(self) -> None:
        if not self._is_prepared:
            await self._sink.prepare()
            self._is_prepared = True

    async def _ranges(self, each: _Log, partitions: Sequence[int]) -> dict[int, _Range]:
        """Return for each partition what the sink lacks."""
        if not partitions:
            return {}
        first = await self._reader.beginnings(each.topic, partitions)
        ends = await self._reader.ends(each.topic, partitions)
        progress = await self._sink.progress(each.name, partitions)
        for partition in partitions:
            await self._check_end(each, partition, progress, first[partition], ends[partition])
        return {part: _Range(progress[part], first[part], ends[part]) for part in partitions}

    async def _check_end(self, each: _Log, partition: int, progress: dict[int, int], first: int, end: int) -> None:
        """Begin a partition anew that ends before the sink's progress: its records are others than those.

        Seen once, it may also be a broker that has just become the leader and does not know its end yet.
        """
        where = each.name, partition
        if progress[partition] <= end:
            self._ahead.discard(where)
        elif where not in self._ahead:
            self._ahead.add(where)
        else:
            log.warning("log was made anew", sink=self._sink.name, log=each.name, partition=partition, end=end)
            await self._sink.rewind(each.name, {partition: first})
            progress[partition] = first

    async def _bring(
        self,
        each: _Log,
        partition: int,
        lacks: _Range,
        kind: type[W],
        give: Callable[[Span, Mapping[int, W]], Awaitable[None]],
    ) -> int:
        """Give the sink what it lacks of a partition, batch by batch; return how many records it got."""
        start, given = lacks.next, 0
        if start < lacks.first:
            # Kafka has deleted them before the sink was there to take them: HEADRACE_TURNS_DAYS.
            log.error(
                "records expired before they were archived",
                sink=self._sink.name, log=each.name, partition=partition, records=lacks.first - start,
            )  # fmt: skip
            metrics.archive_expired.labels(self._sink.name).inc(lacks.first - start)
        while start < lacks.end and partition in self._owned():
            records = await self._reader.batch(
                each.topic, partition, max(start, lacks.first), lacks.end,
                most=self._limits.turns, most_bytes=self._limits.bytes,
            )  # fmt: skip
            # A broker that has just become the leader may tell an end before ours; what lies beyond comes next time.
            stop = records[-1].offset + 1 if records else min(max(start, lacks.first), lacks.end)
            if stop > start:
                span = Span(each.name, partition, start, stop)
                given += await self._give(_Batch(span, each.topic, records, kind, give))
            if not records:
                break
            start = stop
        return given

    async def _give(self, batch: _Batch[W]) -> int:
        """Give the sink one batch. One that fails again and again for no reason that passes is given in halves."""
        span = batch.span
        where = span.log, span.partition
        try:
            given = await self._give_whole(batch)
        except Exception as error:
            if may_pass(error) or not batch.records:
                raise
            start, failed = self._unforeseen.get(where, (span.start, 0))
            failed = failed + 1 if start == span.start else 1
            self._unforeseen[where] = span.start, failed
            if failed < MAX_ATTEMPTS:
                raise
            # Raises where it is the sink that fails, and nobody's record.
            await batch.give(replace(span, stop=span.start), {})
            log.exception("archive takes a batch apart", sink=self._sink.name, log=span.log, offset=span.start)
            given = await self._give_apart(batch, error)
        self._unforeseen.pop(where, None)
        return given

    async def _give_apart(self, batch: _Batch[W], error: Exception) -> int:
        """Give a batch that failed in halves, and these likewise; set aside the records that fail by themselves."""
        if len(batch.records) == 1:
            await self._refuse(batch, {batch.records[0].offset: repr(error)})
            await batch.give(batch.span, {})
            return 0
        given = 0
        for half in batch.halves():
            try:
                given += await self._give_whole(half)
            except Exception as again:
                if may_pass(again):
                    raise
                given += await self._give_apart(half, again)
        return given

    async def _give_whole(self, batch: _Batch[W]) -> int:
        """Give the sink one batch; what it will never take goes to the dead letters, and the rest is given again."""
        if batch.kind is Turn:
            self._turn_bytes = sum(len(record.value) for record in batch.records) / max(1, len(batch.records))
        found = await _decoded(batch.records, batch.kind)
        while True:
            try:
                with metrics.archive_batch.labels(self._sink.name).time():
                    await batch.give(batch.span, found)
                return len(found)
            except SinkRefused as refused:
                refusals = {offset: reason for offset, reason in refused.reasons.items() if offset in found}
                if not refusals:
                    raise
            await self._refuse(batch, refusals)
            found = {offset: one for offset, one in found.items() if offset not in refusals}

    async def _refuse(self, batch: _Batch[W], reasons: Mapping[int, str]) -> None:
        """Write the dead letters of those records that have a reason, by offset."""
        for record in batch.records:
            if record.offset in reasons:
                reason = SinkRefused({record.offset: f"{self._sink.name}: {reasons[record.offset]}"})
                await self._set_aside(
                    topic=batch.topic, partition=batch.span.partition, offset=record.offset, error=reason,
                    key=record.key, value=record.value,
                )  # fmt: skip


async def _decoded(records: Sequence[Record], kind: type[W]) -> dict[int, W]:
    """Return the records by offset, without those that are none: the topic's own agent has set them aside."""
    found = {}
    for number, record in enumerate(records, 1):
        try:
            found[record.offset] = decode(record.value, kind)
        except BadRecord as error:
            log.info("record left out of the archive", offset=record.offset, reason=str(error))
        if number % DECODED_AT_ONCE == 0:
            await asyncio.sleep(0)
    return found
