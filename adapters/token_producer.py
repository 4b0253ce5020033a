"""Writes tokens to the log: gathered into frames, paced, and held back where Kafka does not keep up.

Kafka costs per record and request, not per token, so tokens of all turns of a partition wait a few milliseconds
for each other. `append` runs ten thousand times a second and does as little as it can; what waits for Kafka
(claims, ends) goes through `put`, at once.

Acknowledgements are taken when a frame is due, and every millisecond while frames are under way: a thread that woke
the loop for every frame cost a quarter of the token path. It wakes the loop for a lone frame alone, where a
millisecond is much and there is nothing else to do.

Delivery. A frame that Kafka does not acknowledge in time may or may not be in the log. Everything of its
partition that is unacknowledged then counts as lost, and the turns in it are shut: `append` and `put` raise
`LogUnavailable` for them until they are claimed with a higher epoch. What a shut turn still wrote stands behind
a hole in its numbers or under an old epoch, and the fold drops it; so a writer who claims again and goes on
from what its tail shows is right in either case.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from adapters.frames import encode
from adapters.librdkafka import Complaints, LeaderLook, client_config
from config import metrics
from domain.errors import LogUnavailable
from domain.pace import Pace
from domain.tokens import Token

log = structlog.get_logger(__name__)

# A frame of 2.3 MB held up everything behind it (FACTS 26); these keep one below some milliseconds.
MAX_FRAME_TOKENS: Final = 2_000
MAX_FRAME_BYTES: Final = 256_000
# Beyond these the model's stream is not read: Kafka is not keeping up, and memory is not a place for answers.
MAX_UNACKNOWLEDGED_TOKENS: Final = 20_000
MAX_UNACKNOWLEDGED_SECONDS: Final = 2.0
# Long enough for a partition to find a new leader, short enough for a person to be told.
DELIVERY_SECONDS: Final = 30.0
# Shut turns that nobody claimed again (another worker did) are forgotten beyond this many a partition.
MAX_SHUT: Final = 10_000
# How often librdkafka is asked what happened, if nobody else does: while frames are under way, and otherwise.
BUSY_SECONDS: Final = 0.001
IDLE_SECONDS: Final = 0.25
# With no more tokens than this under way, a thread waits for their acknowledgement, and for so long.
LONE_TOKENS: Final = 2
LISTEN_SECONDS: Final = 0.02
CLOSE_SECONDS: Final = 0.5


OnWritten = Callable[[int, int, Sequence[Token]], None]
"""Called with each frame that Kafka has taken: its partition, its offset there, its tokens."""


class _Frame:
    """Tokens on their way to Kafka, and who waits to hear the offset."""

    __slots__ = ("lane", "lost", "raw", "sent_at", "tokens", "waiters")

    def __init__(self, lane: "_Lane", tokens: Sequence[Token], raw: bytes, sent_at: float) -> None:
        self.lane = lane
        self.tokens = tokens
        self.raw = raw
        self.sent_at = sent_at
        self.waiters: list[asyncio.Future[int]] = []
        self.lost = False


class _Lane:
    """One partition's way into the log.

    ``armed``: something will send what is pending (``timer``, or where that is None the next acknowledgement),
    so that `append` has nothing to do but append. ``shut``: the turns that lost something, and up to which epoch.
    """

    __slots__ = ("armed", "frames", "partition", "pending", "sent_at", "shut", "timer", "waiters")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.pending: list[Token] = []
        self.waiters: list[asyncio.Future[int]] = []
        self.frames: deque[_Frame] = deque()
        self.sent_at = 0.0
        self.armed = False
        self.timer: asyncio.Handle | None = None
        self.shut: dict[str, int] = {}


class TokenProducer:
    """The only writer of tokens in this process. All methods belong to the event loop."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        *,
        frame_ms: float,
        on_written: OnWritten = lambda *_: None,
        delivery_seconds: float = DELIVERY_SECONDS,
        kafka: Mapping[str, Any] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._topic = topic
        self._pace = Pace(frame_ms / 1000)
        self._on_written = on_written
        self._look = LeaderLook(Complaints("token producer"))
        self._looking: asyncio.Future[None] | None = None
        self._config = client_config(
            bootstrap,
            self._look.complained,
            {
                "acks": "all",
                "enable.idempotence": True,
                # Frames are gathered here already; 5 ms of linger would be added to every token.
                "linger.ms": 0,
                "message.timeout.ms": int(delivery_seconds * 1000),
                # A broker that is frozen rather than dead keeps its connections: give its requests up early enough.
                "request.timeout.ms": min(10_000, int(delivery_seconds * 1000)),
                "retry.backoff.max.ms": 500,
                **(kafka or {}),
            },
        )
        self._producer = Producer(self._config)
        self._lanes: dict[int, _Lane] = {}
        self._unacknowledged = 0
        self._room: list[asyncio.Future[None]] = []
        self._reports: deque[tuple[_Frame, KafkaError | None, int]] = deque()
        self._closed = False
        self._busy = False
        self._clock = self._loop.call_later(IDLE_SECONDS, self._tick)
        self._awaited = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="token-producer", daemon=True)
        self._listener.start()

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

        It is -1 where Kafka had taken the frame before without our hearing of it, and does not tell where.

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
        lane.waiters.append(written)
        self._unacknowledged += 1
        # At the end of this loop iteration, so that claims made at the same time share a frame.
        self._loop.call_soon(self._send, lane)
        return await written

    async def close(self) -> None:
        """Send what is pending and give Kafka half a second for it. What it has not taken then is lost."""
        if self._closed:
            return
        for lane in self._lanes.values():
            self._send(lane)
        self._closed = True
        self._clock.cancel()
        self._awaited.set()
        await asyncio.to_thread(self._listener.join)
        await asyncio.to_thread(self._producer.flush, CLOSE_SECONDS)
        self._collect()
        for lane in self._lanes.values():
            self._lose(lane, "the worker is shutting down")
        self._producer.purge(blocking=False)
        if self._looking is not None:
            await asyncio.wait((self._looking,))
        await asyncio.to_thread(self._producer.close)

    # -- sending

    def _new_lane(self, partition: int) -> _Lane:
        lane = self._lanes[partition] = _Lane(partition)
        return lane

    def _arm(self, lane: _Lane) -> None:
        if self._closed:
            raise LogUnavailable("the token log is closed")
        lane.armed = True
        due = self._pace.after(lane.sent_at)
        if due <= self._loop.time():
            # At the end of this loop iteration, so that what one read of a model's socket brings shares a frame.
            lane.timer = self._loop.call_soon(self._due, lane)
        else:
            lane.timer = self._loop.call_at(due, self._due, lane)

    def _due(self, lane: _Lane) -> None:
        lane.timer = None
        self._serve()
        if not lane.frames:
            self._send(lane)

    def _send(self, lane: _Lane) -> None:
        self._disarm(lane)
        if not lane.pending:
            return
        lane.sent_at = self._loop.time()
        frames = [_Frame(lane, tokens, raw, lane.sent_at) for tokens, raw in _framed(lane.pending)]
        frames[-1].waiters = lane.waiters
        lane.frames.extend(frames)
        lane.pending, lane.waiters = [], []
        if not self._busy:
            self._watch()
        try:
            for frame in frames:
                self._producer.produce(
                    self._topic, frame.raw, partition=lane.partition, on_delivery=partial(self._delivered, frame)
                )
        except (BufferError, KafkaException) as error:
            self._failed(lane, error)

    def _disarm(self, lane: _Lane) -> None:
        lane.armed = False
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None

    # -- delivery

    def _watch(self) -> None:
        """Look for acknowledgements soon."""
        if self._unacknowledged <= LONE_TOKENS:
            self._awaited.set()
        self._clock.cancel()
        self._clock = self._loop.call_later(BUSY_SECONDS, self._tick)
        self._busy = True

    def _listen(self) -> None:
        while self._awaited.wait() and not self._closed:
            self._awaited.clear()
            if self._producer.poll(LISTEN_SECONDS):
                self._loop.call_soon_threadsafe(self._collect)

    def _serve(self) -> None:
        """Take the acknowledgements that have come."""
        if not self._closed and self._producer.poll(0):
            self._collect()

    def _tick(self) -> None:
        self._serve()
        if (self._looking is None or self._looking.done()) and self._look.due():
            self._looking = self._loop.run_in_executor(None, self._look.ask, self._producer, self._topic)
        self._busy = self._unacknowledged > 0
        self._clock = self._loop.call_later(BUSY_SECONDS if self._busy else IDLE_SECONDS, self._tick)

    def _delivered(self, frame: _Frame, error: KafkaError | None, message: Message) -> None:
        """Note a delivery report. Runs inside librdkafka's poll, at times in another thread than the loop's."""
        offset = None if error else message.offset()
        self._reports.append((frame, error, -1 if offset is None else offset))

    def _collect(self) -> None:
        now = self._loop.time()
        while self._reports:
            frame, error, offset = self._reports.popleft()
            if frame.lost:
                continue
            if error is not None:
                self._failed(frame.lane, KafkaException(error))
            else:
                self._acknowledged(frame, offset, now - frame.sent_at)
        self._make_room()

    def _acknowledged(self, frame: _Frame, offset: int, seconds: float) -> None:
        lane = frame.lane
        lane.frames.remove(frame)
        self._pace.took(seconds)
        self._unacknowledged -= len(frame.tokens)
        if offset >= 0:
            self._on_written(lane.partition, offset, frame.tokens)
        for waiter in frame.waiters:
            if not waiter.done():
                waiter.set_result(offset)
        metrics.frames.inc()
        metrics.tokens_logged.inc(len(frame.tokens))
        metrics.tokens_per_frame.observe(len(frame.tokens))
        metrics.frame_ack.observe(seconds)
        if lane.armed and lane.timer is None and not lane.frames:
            self._send(lane)

    # -- loss

    def _failed(self, lane: _Lane, error: BaseException) -> None:
        reason = error.args[0] if error.args else error
        log.error("frames lost", partition=lane.partition, frames=len(lane.frames), reason=str(reason))
        self._lose(lane, f"Kafka did not take a frame of partition {lane.partition}: {reason}")
        if isinstance(reason, KafkaError) and (reason.fatal() or reason.code() == KafkaError._FATAL):
            self._renew()

    def _lose(self, lane: _Lane, why: str) -> None:
        """Count everything unacknowledged of a partition as lost: shut its turns, tell who waits."""
        waiters = lane.waiters
        tokens = lane.pending
        for frame in lane.frames:
            frame.lost = True
            tokens.extend(frame.tokens)
            waiters.extend(frame.waiters)
        lane.pending, lane.waiters = [], []
        lane.frames.clear()
        self._disarm(lane)
        self._unacknowledged -= len(tokens)
        for token in tokens:
            lane.shut[token.turn_id] = max(token.epoch, lane.shut.pop(token.turn_id, -1))
        while len(lane.shut) > MAX_SHUT:
            del lane.shut[next(iter(lane.shut))]
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(LogUnavailable(why))
        self._make_room()

    def _refuse_shut(self, lane: _Lane, token: Token) -> None:
        if lane.shut.get(token.turn_id, -1) >= token.epoch:
            raise LogUnavailable(f"tokens of turn {token.turn_id} were lost on their way to Kafka; claim it again")

    def _renew(self) -> None:
        """Replace a producer that Kafka has shut out: an idempotent one never recovers from a lost sequence."""
        log.error("token producer renewed")
        for lane in self._lanes.values():
            self._lose(lane, "the token producer had to be renewed")
        self._producer = Producer(self._config)

    # -- back-pressure

    def _has_room(self, partition: int) -> bool:
        if self._unacknowledged > MAX_UNACKNOWLEDGED_TOKENS:
            return False
        lane = self._lanes.get(partition)
        if lane is None or not lane.frames:
            return True
        return self._loop.time() - lane.frames[0].sent_at < MAX_UNACKNOWLEDGED_SECONDS

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


def _framed(tokens: Sequence[Token]) -> Iterator[tuple[Sequence[Token], bytes]]:
    """Yield the tokens and their encoding, in as many frames as the caps ask for."""
    for start in range(0, len(tokens), MAX_FRAME_TOKENS):
        yield from _fitting(tokens[start : start + MAX_FRAME_TOKENS])


def _fitting(tokens: Sequence[Token]) -> Iterator[tuple[Sequence[Token], bytes]]:
    raw = encode(tokens)
    if len(raw) <= MAX_FRAME_BYTES or len(tokens) == 1:
        yield tokens, raw
        return
    half = len(tokens) // 2
    yield from _fitting(tokens[:half])
    yield from _fitting(tokens[half:])
