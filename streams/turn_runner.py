"""Runs questions as tasks: in order within a conversation, side by side across conversations, through rebalances.

A question's `Job` starts when its event arrives and is acknowledged when its handler is done. In between the
group may rebalance as often as it likes: the job goes on, Kafka delivers its event again, and the job adopts
it, because only an event of the current generation can be acknowledged. Jobs of lost partitions are cancelled
without acknowledgement: the next owner takes them up from the log.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import structlog

from domain.errors import Rejected, Retriable
from streams.records import Question, decode

log = structlog.get_logger(__name__)

MAX_ATTEMPTS = 5  # of a handler that fails for a reason nobody foresaw
LONGEST_BACK_OFF = 10.0
MAX_STOPS = 1000  # remembered for questions that have not arrived; the oldest are of turns long ended


class Message(Protocol):
    """What the runner reads of a Kafka message."""

    topic: str
    partition: int
    offset: int
    generation_id: int | None


class Event(Protocol):
    """What the runner reads of a Faust event."""

    @property
    def key(self) -> bytes:
        """Return the conversation's id."""
        ...

    @property
    def value(self) -> bytes:
        """Return the question, as JSON."""
        ...

    @property
    def message(self) -> Message:
        """Return where the event stands in the log."""
        ...


class Stream(Protocol):
    """What the runner needs of a Faust stream that does not acknowledge by itself."""

    def events(self) -> AsyncIterator[Any]:
        """Return the events as they arrive, each an `Event`."""
        ...

    async def ack(self, event: Any) -> object:
        """Mark an event as finished."""
        ...


class Group(Protocol):
    """What the runner needs to know of the consumer group."""

    @property
    def generation(self) -> int:
        """Return the number of the current assignment; events of older ones cannot be acknowledged."""
        ...

    @property
    def rebalancing(self) -> bool:
        """Return True from the start of a rebalance until the tables have recovered."""
        ...


class Job:
    """One question in work. ``stopping`` is set when somebody asked to stop its answer."""

    __slots__ = ("done", "event", "partition", "question", "stopping", "task")

    def __init__(self, event: Event, question: Question) -> None:
        self.event = event
        self.question = question
        self.partition = event.message.partition
        self.stopping = asyncio.Event()
        self.done = False
        self.task: asyncio.Task[None] | None = None


Handler = Callable[[Job], Awaitable[None]]
GiveUp = Callable[[Event, Question | None, Exception], Awaitable[None]]


class TurnRunner:
    """See the module.

    ``handler`` answers a job; ``give_up`` is called once with what it could not do (a record that cannot be
    decoded, a `Rejected`, or the last of `MAX_ATTEMPTS` unforeseen errors) and makes that visible.
    ``limit`` bounds the jobs that are held at once: beyond it, events wait in Kafka.
    """

    def __init__(self, group: Group, *, limit: int) -> None:
        self.group = group
        self.limit = limit
        self.handler: Handler
        self.give_up: GiveUp
        self._jobs: dict[tuple[int, int], Job] = {}
        self._lanes: dict[str, list[Job]] = {}  # by conversation
        self._stream: Stream | None = None
        self._room = asyncio.Event()
        self._stops: dict[str, None] = {}

    # -- what others ask

    def in_work(self, conversation_id: str) -> list[Question]:
        """Return a conversation's questions that are running or queued here, in order."""
        return [job.question for job in self.jobs_of(conversation_id) if not job.done]

    def jobs_of(self, conversation_id: str) -> list[Job]:
        """Return a conversation's jobs, in order."""
        return list(self._lanes.get(conversation_id, ()))

    def stop(self, turn_id: str) -> bool:
        """Ask a turn to stop. One that is not here yet is stopped when it arrives (controls can overtake)."""
        found = [job for job in self._jobs.values() if job.question.turn_id == turn_id]
        for job in found:
            job.stopping.set()
        if not found:
            self._stops[turn_id] = None
            while len(self._stops) > MAX_STOPS:
                del self._stops[next(iter(self._stops))]
        return bool(found)

    def __len__(self) -> int:
        return sum(not job.done for job in self._jobs.values())

    # -- the stream

    async def run(self, stream: Stream, handler: Handler, give_up: GiveUp) -> None:
        """Take events from the stream until it ends."""
        self._stream, self.handler, self.give_up = stream, handler, give_up
        async for event in stream.events():
            await self._take(event)

    async def _take(self, event: Event) -> None:
        at = (event.message.partition, event.message.offset)
        job = self._jobs.get(at)
        if job is not None:
            job.event = event  # delivered again after a rebalance: the work went on meanwhile
            if job.done:
                await self._acknowledge(job)
            return
        try:
            question = decode(event.value, Question)
        except Rejected as error:
            await self._set_aside(event, error)
            return
        while len(self) >= self.limit:
            self._room.clear()
            await self._room.wait()
        if event.message.generation_id != self.group.generation:
            return  # a rebalance came while we waited: it is delivered again
        self._begin(at, Job(event, question))

    def _begin(self, at: tuple[int, int], job: Job) -> None:
        lane = self._lanes.setdefault(job.question.conversation_id, [])
        ahead = list(lane)
        if job.question.on_busy == "replace":
            for other in ahead:
                other.stopping.set()
        if job.question.turn_id in self._stops:
            del self._stops[job.question.turn_id]
            job.stopping.set()
        self._jobs[at] = job
        lane.append(job)
        job.task = asyncio.create_task(self._work(job, ahead[-1].task if ahead else None))
        job.task.add_done_callback(lambda _: self._leave(job))

    def _leave(self, job: Job) -> None:
        lane = self._lanes[job.question.conversation_id]
        lane.remove(job)
        if not lane:
            del self._lanes[job.question.conversation_id]
        self._room.set()

    async def _work(self, job: Job, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        await self._attempt(job)
        job.done = True
        self._room.set()
        await self._acknowledge(job)

    async def _attempt(self, job: Job) -> None:
        """Answer, however often it takes. Nothing is raised: a question is never acknowledged unanswered."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self.handler(job)
            except Retriable as error:
                turn_id = job.question.turn_id
                log.warning("turn will be tried again", turn_id=turn_id, attempt=attempt, reason=str(error))
            except Rejected as error:
                return await self._set_aside(job.event, error, job.question)
            except Exception as error:
                log.exception("turn met an unforeseen error", turn_id=job.question.turn_id, attempt=attempt)
                if attempt >= MAX_ATTEMPTS:
                    return await self._set_aside(job.event, error, job.question)
            await asyncio.sleep(min(0.1 * 2**attempt, LONGEST_BACK_OFF))

    async def _set_aside(self, event: Event, error: Exception, question: Question | None = None) -> None:
        attempt = 0
        while True:
            attempt += 1
            try:
                await self.give_up(event, question, error)
                break
            except Exception:
                # Until it is set aside visibly, it is not acknowledged.
                log.exception("could not set a question aside", offset=event.message.offset, attempt=attempt)
            await asyncio.sleep(min(0.1 * 2**attempt, LONGEST_BACK_OFF))
        if question is None and self._stream is not None:
            await self._stream.ack(event)

    async def _acknowledge(self, job: Job) -> None:
        message = job.event.message
        if message.generation_id != self.group.generation or self.group.rebalancing:
            return  # acknowledged when it is delivered again
        self._jobs.pop((message.partition, message.offset), None)
        if self._stream is not None:
            await self._stream.ack(job.event)

    # -- rebalance and shutdown

    async def keep(self, partitions: set[int]) -> None:
        """Cancel, without acknowledgement, the jobs of all other partitions."""
        await self._cancel([at for at in self._jobs if at[0] not in partitions])

    async def hand_over(self, seconds: float) -> None:
        """Let jobs finish for so long, then cancel the rest without acknowledgement."""
        running = [job.task for job in self._jobs.values() if job.task is not None and not job.done]
        if running and seconds:
            await asyncio.wait(running, timeout=seconds)
        await self._cancel(list(self._jobs))

    async def _cancel(self, places: list[tuple[int, int]]) -> None:
        tasks = []
        for at in places:
            job = self._jobs.pop(at)
            if job.task is not None and not job.task.done():
                job.task.cancel()
                tasks.append(job.task)
        if tasks:
            await asyncio.wait(tasks, timeout=2)
            log.info("turns handed over", turns=len(tasks))
