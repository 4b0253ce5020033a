"""The turn runner under any order of questions, failures, stops, rebalances and new owners, against a model."""

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from domain.errors import LogUnavailable, Rejected
from streams.patience import MAX_ATTEMPTS
from streams.records import Question, decode, encode
from streams.turn_runner import Event, Job, Limits, TurnRunner
from tests.support.consumers import turns_of_the_loop
from tests.support.runner_fakes import FakeEvent, FakeGroup, FakeMessage, question

T = TypeVar("T")

PARTITIONS = (0, 1)
LIMITS = Limits(running=2, held=4, held_bytes=1 << 20)
POLL = 3  # messages that one fetch brings

conversations = st.sampled_from(["0a", "0b", "0c", "1a", "1b"])  # a conversation's first letter is its partition
tenants = {"0a": "many", "0b": "many", "0c": "few", "1a": "many", "1b": "few"}


class Kafka(FakeGroup):
    """A log, and a group in which the present worker has some partitions: it fetches unless it is held back."""

    def __init__(self) -> None:
        super().__init__()
        self.owned: set[int] = set(PARTITIONS)
        self.fetched: dict[int, int] = dict.fromkeys(PARTITIONS, 0)

    def append(self, asked: Question) -> None:
        """Write a question."""
        self.log.append((int(asked.conversation_id[0]), len(self.log), b"", encode(asked)))

    def fetch(self) -> None:
        """Deliver what one poll brings."""
        for _ in range(POLL):
            for partition in self.owned:
                waiting = [at for where, at, _, _ in self.log if where == partition and at >= self.fetched[partition]]
                if waiting:
                    self._put(waiting[0])
                    self.fetched[partition] = waiting[0] + 1

    def committed(self, partition: int) -> int:
        """Return the lowest offset of a partition that is not acknowledged."""
        return next((at for where, at, _, _ in self.log if where == partition and at not in self.acked), len(self.log))

    def assign(self, kept: set[int]) -> None:
        """Begin a new generation, which reads from the committed offsets; what was acknowledged beyond is forgotten."""
        self.generation += 1
        committed = {partition: self.committed(partition) for partition in PARTITIONS}
        self.acked = [at for at in self.acked if at < committed[self.log[at][0]]]
        self.rebalancing = self.held_back = False
        self.owned = set(kept)
        self.fetched = committed


class Turns(RuleBasedStateMachine):
    """A succession of workers over one log, and what the log says of each turn: ended, and closed.

    The handler here does what `agents.answer.answer_one` does, and its answers end when the test says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.patches = ExitStack()
        self.patches.enter_context(patch("streams.turn_runner.pause", lambda _: 0))
        self.patches.enter_context(patch("streams.turn_runner.LOOK_SECONDS", 0))
        self.patches.enter_context(patch("streams.turn_runner.log"))  # to draw tracebacks takes most of the time
        self.kafka = Kafka()
        self.ended: dict[str, str] = {}
        self.closed: list[str] = []
        self.answering: dict[str, Job] = {}
        self.gates: dict[str, asyncio.Future[None]] = {}
        self.fails: dict[str, list[Exception]] = {}
        self.begin()

    def begin(self) -> None:
        """Start a worker."""
        self.runner = TurnRunner(self.kafka, LIMITS)
        self.kafka.queue = asyncio.Queue()
        self.reading = self.loop.create_task(self.runner.run(self.kafka, self.answer, self.give_up))
        self.settle()

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coro)

    def settle(self) -> None:
        self.run(turns_of_the_loop(60))

    def teardown(self) -> None:
        """Let everything come to its end, and see that it does."""
        self.fails.clear()
        self.kafka.assign(set(PARTITIONS))
        for _ in range(3 * len(self.kafka.log) + 3):
            self.kafka.fetch()
            self.settle()
            for gate in self.gates.values():
                if not gate.done():
                    gate.set_result(None)
            self.settle()
            self.what_was_acknowledged_is_closed()
            if len(self.kafka.acked) == len(self.kafka.log):
                break
        assert set(self.closed) == set(self.ended) == set(self.asked())
        assert sorted(self.kafka.acked) == list(range(len(self.kafka.log)))
        assert (len(self.runner), self.runner.running, self.runner.held, self.kafka.held_back) == (0, 0, 0, False)
        assert not self.runner._jobs
        assert not self.runner._bytes
        self.run(self.leave())
        self.patches.close()
        self.loop.close()

    async def leave(self) -> None:
        await self.runner.hand_over()
        self.reading.cancel()
        await asyncio.gather(self.reading, return_exceptions=True)

    # -- the worker's side

    async def answer(self, job: Job) -> None:
        turn_id = job.question.turn_id
        if turn_id not in self.ended:
            self.runner.answers(job)
            await self.write(job)
        job.ended.set()
        await job.first.wait()
        self.close(job.question)

    async def write(self, job: Job) -> None:
        turn_id = job.question.turn_id
        if job.refusal is not None:
            self.end(turn_id, "refused")
        elif job.stopping.is_set():
            self.end(turn_id, "stopped")
        else:
            assert turn_id not in self.answering
            self.answering[turn_id] = job
            try:
                if self.fails.get(turn_id):
                    raise self.fails[turn_id].pop()
                gate = self.gates[turn_id] = self.loop.create_future()
                stopping = self.loop.create_task(job.stopping.wait())
                try:
                    await asyncio.wait((gate, stopping), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    stopping.cancel()
                if gate.done() and gate.exception():
                    await gate
                self.end(turn_id, "stopped" if job.stopping.is_set() else "completed")
            finally:
                del self.answering[turn_id]

    async def give_up(self, event: Event, asked: Question | None, error: Exception) -> None:
        assert asked is not None
        assert not isinstance(error, LogUnavailable)
        if asked.turn_id not in self.ended:
            self.end(asked.turn_id, "failed")
        self.close(asked)

    def end(self, turn_id: str, outcome: str) -> None:
        assert turn_id not in self.ended
        self.ended[turn_id] = outcome

    def close(self, asked: Question) -> None:
        if asked.turn_id in self.closed:
            return
        earlier = [turn_id for turn_id in self.asked(asked.conversation_id) if turn_id < asked.turn_id]
        assert set(earlier) <= set(self.closed)
        self.closed.append(asked.turn_id)

    # -- what happens

    @rule(conversation=conversations, on_busy=st.sampled_from(["queue", "queue", "reject", "replace"]))
    def ask(self, conversation: str, on_busy: str) -> None:
        turn_id = f"{len(self.kafka.log):04}"
        self.kafka.append(question(turn_id, conversation, tenant=tenants[conversation], on_busy=on_busy))
        self.fetch()

    @rule()
    def fetch(self) -> None:
        if not (self.kafka.held_back or self.kafka.rebalancing):
            self.kafka.fetch()
            self.settle()

    @precondition(lambda self: self.answering)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        turn_id = data.draw(st.sampled_from(sorted(self.answering)))
        self.gates[turn_id].set_result(None)
        self.settle()

    @precondition(lambda self: self.answering)
    @rule(data=st.data(), error=st.sampled_from([LogUnavailable("busy"), Rejected("never"), OSError("disk")]))
    def fail(self, data: st.DataObject, error: Exception) -> None:
        """Let a running answer fail: for now, or for ever."""
        turn_id = data.draw(st.sampled_from(sorted(self.answering)))
        self.gates[turn_id].set_exception(error)
        self.settle()
        assert self.ended.get(turn_id) == ("failed" if isinstance(error, Rejected) else None)

    @precondition(lambda self: self.answering)
    @rule(data=st.data())
    def fail_again_and_again(self, data: st.DataObject) -> None:
        """Let a running answer fail for a reason that nobody foresaw."""
        turn_id = data.draw(st.sampled_from(sorted(self.answering)))
        self.fails[turn_id] = [ZeroDivisionError("oh") for _ in range(MAX_ATTEMPTS)]
        self.gates[turn_id].set_exception(ZeroDivisionError("oh"))
        self.settle()
        assert self.kafka.rebalancing or self.ended[turn_id] == "failed"

    @precondition(lambda self: self.kafka.log)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        turn_id = data.draw(st.sampled_from(self.asked()))
        here = [job.question.turn_id for job in self.runner._jobs.values() if not job.done]
        was_here = self.run(asyncio.wait_for(self.runner.stop(turn_id), 5))
        assert was_here == (turn_id in here)
        if not was_here and turn_id not in self.ended:  # it waits in Kafka, and is ended by `agents.control`
            self.end(turn_id, "stopped")
        assert turn_id in self.ended  # whatever runs before it, and whoever gets it next
        self.settle()

    @rule()
    def begin_a_rebalance(self) -> None:
        self.kafka.rebalancing = True

    @rule(kept=st.sets(st.sampled_from(PARTITIONS)))
    def end_a_rebalance(self, kept: set[int]) -> None:
        self.kafka.assign(kept)
        self.run(self.runner.keep(kept))
        self.settle()
        assert {job.partition for job in self.runner._jobs.values()} <= kept

    @rule(kept=st.sets(st.sampled_from(PARTITIONS), min_size=1))
    def hand_over(self, kept: set[int]) -> None:
        """End this worker, in the middle of everything; another one goes on where the log stands."""
        self.run(self.leave())
        assert not self.answering
        self.kafka.assign(kept)
        self.begin()

    @rule(turn=st.integers(0, 50))
    def deliver_what_an_older_assignment_fetched(self, turn: int) -> None:
        if turn < len(self.kafka.log):
            partition, offset, key, value = self.kafka.log[turn]
            message = FakeMessage(partition, offset, self.kafka.generation - 1)
            self.kafka.queue.put_nowait(FakeEvent(key, value, message))
            self.settle()

    # -- what holds always

    @invariant()
    def what_was_acknowledged_is_closed(self) -> None:
        assert len(set(self.kafka.acked)) == len(self.kafka.acked)
        for offset in self.kafka.acked:
            assert decode(self.kafka.log[offset][3], Question).turn_id in self.closed

    @invariant()
    def no_more_run_than_may(self) -> None:
        assert len(self.answering) <= self.runner.running <= LIMITS.running

    @invariant()
    def one_at_a_time_is_answered_in_a_conversation_and_it_is_the_first(self) -> None:
        for job in self.answering.values():
            assert self.runner.in_work(job.question.conversation_id)[0] == job.question

    @invariant()
    def no_place_is_empty_while_somebody_waits_for_one(self) -> None:
        heads = [lane[0] for lane in self.runner._lanes.values()]
        assert sum(job.has_place for job in heads) == min(LIMITS.running, len(heads)) or any(
            not job.has_place and job.task is not None for job in heads
        )

    @invariant()
    def kafka_is_held_back_at_the_bound(self) -> None:
        assert self.runner.held < LIMITS.held or self.kafka.held_back or self.kafka.rebalancing
        assert self.runner._bytes == sum(len(job.event.value) for job in self.runner._jobs.values() if not job.done)

    @invariant()
    def only_the_first_of_a_conversation_may_close(self) -> None:
        for lane in self.runner._lanes.values():
            assert lane[0].first.is_set()
            assert not any(job.first.is_set() for job in lane[1:])

    def asked(self, conversation_id: str = "") -> list[str]:
        """Return the turns of the log, in order."""
        questions = [decode(value, Question) for _, _, _, value in self.kafka.log]
        return [each.turn_id for each in questions if conversation_id in {"", each.conversation_id}]


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=100, stateful_step_count=40)
