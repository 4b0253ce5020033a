"""The safe consumer: an offset is committed only when all below it are acknowledged in this generation."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

from faust.types import TP
from faust.types.tuples import ConsumerMessage
from hypothesis import given
from hypothesis import strategies as st
from intervaltree import IntervalTree

from streams.delivery import ConsumerThread, SafeConsumer

PARTITION = TP("chat.questions.v1", 0)


def consumer(generation: int = 1) -> Any:
    """Return a consumer's bookkeeping without the threads and sockets around it."""
    made: Any = SafeConsumer.__new__(SafeConsumer)
    made.app = SimpleNamespace(
        consumer_generation_id=generation, topics=SimpleNamespace(acks_enabled_for=lambda _: True), tables=None
    )
    made._acked = defaultdict(list)
    made._acked_index = defaultdict(set)
    made._gap = defaultdict(IntervalTree)
    made._committed_offset = defaultdict(lambda: None)
    made._read_offset = defaultdict(lambda: None)
    made._unacked_messages = WeakSet()
    made._waiting_for_ack = None
    made._n_acked = 0
    return made


def deliver(made: Any, offset: int) -> ConsumerMessage:
    """Return a message that a stream has taken and not finished."""
    message = ConsumerMessage(
        PARTITION.topic,
        0,
        offset,
        0.0,
        0,
        [],
        b"c",
        b"{}",
        None,
        tp=PARTITION,
        generation_id=made.app.consumer_generation_id,
    )
    made._unacked_messages.add(message)
    return message


@given(st.permutations(range(8)), st.integers(0, 8))
def test_nothing_is_committed_past_an_unfinished_message(order: list[int], finished: int) -> None:
    made = consumer()
    messages = [deliver(made, offset) for offset in range(8)]
    committed = 0

    for offset in order[:finished]:
        made.ack(messages[offset])
        committed = made._new_offset(PARTITION) or committed
        made._committed_offset[PARTITION] = committed

    unfinished = set(range(8)) - set(order[:finished])
    assert committed == min(unfinished, default=8)


def test_an_acknowledgement_of_an_older_generation_does_not_count() -> None:
    made = consumer()
    stale = deliver(made, 0)
    made._unacked_messages.clear()
    made.app.consumer_generation_id = 2

    assert made.ack(stale) is False
    assert made._new_offset(PARTITION) is None

    again = deliver(made, 0)
    made.ack(again)
    assert made._new_offset(PARTITION) == 1


class FakeCoordinator:
    """Answers what is committed, and counts how often it is asked."""

    def __init__(self, committed: dict[TP, int]) -> None:
        self.committed = committed
        self.asked = 0

    async def fetch_committed_offsets(self, partitions: list[TP]) -> dict[TP, Any]:
        self.asked += 1
        return {tp: SimpleNamespace(offset=self.committed[tp]) for tp in partitions if tp in self.committed}


async def test_all_committed_offsets_are_asked_for_at_once() -> None:
    one, two, new = (TP("chat.questions.v1", number) for number in range(3))
    coordinator, sought = FakeCoordinator({one: 7, two: 0}), dict[TP, int]()
    made: Any = ConsumerThread.__new__(ConsumerThread)
    made._ensure_consumer = lambda: SimpleNamespace(
        assignment=lambda: {one, two, new}, _coordinator=coordinator, seek=sought.__setitem__
    )

    assert await made._seek_to_committed() == {one: 7, two: 0, new: None}
    assert sought == {one: 7}
    assert coordinator.asked == 1
