"""Runs questions as tasks: in order within a conversation, side by side across conversations, through rebalances.

A question's `Job` is taken when its event arrives, runs when it is first in its conversation and its tenant is due
(`domain.fair_queue`), and is acknowledged when its handler is done. In between the group may rebalance as often as
it likes: the job goes on, Kafka delivers its event again, and the job adopts it, because only an event of the
current generation can be acknowledged. Jobs of lost partitions are cancelled without acknowledgement: the next
owner takes them up from the log.

The invariants: **no event is acknowledged before its question is answered or set aside**; a conversation's turns
are finished in the order of its questions; at most `Limits.running` jobs ask a model, and beyond `Limits.held` or
`Limits.held_bytes` no more is fetched. What is not to be answered (it was stopped while it waited, or it is
refused) is ended at once, and needs no place.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from domain.backoff import pause
from domain.errors import NotOwner, Rejected
from domain.fair_queue import FairQueue
from domain.generation import Usage
from domain.turns import CONVERSATION_BUSY, DUPLICATE_REQUEST, Failure
from streams.patience import MAX_ATTEMPTS, may_pass
from streams.records import Question, decode

log = structlog.get_logger(__name__)

CANCEL_SECONDS = 2.0
LOOK_SECONDS = 0.02
UNKNOWN = -1


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
    """What the runner needs to know of the consumer group, and to ask of it."""

    @property
    def generation(self) -> int:
        """Return the number of the current assignment; events of older ones cannot be acknowledged."""
        ...

    @property
    def rebalancing(self) -> bool:
        """Return True from the start of a rebalance until the tables have recovered."""
        ...

    def delivers_from(self, partition: int) -> int:
        """Return the offset where this assignment's delivery began, -1 while that is not known."""
        ...

    def hold_back(self) -> None:
        """Fetch no more questions. What is fetched already still comes; a rebalance ends it."""
        ...

    def go_on(self) -> None:
        """Fetch questions again."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How many questions may run, and how many more may be here and wait for that."""

    running: int
    held: int
    held_bytes: int


class Work:
    """What the answering of one question needs, and what is kept of it from one try to the next.

    ``stopping`` is set when somebody asked to stop the answer, ``refusal`` when there must be none at all. ``usage``
    is what all tries have cost.
    """

    __slots__ = ("partition", "question", "refusal", "stopping", "usage")

    def __init__(self, question: Question, partition: int) -> None:
        self.question = question
        self.partition = partition
        self.stopping = asyncio.Event()
        self.refusal: Failure | None = None
        self.usage: Usage | None = None


class Job(Work):
    """One question in work here.

    Where it is ``stopping`` or refused it may run before its time. ``first`` is set when no turn before it in its
    conversation is open: only then may its turn be closed. ``answering``: it is known not to have ended before this
    worker had it. ``ended`` is set when the log has the turn's end, which may be long before it can be closed.
    """

    __slots__ = ("answering", "done", "ended", "event", "first", "has_place", "task")

    def __init__(self, event: Event, question: Question) -> None:
        super().__init__(question, event.message.partition)
        self.event = event
        self.first = asyncio.Event()
        self.ended = asyncio.Event()
        self.answering = False
        self.has_place = False
        self.done = False
        self.task: asyncio.Task[None] | None = None


Handler = Callable[[Job], Awaitable[None]]
GiveUp = Callable[[Event, Question | None, Exception], Awaitable[None]]
Place = tuple[int, int]


class TurnRunner:
    """See the module.

    ``handler`` answers a job; ``give_up`` is called once with what it could not do (a record that cannot be
    decoded, a `Rejected`, or the last of `MAX_ATTEMPTS` unforeseen errors) and makes that visible.
    """

    def __init__(self, group: Group, limits: Limits) -> None:
        self.group = group
        self.limits = limits
        self.handler: Handler
        self.give_up: GiveUp
        self.running = 0
        self._jobs: dict[Place, Job] = {}  # those that are done stay until they can be acknowledged
        self._lanes: dict[str, list[Job]] = {}  # by conversation, those that are not done
        self._due: FairQueue[Job] = FairQueue()
        self._stream: Stream | None = None
        self._open = 0
        self._bytes = 0
        self._holding_back = False
        self._taken: dict[int, tuple[int, int]] = {}  # by partition: generation, next offset
        self._handed_over = False

    # -- what others ask

    def in_work(self, conversation_id: str) -> list[Question]:
        """Return a conversation's questions that are running or queued here, in order."""
        return [job.question for job in self._lanes.get(conversation_id, ())]

    def by_key(self, conversation_id: str, replay_key: str) -> Question | None:
        """Return the first question in work here that was asked under this key."""
        return next((found for found in self.in_work(conversation_id) if found.replay_key == replay_key), None)

    def position(self, partition: int) -> int:
        """Return the offset below which every question of a partition is in work here, or finished; -1 if unknown.

        Once the turns are handed over it is: what was in work here is with nobody, or with another worker.
        """
        if self._handed_over:
            return UNKNOWN
        start = self.group.delivers_from(partition)
        generation, taken = self._taken.get(partition, (UNKNOWN, UNKNOWN))
        return max(start, taken) if start >= 0 and generation == self.group.generation else start

    async def stop(self, turn_id: str) -> bool:
        """Ask a turn to stop; return True when it has ended, and False at once if it is not here.

        Raises `NotOwner` if it is handed over before: then whoever takes it up has to hear of the stop as well.
        """
        if self._handed_over:
            raise NotOwner("this worker has handed its turns over")
        found = [job for lane in self._lanes.values() for job in lane if job.question.turn_id == turn_id]
        for job in found:
            self._stop(job)
        for job in found:
            await _end_of(job)
        return bool(found)

    def stop_all(self, conversation_id: str) -> None:
        """Ask all turns of a conversation to stop."""
        for job in self.jobs_of(conversation_id):
            self._stop(job)

    def jobs_of(self, conversation_id: str) -> list[Job]:
        """Return a conversation's jobs, in order."""
        return list(self._lanes.get(conversation_id, ()))

    def answers(self, job: Job) -> None:
        """Take note that a turn is going to be answered here: what must not wait behind one is refused now.

        Until then it may be one that ended long ago, and was delivered again because it could not be committed.
        """
        job.answering = True
        lane = self.jobs_of(job.question.conversation_id)
        for number, other in enumerate(lane):
            if other.task is None:
                self._refuse(other, lane[:number])

    @property
    def held(self) -> int:
        """Return how many questions are here and wait."""
        return self._open - self.running

    def __len__(self) -> int:
        return self._open

    # -- the stream

    async def run(self, stream: Stream, handler: Handler, give_up: GiveUp) -> None:
        """Take events from the stream until it ends."""
        self._stream, self.handler, self.give_up = stream, handler, give_up
        async for event in stream.events():
            await self._take(event)

    async def _take(self, event: Event) -> None:
        message = event.message
        if self._handed_over or message.generation_id != self.group.generation:
            return  # it is delivered again: to the next owner, or here, when a rebalance came meanwhile
        job = self._jobs.get((message.partition, message.offset))
        if job is not None:
            job.event = event  # delivered again after a rebalance: the work went on meanwhile
            if job.done:
                await self._acknowledge(job)
        else:
            try:
                self._begin(Job(event, decode(event.value, Question)))
            except Rejected as error:
                await self._set_aside(event, error)
        if message.generation_id is not None:
            self._taken[message.partition] = (message.generation_id, message.offset + 1)

    def _begin(self, job: Job) -> None:
        question = job.question
        lane = self._lanes.setdefault(question.conversation_id, [])
        ahead = list(lane)
        self._jobs[_place(job)] = job
        self._open += 1
        self._bytes += len(job.event.value)
        lane.append(job)
        if len(lane) == 1:
            self._come_first(job)
        if question.on_busy == "replace":
            for other in ahead:
                if other.question.turn_id != question.turn_id:
                    self._stop(other)
        self._refuse(job, ahead)
        self._fill()
        self._press()

    def _refuse(self, job: Job, others: list[Job]) -> None:
        """Refuse a question that must not wait behind one of these, or repeats it under the same key."""
        job.refusal = _refusal(job.question, others)
        if job.refusal is not None and job.task is None:
            self._start(job)

    def _stop(self, job: Job) -> None:
        job.stopping.set()
        if job.task is None:
            self._start(job)

    # -- who is next

    def _come_first(self, job: Job) -> None:
        job.first.set()
        if job.task is None:
            self._due.push(job.question.tenant, job)

    def _fill(self) -> None:
        while self.running < self.limits.running and (job := self._due.pop()) is not None:
            job.has_place = True
            self.running += 1
            self._start(job)

    def _start(self, job: Job) -> None:
        if not job.has_place:
            self._due.discard(job.question.tenant, job)
        job.task = asyncio.create_task(self._work(job))

    def _remove(self, job: Job) -> None:
        """Take an open job out of its conversation; whoever calls this fills the place."""
        lane = self._lanes[job.question.conversation_id]
        lane.remove(job)
        if not lane:
            del self._lanes[job.question.conversation_id]
        elif not lane[0].first.is_set():
            self._come_first(lane[0])
        if job.has_place:
            self.running -= 1
            self._due.release(job.question.tenant)
        else:
            self._due.discard(job.question.tenant, job)
        self._open -= 1
        self._bytes -= len(job.event.value)

    def _press(self) -> None:
        """Hold Kafka back at the bounds, until half of what may be held is free."""
        held, size = self.held, self._bytes
        if held >= self.limits.held or size >= self.limits.held_bytes:
            self._holding_back = True
            self.group.hold_back()
        elif self._holding_back and held <= self.limits.held // 2 and size <= self.limits.held_bytes // 2:
            self._holding_back = False
            self.group.go_on()

    # -- the work

    async def _work(self, job: Job) -> None:
        await self._attempt(job)
        if self._jobs.get(_place(job)) is not job:
            return  # it was cancelled, and came to its end all the same: whoever has it now acknowledges it
        job.done = True
        self._remove(job)
        self._fill()
        self._press()
        await self._acknowledge(job)

    async def _attempt(self, job: Job) -> None:
        """Answer, however often it takes. Nothing is raised: a question is never acknowledged unanswered."""
        attempt = unforeseen = 0
        while True:
            attempt += 1
            try:
                return await self.handler(job)
            except Rejected as error:
                return await self._give_up(job, error)
            except Exception as error:
                turn_id = job.question.turn_id
                if may_pass(error) or self.group.rebalancing:
                    log.warning("turn will be tried again", turn_id=turn_id, attempt=attempt, reason=repr(error))
                else:
                    unforeseen += 1
                    log.exception("turn met an unforeseen error", turn_id=turn_id, attempt=attempt)
                if unforeseen >= MAX_ATTEMPTS:
                    return await self._give_up(job, error)
            if await self._was_rebalancing(job):
                attempt = 0
            else:
                await _wait(job, pause(attempt))

    async def _was_rebalancing(self, job: Job) -> bool:
        """Wait while partitions are shared out, unless the turn is being stopped; return whether there was any wait.

        What a turn lacks then is there right afterwards, and no sooner.
        """
        waited = False
        while self.group.rebalancing and not job.stopping.is_set():
            waited = True
            await asyncio.sleep(LOOK_SECONDS)
        return waited

    async def _give_up(self, job: Job, error: Exception) -> None:
        await job.first.wait()  # its turn is closed as failed, behind the one before it
        await self._set_aside(job.event, error, job.question)

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
            await asyncio.sleep(pause(attempt))
        if question is None and self._stream is not None:
            await self._stream.ack(event)

    async def _acknowledge(self, job: Job) -> None:
        if job.event.message.generation_id != self.group.generation or self.group.rebalancing:
            return  # acknowledged when it is delivered again
        self._jobs.pop(_place(job), None)
        if self._stream is not None:
            await self._stream.ack(job.event)

    # -- rebalance and shutdown

    async def keep(self, partitions: set[int]) -> None:
        """Cancel, without acknowledgement, the jobs of all other partitions."""
        await self._cancel([job for job in self._jobs.values() if job.partition not in partitions])

    async def drain(self, seconds: float) -> None:
        """Let what is running now come to its end, for so long. Meanwhile new questions are taken and answered."""
        running = [job.task for job in self._jobs.values() if job.task is not None and not job.done]
        if running and seconds:
            await asyncio.wait(running, timeout=seconds)

    async def hand_over(self) -> None:
        """Cancel all jobs without acknowledgement. Each breaks off between two tokens."""
        self._handed_over = True
        await self._cancel(list(self._jobs.values()))

    async def _cancel(self, jobs: Iterable[Job]) -> None:
        tasks = []
        for job in jobs:
            del self._jobs[_place(job)]
            if not job.done:
                self._remove(job)
            if job.task is not None and not job.task.done():
                job.task.cancel()
                tasks.append(job.task)
        self._fill()
        self._press()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
            log.info("turns handed over", turns=len(tasks))


async def _end_of(job: Job) -> None:
    """Return when a job's turn has ended, or was set aside; raises `NotOwner` if the job was cancelled before."""
    ended = asyncio.create_task(job.ended.wait())
    try:
        await asyncio.wait({ended, *filter(None, [job.task])}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
    if not (job.ended.is_set() or job.done):
        raise NotOwner("the turn was handed over before it had ended")


async def _wait(job: Job, seconds: float) -> None:
    """Wait, but no longer when a stop comes: it may act at once. One that had come before waits like anything else."""
    if job.stopping.is_set():
        await asyncio.sleep(seconds)
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await job.stopping.wait()


def _place(job: Job) -> Place:
    return job.partition, job.event.message.offset


def _refusal(question: Question, others: list[Job]) -> Failure | None:
    """Return why a question must not be answered beside or after these, None if it may be.

    The same turn may be in the log twice, where Kafka did not tell that it had taken the first: no reason to refuse it.
    """
    for other in others:
        earlier = other.question
        if earlier.turn_id == question.turn_id or other.refusal is not None:
            continue
        if question.replay_key and earlier.replay_key == question.replay_key:
            return duplicate_of(earlier.turn_id)
        if question.on_busy == "reject" and other.answering:
            return Failure("Another answer was being written in this conversation.", CONVERSATION_BUSY)
    return None


def duplicate_of(turn_id: str) -> Failure:
    """Return why a question is refused that has the Idempotency-Key of this turn."""
    return Failure(f"This request was made before: its answer is turn {turn_id}.", DUPLICATE_REQUEST)
