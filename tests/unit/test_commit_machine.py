"""The commit rule, under any order of deliveries, acknowledgements, commits and rebalances, against a model of it."""

import asyncio
from typing import Any

from faust.types import TP
from faust.types.tuples import ConsumerMessage
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from tests.support.consumers import TOPIC, FakeKafka, assign, consumer_of, deliver, revoke

PARTITIONS = (0, 1)
partitions = st.sampled_from(PARTITIONS)


class CommitRule(RuleBasedStateMachine):
    """Our consumer, and beside it what has happened to each offset of two partitions.

    ``finished`` are offsets whose work is done for good (its end is in the log), whoever acknowledged it and when.
    """

    messages: Bundle[ConsumerMessage] = Bundle("messages")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.kafka = FakeKafka()
        self.consumer: Any = self.run(self.begin())
        self.next = dict.fromkeys(PARTITIONS, 0)  # the next offset to be delivered in this assignment
        self.log = dict.fromkeys(PARTITIONS, 0)  # the end of the log
        self.missing: set[tuple[int, int]] = set()  # what the log does not have: deleted, or a transaction's mark
        self.delivered: set[tuple[int, int]] = set()  # in this assignment
        self.acknowledged: set[tuple[int, int]] = set()  # of those
        self.finished: set[tuple[int, int]] = set()

    async def begin(self) -> Any:
        consumer = consumer_of("ours", self.kafka)
        await assign(consumer, self.kafka, PARTITIONS)
        return consumer

    def run(self, coro: Any) -> Any:
        return self.loop.run_until_complete(coro)

    def teardown(self) -> None:
        self.loop.close()

    @rule(partition=partitions)
    def append_what_is_never_delivered(self, partition: int) -> None:
        self.missing.add((partition, self.log[partition]))
        self.log[partition] += 1

    @precondition(lambda self: self.kafka.assigned)
    @rule(target=messages, partition=partitions)
    def deliver(self, partition: int) -> ConsumerMessage:
        """Deliver the next message, which is written now if the log has none left."""
        if partition not in self.owned:
            partition = min(self.owned)
        before = offset = self.next[partition]
        while (partition, offset) in self.missing:
            offset += 1
        if offset > before:
            self.run(self.consumer._add_gap(TP(TOPIC, partition), before, offset))
        self.next[partition] = offset + 1
        self.log[partition] = max(self.log[partition], offset + 1)
        self.delivered.add((partition, offset))
        return deliver(self.consumer, offset, partition)

    @rule(message=consumes(messages))
    def finish(self, message: ConsumerMessage) -> None:
        """The work of a delivery is done, be it of this assignment or of an older one."""
        at = (message.partition, message.offset)
        current = message.generation_id == self.consumer.app.consumer_generation_id
        self.finished.add(at)
        assert self.consumer.ack(message) == current
        if current:
            self.acknowledged.add(at)
        assert not self.consumer.ack(message)

    @rule(message=consumes(messages))
    def let_go(self, message: ConsumerMessage) -> None:
        """The work of a delivery is cancelled, and nothing holds its message any more."""

    @rule()
    def commit(self) -> None:
        self.run(self.consumer.commit())
        self.everything_finished_is_committed()

    @rule()
    def fail_to_commit(self) -> None:
        self.kafka.refuses_commits = True
        self.run(self.consumer.commit())
        self.kafka.refuses_commits = False

    @rule(kept=st.sampled_from([{0, 1}, {0, 1}, {0}, {1}, set()]))
    def rebalance(self, kept: set[int]) -> None:
        """Finished work is committed first, then all partitions go; some come back, from their committed offsets."""
        self.run(revoke(self.consumer, self.kafka))
        self.everything_finished_is_committed()
        self.run(assign(self.consumer, self.kafka, kept))
        self.delivered.clear()
        self.acknowledged.clear()
        for partition in kept:
            self.next[partition] = self.kafka.position[TP(TOPIC, partition)]
            assert self.next[partition] == self.committed(partition)  # what is not committed comes again
            assert self.consumer.delivers_from[TP(TOPIC, partition)] == self.committed(partition)

    @invariant()
    def nothing_is_committed_past_what_is_not_finished(self) -> None:
        for partition in PARTITIONS:
            passed = {(partition, offset) for offset in range(self.committed(partition))}
            assert passed <= self.finished | self.missing

    @invariant()
    def commits_never_go_back(self) -> None:
        seen: dict[TP, int] = {}
        for commit in self.kafka.commits:
            for tp, offset in commit.items():
                assert offset > seen.get(tp, 0)
                seen[tp] = offset

    def everything_finished_is_committed(self) -> None:
        for partition in self.owned:
            open_ones = [offset for where, offset in self.delivered - self.acknowledged if where == partition]
            acknowledged = [offset for where, offset in self.acknowledged if where == partition]
            below = [offset for offset in acknowledged if offset < min(open_ones, default=self.log[partition])]
            assert self.committed(partition) > max(below, default=-1)

    # -- the model's own questions

    @property
    def owned(self) -> set[int]:
        return {tp.partition for tp in self.kafka.assigned}

    def committed(self, partition: int) -> int:
        return self.kafka.committed.get(TP(TOPIC, partition), 0)


TestCommitRule = CommitRule.TestCase
TestCommitRule.settings = settings(max_examples=100, stateful_step_count=50)
