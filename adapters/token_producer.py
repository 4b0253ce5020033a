"""Writes tokens to the log: gathered into frames, paced, and held back where Kafka does not keep up.

Kafka costs per record and request, not per token, so tokens of all turns of a partition wait a few milliseconds
for each other, and all partitions that a broker leads go to it in one request, one after the other. `append` runs ten
thousand times a second and does as little as it can; what waits for Kafka (claims, ends) goes through `put`: at once,
or with the request behind the one that is under way.

Delivery. A frame is written until Kafka acknowledges it, to whoever leads the partition then, and the next one of its
partition not before; so frames keep their order, and one whose acknowledgement was lost stands there twice, of which
the fold drops the second. A frame that Kafka does not acknowledge in time may or may not be in the log. Everything of
its partition that is unacknowledged then counts as lost, and the turns in it are shut: `append` and `put` raise
`LogUnavailable` for them until they are claimed with a higher epoch. What a shut turn still wrote stands behind
a hole in its numbers or under an old epoch, and the fold drops it; so a writer who claims again and goes on
from what its tail shows is right in either case.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import structlog
from aiokafka.errors import BrokerResponseError, KafkaError, for_code

from adapters.frames import encode
from adapters.leaders import Broker, Leaders, batch_of
from adapters.librdkafka import Complaints
from adapters.produce_request import Written
from config import metrics
from domain.errors import LogUnavailable
from domain.pace import Pace
from domain.tokens import Token

log = structlog.get_logger(__name__)

# A frame of 2.3 MB held up everything behind it (FACTS 26); these keep one below some milliseconds.
MAX_FRAME_TOKENS: Final = 2_000
MAX_FRAME_BYTES: Final = 256_000
# Errors that no repetition changes: too large, no such name of a topic, not allowed, not a record.
HOPELESS: Final = frozenset({10, 17, 18, 29, 31, 87})
# Beyond these the model's stream is not read: Kafka is not keeping up, and memory is not a place for answers.
MAX_UNACKNOWLEDGED_TOKENS: Final = 20_000
MAX_UNACKNOWLEDGED_SECONDS: Final = 2.0
# Long enough for a partition to find a new leader, short enough for a person to be told.
DELIVERY_SECONDS: Final = 30.0
# A broker that is frozen rather than dead keeps its connections: its requests are given up after the first of these,
# and after the second as soon as somebody else leads one of their partitions.
REQUEST_SECONDS: Final = 10.0
SLOW_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 0.5
# Shut turns that nobody claimed again (another worker did) are forgotten beyond this many a partition.
MAX_SHUT: Final = 10_000
CLOSE_SECONDS: Final = 0.5


OnWritten = Callable[[Sequence[tuple[int, int, Sequence[Token]]]], None]
"""Called with the frames that Kafka has taken together: of each its partition, its offset there, its tokens."""

Waiter = tuple[int, "asyncio.Future[int]"]
"""Who waits for the offset of the partition's token of this number."""


class _Frame:
    """Tokens on their way to Kafka, their batch, and who waits to hear the offset."""

    __slots__ = ("batch", "born", "lane", "reason", "tokens", "waiters")

    def __init__(
        self, lane: "_Lane", tokens: Sequence[Token], raw: bytes, waiters: Sequence[Waiter], born: float
    ) -> None:
        self.lane = lane
        self.tokens = tokens
        self.batch = batch_of(raw)
        self.waiters = waiters
        self.born = born
        self.reason = "nobody is known to lead it"


class _Lane:
    """One partition's way into the log.

    ``frame``: the one that is to be acknowledged before there is another. ``link``: where that is on its way, and
    where the lane waits; it changes only while neither is so. ``armed``: the lane waits for a request or for a leader,
    so that `append` has nothing to do but append. ``framed``: how many tokens have left ``pending``. ``shut``: the
    turns that lost something, and up to which epoch.
    """

    __slots__ = ("armed", "frame", "framed", "link", "partition", "pending", "shut", "waiters")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.pending: list[Token] = []
        self.waiters: list[Waiter] = []
        self.frame: _Frame | None = None
        self.link: _Link | None = None
        self.framed = 0
        self.armed = False
        self.shut: dict[str, int] = {}

    def next_frame(self, now: float) -> _Frame:
        """Return the frame that was not acknowledged, else one of as much of what is pending as it may hold."""
        if self.frame is None:
            tokens, raw = _first_frame(self.pending)
            self.pending = self.pending[len(tokens) :]
            self.framed += len(tokens)
            waiters: Sequence[Waiter] = ()
            if self.waiters:
                waiters = [waiter for waiter in self.waiters if waiter[0] <= self.framed]
                self.waiters = self.waiters[len(waiters) :]
            self.frame = _Frame(self, tokens, raw, waiters, now)
        return self.frame


class _Link:
    """The requests to one broker, of which one is under way at a time: that of ``frames``.

    ``waiting``: the lanes that the next one is for. ``timer`` will send it, or where that is None, the answer to the
    one that is under way.
    """

    __slots__ = ("broker", "frames", "number", "sent_at", "task", "timer", "urgent", "waiting")

    def __init__(self, number: int, broker: Broker) -> None:
        self.number = number
        self.broker = broker
        self.waiting: list[_Lane] = []
        self.frames: list[_Frame] = []
        self.sent_at = 0.0
        self.urgent = False
        self.timer: asyncio.Handle | None = None
        self.task: asyncio.Task[None] | None = None


class TokenProducer:
    """The only writer of tokens in this process. All methods belong to the event loop.

    ``on_look`` is called when a leader is to be found, which others may want to know of, too.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        *,
        frame_ms: float,
        on_written: OnWritten = lambda *_: None,
        on_look: Callable[[], None] = lambda: None,
        delivery_seconds: float = DELIVERY_SECONDS,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._topic = topic
        self._pace = Pace(frame_ms / 1000)
        self._on_written = on_written
        self._on_look = on_look
        self._delivery_seconds = delivery_seconds
        self._request_seconds = min(REQUEST_SECONDS, delivery_seconds)
        self._leaders = Leaders(bootstrap, topic)
        self._complaints = Complaints("token producer")
        self._lanes: dict[int, _Lane] = {}
        self._links: dict[int, _Link] = {}
        # Lanes whose leader is not known, each with a frame for it.
        self._strays: list[_Lane] = []
        self._unacknowledged = 0
        self._room: list[asyncio.Future[None]] = []
        self._closed = False
        self._watching = self._loop.create_task(self._watch(), name="token-producer-watch")
        self._looking = self._loop.create_task(self._look(), name="token-producer-look")

    def append(self, partition: int, token: Token) -> None:
        """Put a token into the partition's next frame.

        Raises `LogUnavailable` if something of this turn and epoch was lost: claim it again.
        """
        lane = self._lanes.get(partition) or self._new_lane(partition)
        if lane.shut:
            self._refuse_shut(lane, token)
        lane.pending.append(token)
        self._unacknowledged += 1
        if not lane.armed:
            self._arm(lane)

    def room(self, partition: int) -> Awaitable[None] | None:
        """Return None, or what to wait for while more is unacknowledged than a healthy Kafka ever leaves so.

        That is 20,000 tokens over all partitions, or a frame of this partition for 2 s.
        """
        return None if self._has_room(partition) else self._wait_for_room(partition)

    async def put(self, partition: int, token: Token) -> int:
        """Write a token at once, behind everything appended to its partition before; return its offset.

        Raises `LogUnavailable` if Kafka did not take it in time, or took it behind something that was lost.
        """
        lane = self._lanes.get(partition) or self._new_lane(partition)
        if self._closed:
            raise LogUnavailable("the token log is closed")
        if token.kind != "claim":
            self._refuse_shut(lane, token)
        elif lane.shut.get(token.turn_id, token.epoch) < token.epoch:
            del lane.shut[token.turn_id]
        written: asyncio.Future[int] = self._loop.create_future()
        lane.pending.append(token)
        lane.waiters.append((lane.framed + len(lane.pending), written))
        self._unacknowledged += 1
        if not lane.armed:
            self._arm(lane)
        if lane.link is not None:
            lane.link.urgent = True
            self._schedule(lane.link)
        return await written

    async def close(self) -> None:
        """Send what is pending and give Kafka half a second for it. What it has not taken then is lost."""
        if self._closed:
            return
        self._closed = True
        deadline = self._loop.time() + CLOSE_SECONDS
        while (left := deadline - self._loop.time()) > 0 and (busy := self._sending()):
            await asyncio.wait(busy, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        tasks = [self._watching, self._looking, *(link.task for link in self._links.values() if link.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self._leaders.close(), return_exceptions=True)
        for link in self._links.values():
            link.broker.cut()
        for lane in self._lanes.values():
            self._lose(lane, "the worker is shutting down")

    def _sending(self) -> list[asyncio.Task[None]]:
        """Return what is under way, after having sent whatever can be."""
        for link in self._links.values():
            if link.waiting and not link.frames:
                self._send(link)
        return [link.task for link in self._links.values() if link.frames and link.task is not None]

    # -- sending

    def _new_lane(self, partition: int) -> _Lane:
        lane = self._lanes[partition] = _Lane(partition)
        return lane

    def _link_of(self, lane: _Lane) -> _Link | None:
        number = self._leaders.of(lane.partition)
        if number is None:
            return None
        address = self._leaders.address(number)
        link = self._links.get(number)
        if link is None:
            link = self._links[number] = _Link(number, Broker(address, self._request_seconds))
        elif link.broker.address != address:
            link.broker.cut()
            link.broker = Broker(address, self._request_seconds)
        return link

    def _arm(self, lane: _Lane) -> None:
        if self._closed:
            raise LogUnavailable("the token log is closed")
        self._place(lane)

    def _place(self, lane: _Lane) -> None:
        """Have a lane wait for the next request to who leads it, or for somebody to lead it."""
        lane.armed = True
        if lane.link is None:
            lane.link = self._link_of(lane)
        if lane.link is None:
            self._stray(lane)
            return
        lane.link.waiting.append(lane)
        if lane.link.timer is None:
            self._schedule(lane.link)

    def _schedule(self, link: _Link) -> None:
        """Have the next request sent when it is due, if none is under way."""
        if link.frames:
            return
        if link.timer is not None:
            link.timer.cancel()
        due = 0.0 if link.urgent else self._pace.after(link.sent_at)
        if due <= self._loop.time():
            # At the end of this loop iteration, so that what one read of a model's socket brings shares a frame, and
            # so do claims made at the same time.
            link.timer = self._loop.call_soon(self._send, link)
        else:
            link.timer = self._loop.call_at(due, self._send, link)

    def _send(self, link: _Link) -> None:
        """Send a frame of each lane that waits."""
        if link.timer is not None:
            link.timer.cancel()
            link.timer = None
        now = link.sent_at = self._loop.time()
        lanes, link.waiting, link.urgent = link.waiting, [], False
        for lane in lanes:
            lane.armed = False
            if lane.frame is None and not lane.pending:
                continue
            if self._leaders.of(lane.partition) != link.number:
                lane.link = None
                self._place(lane)
                continue
            link.frames.append(lane.next_frame(now))
            if lane.pending:
                lane.armed = link.urgent = True
                link.waiting.append(lane)
        if link.frames:
            link.task = self._loop.create_task(self._deliver(link))

    async def _deliver(self, link: _Link) -> None:
        written: Mapping[int, Written] = {}
        failure: Exception | None = None
        try:
            written = await link.broker.produce(
                self._topic, [(frame.lane.partition, frame.batch) for frame in link.frames]
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the frames are to be written
            failure = error
            link.broker.cut()
        seconds = self._loop.time() - link.sent_at
        self._pace.took(seconds)
        frames, link.frames = link.frames, []
        taken = []
        for frame in frames:
            told = written.get(frame.lane.partition)
            if told is None:
                self._not_taken(frame, link, failure or KafkaError("the answer does not mention it"))
            elif told.code:
                self._not_taken(frame, link, for_code(told.code)())
            else:
                taken.append((frame, told.offset))
        if taken:
            self._acknowledged(taken, seconds)
        if failure is not None:
            for lane in link.waiting.copy():
                self._lead_away(lane, link)
        if link.waiting:
            self._schedule(link)
        self._make_room()

    # -- delivery

    def _acknowledged(self, taken: Sequence[tuple[_Frame, int]], seconds: float) -> None:
        count = 0
        for frame, _ in taken:
            frame.lane.frame = None
            count += len(frame.tokens)
        self._unacknowledged -= count
        self._on_written([(frame.lane.partition, offset, frame.tokens) for frame, offset in taken])
        for frame, offset in taken:
            for _, waiter in frame.waiters:
                if not waiter.done():
                    waiter.set_result(offset)
        metrics.frames.inc(len(taken))
        metrics.tokens_logged.inc(count)
        metrics.frame_ack.observe(seconds)

    def _not_taken(self, frame: _Frame, link: _Link, error: Exception) -> None:
        """Write a frame again to who leads its partition now, or have it lost where that is of no use."""
        lane = frame.lane
        if isinstance(error, BrokerResponseError) and error.errno in HOPELESS:
            self._failed(lane, error)
        else:
            frame.reason = str(error) or type(error).__name__
            self._complaints.about(type(error).__name__, frame.reason)
            self._lead_away(lane, link)

    def _lead_away(self, lane: _Lane, link: _Link) -> None:
        if lane.armed:
            link.waiting.remove(lane)
        if self._leaders.of(lane.partition) == link.number:
            self._leaders.forget(lane.partition)
        lane.link = None
        self._place(lane)

    def _stray(self, lane: _Lane) -> None:
        """Have a lane's leader looked for."""
        lane.next_frame(self._loop.time())
        self._strays.append(lane)
        if self._looking.done():
            self._looking = self._loop.create_task(self._look(), name="token-producer-look")

    async def _look(self) -> None:
        """Ask who leads, until every stray has its leader or has waited too long for one."""
        self._on_look()
        while True:
            await self._leaders.ask()
            strays, self._strays = self._strays, []
            for lane in strays:
                frame = lane.next_frame(self._loop.time())
                if self._is_late(frame):
                    lane.armed = False
                    self._failed(lane, frame.reason)
                else:
                    self._place(lane)
            if not self._strays:
                return

    async def _watch(self) -> None:
        """Give up slow requests for what another broker leads now, and those that take longer than they may."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = self._loop.time()
            slow = [link for link in self._links.values() if link.frames and now - link.sent_at > SLOW_SECONDS]
            if not slow:
                continue
            for lane in [lane for link in slow for lane in link.waiting if lane.pending]:
                lane.next_frame(now)  # its time counts from here on
            await self._leaders.ask()
            for link in slow:
                if any(
                    self._is_late(frame) or self._leaders.of(frame.lane.partition) != link.number
                    for frame in link.frames
                ):
                    link.broker.cut()

    def _is_late(self, frame: _Frame) -> bool:
        return self._loop.time() - frame.born >= self._delivery_seconds

    # -- loss

    def _failed(self, lane: _Lane, reason: object) -> None:
        log.error("frames lost", partition=lane.partition, reason=str(reason))
        self._lose(lane, f"Kafka did not take a frame of partition {lane.partition}: {reason}")

    def _lose(self, lane: _Lane, why: str) -> None:
        """Count everything unacknowledged of a partition as lost: shut its turns, tell who waits."""
        tokens, waiters = lane.pending, lane.waiters
        if lane.frame is not None:
            tokens = [*lane.frame.tokens, *tokens]
            waiters = [*lane.frame.waiters, *waiters]
        lane.frame, lane.pending, lane.waiters = None, [], []
        self._unacknowledged -= len(tokens)
        for token in tokens:
            lane.shut[token.turn_id] = max(token.epoch, lane.shut.pop(token.turn_id, -1))
        while len(lane.shut) > MAX_SHUT:
            del lane.shut[next(iter(lane.shut))]
        for _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(LogUnavailable(why))
        self._make_room()

    def _refuse_shut(self, lane: _Lane, token: Token) -> None:
        if lane.shut.get(token.turn_id, -1) >= token.epoch:
            raise LogUnavailable(f"tokens of turn {token.turn_id} were lost on their way to Kafka; claim it again")

    # -- back-pressure

    def _has_room(self, partition: int) -> bool:
        if self._unacknowledged > MAX_UNACKNOWLEDGED_TOKENS:
            return False
        lane = self._lanes.get(partition)
        if lane is None or lane.frame is None:
            return True
        return self._loop.time() - lane.frame.born < MAX_UNACKNOWLEDGED_SECONDS

    async def _wait_for_room(self, partition: int) -> None:
        while not self._has_room(partition):
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._room.append(waiter)
            await waiter

    def _make_room(self) -> None:
        waiters, self._room = self._room, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _first_frame(pending: Sequence[Token]) -> tuple[Sequence[Token], bytes]:
    """Return as many tokens as a frame may hold, one at least, and their encoding."""
    tokens = pending[:MAX_FRAME_TOKENS]
    raw = encode(tokens)
    while len(raw) > MAX_FRAME_BYTES and len(tokens) > 1:
        tokens = tokens[: len(tokens) // 2]
        raw = encode(tokens)
    return tokens, raw
