"""Knows which turns this worker's tail has seen, and from which offset on it has seen all of each.

A tail follows the partitions that the worker owns and those that readers need. A turn that it saw from its
first record on is simply there. Of any other, what is missing is read back from the log once, for all who
want it; what the tail brings meanwhile waits behind it. So every reader folds the same records in the same order.

What is complete. The tail has every record of a partition from ``floor`` on: the offset where it began, raised
past the last record of every turn that was forgotten to save memory. A turn is created with that floor as its
``since``, keeps it while it lives, and lacks only records before it.

What this worker wrote. A frame that Kafka has acknowledged at the very offset up to which the log was read here is
the log's next record, so it is taken without being read: nothing can stand before it that is not known. Behind a
record of somebody else's, it waits until the tail has brought that. So owned partitions have a patient tail, which
fetches large and seldom, and only what others wrote depends on it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Final, Protocol

import structlog
from confluent_kafka import Message

from adapters.frames import decode, mentions
from adapters.logged_turn import LoggedTurn
from adapters.token_tail import Batch, Cut
from config import metrics
from domain.errors import BadRecord, LogUnavailable
from domain.tokens import Fold, Token

log = structlog.get_logger(__name__)

OnBatch = Callable[[Batch], None]
OnBadFrame = Callable[[int, int, bytes, str], None]

# Long enough for a browser to come back after a dropped connection without reading the log.
KEEP_TURN_SECONDS: Final = 60.0
KEEP_PARTITION_SECONDS: Final = 30.0
# About 100 MB. Turns that somebody reads are kept beyond it.
MAX_TOKENS: Final = 300_000
SWEEP_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 0.5
# Frames of a partition that wait for the tail. Beyond it the tail brings them, too.
MAX_AHEAD: Final = 2_000


class Tail(Protocol):
    """What the hub wants of a tail."""

    def follow(self, positions: Mapping[int, int]) -> None: ...  # noqa: D102
    def leave(self, partition: int) -> None: ...  # noqa: D102
    def look(self) -> None: ...  # noqa: D102
    async def close(self) -> None: ...  # noqa: D102


class Log(Protocol):
    """What the hub wants of a log reader."""

    async def ends_told(self, topic: str, partitions: Iterable[int]) -> dict[int, int]: ...  # noqa: D102
    async def scan(  # noqa: D102
        self, topic: str, partition: int, start: int, stop: int, visit: Callable[[Message], bool]
    ) -> None: ...


class _Place:
    """A followed partition. ``position``: the next offset to be read."""

    __slots__ = (
        "ahead",
        "floor",
        "partition",
        "position",
        "readers",
        "ready",
        "tail",
        "turns",
        "unwanted_at",
        "waiters",
    )

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.position = 0
        self.floor = 0
        self.ready = asyncio.Event()
        self.readers = 0
        self.unwanted_at = 0.0
        self.turns: dict[str, LoggedTurn] = {}
        self.waiters: list[tuple[int, asyncio.Future[None]]] = []
        # Whoever reads it; and what this worker wrote behind what was read, by offset, in order.
        self.tail: Tail | None = None
        self.ahead: dict[int, Sequence[Token]] = {}

    def begin(self, offset: int) -> None:
        self.position = self.floor = offset
        self.ready.set()

    def leave(self) -> None:
        if self.tail is not None:
            self.tail.leave(self.partition)
            self.tail = None

    def turn(self, turn_id: str, now: float) -> LoggedTurn:
        turn = self.turns.get(turn_id)
        if turn is None:
            turn = self.turns[turn_id] = LoggedTurn(turn_id, self.floor, now)
        return turn

    def forget(self, turn: LoggedTurn) -> None:
        del self.turns[turn.turn_id]
        self.floor = max(self.floor, turn.last + 1)

    def cut_off(self, why: str) -> None:
        self.ready.clear()
        for turn in self.turns.values():
            turn.cut_off(why)
        for _, waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(LogUnavailable(why))
        self.turns, self.waiters, self.ahead = {}, [], {}

    def wake(self) -> None:
        waiting = []
        for offset, waiter in self.waiters:
            if waiter.done():
                continue
            if self.position > offset:
                waiter.set_result(None)
            else:
                waiting.append((offset, waiter))
        self.waiters = waiting


class TokenHub:
    """All turns that this worker has before its eyes. Every method belongs to the event loop."""

    def __init__(
        self,
        topic: str,
        log_reader: Log,
        open_tail: Callable[[OnBatch, bool], Tail],
        *,
        on_bad_frame: OnBadFrame,
        keep_turn: float = KEEP_TURN_SECONDS,
        keep_partition: float = KEEP_PARTITION_SECONDS,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._topic = topic
        self._log = log_reader
        self._on_bad_frame = on_bad_frame
        self._keep_turn = keep_turn
        self._keep_partition = keep_partition
        self._max_tokens = max_tokens
        self._places: dict[int, _Place] = {}
        self._owned: frozenset[int] = frozenset()
        self._starting: asyncio.Task[None] | None = None
        self._reading: dict[LoggedTurn, asyncio.Task[None]] = {}
        self._closed = False
        self._eager, self._patient = open_tail(self.take, False), open_tail(self.take, True)
        self._sweeper = self._loop.create_task(self._sweep_for_ever(), name="token-hub-sweep")

    async def own(self, partitions: Collection[int], *, within: float = PATIENCE_SECONDS) -> None:
        """Follow these partitions because this worker answers in them; return when it is known from where on.

        Those no longer owned are left after a while, once nobody reads them. Returns after ``within`` seconds at the
        latest: whoever needs a partition waits for it, so a question there waits, unclaimed, and no other one does.
        """
        now = self._loop.time()
        for partition in self._owned.difference(partitions):
            if partition in self._places:
                self._places[partition].unwanted_at = now
        self._owned = frozenset(partitions)
        moved = [place for place in self._places.values() if place.tail not in {None, self._tail_of(place.partition)}]
        for place in moved:
            place.leave()
        self._follow({place.partition: place.position for place in moved})
        places = [self._place(partition) for partition in partitions]
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                for place in places:
                    await place.ready.wait()

    async def until(self, partition: int, offset: int) -> None:
        """Wait until the tail has read this offset."""
        with self._use(partition) as place:
            await self._ready(place)
            if place.position <= offset:
                waiter: asyncio.Future[None] = self._loop.create_future()
                place.waiters.append((offset, waiter))
                await waiter

    def position(self, partition: int) -> int | None:
        """Return the next offset that the tail will read, or None where it does not follow the partition."""
        place = self._places.get(partition)
        return place.position if place is not None and place.ready.is_set() else None

    @asynccontextmanager
    async def attach(self, turn_id: str, partition: int, since: int) -> AsyncIterator[LoggedTurn]:
        """Hold a turn: complete from its first record on when this returns, and growing until it is let go.

        ``since`` is any offset at or below the turn's first record; the closer, the less there is to read. A
        turn without a record yet is held just as well. Raises `LogUnavailable` where Kafka does not answer.
        """
        with self._use(partition) as place:
            await self._ready(place)
            turn = place.turn(turn_id, self._loop.time())
            turn.readers += 1
            try:
                await self._complete(place, turn, since)
                yield turn
            finally:
                turn.readers -= 1
                turn.touched = self._loop.time()

    def take(self, batch: Batch) -> None:
        """Take what the tail has read."""
        now = self._loop.time()
        touched: set[LoggedTurn] = set()
        places: set[_Place] = set()
        for read in batch:
            place = self._places.get(read.partition)
            # What was read before a partition was left may arrive after it is followed again, from further on.
            if place is None or not place.ready.is_set():
                continue
            if isinstance(read, Cut):
                self._start_again(place)
                continue
            if read.offset < place.position:
                continue
            _take_record(place, read.offset, read.tokens, now, touched)
            places.add(place)
            if read.reason:
                self._bad(read.partition, read.offset, read.raw, read.reason)
        for place in places:
            _catch_up(place, now, touched)
        _wake(touched, places, now)

    def wrote(self, frames: Iterable[tuple[int, int, Sequence[Token]]]) -> None:
        """Take frames of this worker's own that Kafka has acknowledged, each as soon as all before it has been read.

        Of each its partition, its offset there, and its tokens.
        """
        now = self._loop.time()
        touched: set[LoggedTurn] = set()
        places = []
        for partition, offset, tokens in frames:
            place = self._places.get(partition)
            if place is None or not place.ready.is_set() or offset < place.position:
                continue
            if len(place.ahead) >= MAX_AHEAD:
                place.ahead.clear()
            place.ahead[offset] = tokens
            _catch_up(place, now, touched)
            places.append(place)
        _wake(touched, places, now)

    def look(self) -> None:
        """Have the tails look for new leaders: somebody heard that there are some, or will be."""
        self._eager.look()
        self._patient.look()

    async def close(self) -> None:
        """Let all readers go with `LogUnavailable`, and join the tail."""
        self._closed = True
        tasks = [task for task in (self._sweeper, self._starting, *self._reading.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(self._eager.close(), self._patient.close())
        for place in self._places.values():
            place.cut_off("the token log is closed")
        self._places.clear()

    # -- partitions

    @contextmanager
    def _use(self, partition: int) -> Iterator[_Place]:
        """Keep a partition followed while somebody needs it."""
        place = self._place(partition)
        place.readers += 1
        try:
            yield place
        finally:
            place.readers -= 1
            place.unwanted_at = self._loop.time()

    def _place(self, partition: int) -> _Place:
        if self._closed:
            raise LogUnavailable("the token log is closed")
        place = self._places.get(partition)
        if place is None:
            place = self._places[partition] = _Place(partition)
            place.unwanted_at = self._loop.time()
            self._start()
        return place

    def _start(self) -> None:
        if self._starting is None or self._starting.done():
            self._starting = self._loop.create_task(self._start_places(), name="token-hub-start")

    async def _start_places(self) -> None:
        """Follow every partition that waits for it, each from its present end on; all in one request.

        One that no broker leads holds up none of the others. It is asked for again until it has a leader.
        """
        led_by_nobody: set[int] = set()
        while waiting := [place for place in self._places.values() if not place.ready.is_set()]:
            try:
                ends = await self._log.ends_told(self._topic, [place.partition for place in waiting])
            except LogUnavailable as error:
                log.warning("token tail waits for kafka", partitions=len(waiting), reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            started = {
                place.partition: ends[place.partition]
                for place in waiting
                if place.partition in ends and self._places.get(place.partition) is place
            }
            for partition, end in started.items():
                self._places[partition].begin(end)
            self._follow(started)
            missing = {place.partition for place in waiting} - ends.keys()
            if missing - led_by_nobody:
                log.warning("token partitions have no leader", partitions=sorted(missing))
            led_by_nobody = missing
            if missing:
                await asyncio.sleep(RETRY_SECONDS)

    def _follow(self, positions: Mapping[int, int]) -> None:
        by_tail: dict[Tail, dict[int, int]] = {}
        for partition, position in positions.items():
            tail = self._places[partition].tail = self._tail_of(partition)
            by_tail.setdefault(tail, {})[partition] = position
        for tail, theirs in by_tail.items():
            tail.follow(theirs)

    def _tail_of(self, partition: int) -> Tail:
        return self._patient if partition in self._owned else self._eager

    def _start_again(self, place: _Place) -> None:
        """Take up a partition whose log lost our position: what is held of it may not be what the log has now."""
        log.error("token log was cut", partition=place.partition, position=place.position)
        place.leave()
        place.cut_off("the log lost the place of its tail")
        self._start()

    async def _ready(self, place: _Place) -> None:
        if place.ready.is_set():
            return
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await place.ready.wait()
        except TimeoutError as error:
            raise LogUnavailable(f"Kafka does not tell the end of partition {place.partition}") from error

    # -- turns

    async def _complete(self, place: _Place, turn: LoggedTurn, since: int) -> None:
        """Let a turn go live: at once where it lacks nothing, else when that has been read back."""
        if turn.live:
            return
        reading = self._reading.get(turn)
        if reading is None:
            if since >= turn.since:
                turn.begin(Fold(), [])
                return
            reading = self._reading[turn] = self._loop.create_task(self._read_back(place.partition, turn, since))
            reading.add_done_callback(partial(self._was_read, turn))
        # One reading serves all who attach meanwhile, so none of them may cancel it by leaving.
        await asyncio.shield(reading)

    async def _read_back(self, partition: int, turn: LoggedTurn, since: int) -> None:
        metrics.log_reads.inc()
        past = _Past(turn.turn_id)
        await self._log.scan(self._topic, partition, since, turn.since, past.visit)
        turn.expired = past.first != since
        turn.begin(past.fold, past.pieces)

    def _was_read(self, turn: LoggedTurn, reading: asyncio.Task[None]) -> None:
        del self._reading[turn]
        # Those who wait for it get its error; if they have all left, this is who has seen it.
        if not reading.cancelled():
            reading.exception()

    def _bad(self, partition: int, offset: int, raw: bytes, reason: str) -> None:
        log.warning("bad frame", partition=partition, offset=offset, reason=reason)
        # Each worker that reads the partition meets it; the owner alone sets it aside.
        if partition in self._owned:
            self._on_bad_frame(partition, offset, raw, reason)

    # -- memory

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep(self._loop.time())

    def sweep(self, now: float) -> None:
        """Leave the partitions that nobody needs, and forget turns: the idle ones, and the oldest above the cap."""
        for place in list(self._places.values()):
            unwanted = not place.readers and place.partition not in self._owned
            if unwanted and now - place.unwanted_at >= self._keep_partition:
                self._leave(place)
        held = sum(turn.size for place in self._places.values() for turn in place.turns.values())
        for place, turn in self._unread():
            if now - turn.touched < self._keep_turn and held <= self._max_tokens:
                break
            held -= turn.size
            place.forget(turn)

    def _leave(self, place: _Place) -> None:
        del self._places[place.partition]
        place.leave()

    def _unread(self) -> list[tuple[_Place, LoggedTurn]]:
        """Return the turns that nobody reads, those that have been silent longest first."""
        unread = [
            (place, turn)
            for place in self._places.values()
            for turn in place.turns.values()
            if not turn.readers and turn not in self._reading
        ]
        return sorted(unread, key=lambda one: one[1].touched)


def _take_record(place: _Place, offset: int, tokens: Iterable[Token], now: float, touched: set[LoggedTurn]) -> None:
    turns = place.turns
    for token in tokens:
        turn = turns.get(token.turn_id) or place.turn(token.turn_id, now)
        turn.take(token)
        turn.last = offset
        touched.add(turn)
    place.position = offset + 1


def _catch_up(place: _Place, now: float, touched: set[LoggedTurn]) -> None:
    """Take what this worker wrote right behind what has been read; forget what the tail has brought."""
    while place.ahead and (offset := next(iter(place.ahead))) <= place.position:
        tokens = place.ahead.pop(offset)
        if offset == place.position:
            _take_record(place, offset, tokens, now, touched)


def _wake(touched: Iterable[LoggedTurn], places: Iterable[_Place], now: float) -> None:
    for turn in touched:
        turn.touched = now
        turn.wake()
    for place in places:
        if place.waiters:
            place.wake()


class _Past:
    """What was read back of one turn. Runs in a thread of the log reader."""

    def __init__(self, turn_id: str) -> None:
        self._turn_id = turn_id
        self.fold = Fold()
        self.pieces: list[Token] = []
        self.first: int | None = None

    def visit(self, record: Message) -> bool:
        """Fold the turn's tokens in this record; say whether the turn has ended."""
        if self.first is None:
            self.first = record.offset()
        raw = record.value()
        if mentions(raw, self._turn_id):
            try:
                tokens = decode(raw)
            except BadRecord:
                # The owner's tail has set it aside when it came.
                return False
            self.pieces.extend(
                token for token in tokens if token.turn_id == self._turn_id and self.fold.feed(token) is not None
            )
        return self.fold.ended
