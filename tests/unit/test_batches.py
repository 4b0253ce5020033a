"""A loop in batches keeps each partition's order, loses no record, and knows how far it has come."""

import asyncio
from collections.abc import Mapping

import pytest

from domain.errors import LogUnavailable, Rejected
from streams import batches
from streams.batches import Batches
from streams.patience import MAX_ATTEMPTS
from streams.records import Control, encode
from tests.support.runner_fakes import FakeGroup

TOPIC = "chat.questions.v1"


class Group(FakeGroup):
    """A group that also takes dead letters, and can rebalance while a batch is handled."""

    def __init__(self) -> None:
        super().__init__()
        self.letters: dict[int, str] = {}

    def noack(self) -> "Group":
        return self

    async def settled(self) -> None:
        pass

    async def dead_letter(
        self, *, topic: str, partition: int, offset: int, error: Exception, key: bytes | None, value: bytes | None
    ) -> None:
        self.letters[offset] = str(error)


class Handled:
    """A handler that keeps the records it was given, and fails as it is told."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, list[str]]] = []
        self.fail: list[Exception] = []
        self.refuse: set[str] = set()
        self.poison: set[str] = set()
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, partition: int, records: Mapping[int, Control]) -> dict[int, Rejected]:
        names = [record.turn_id for record in records.values()]
        self.started.set()
        await self.go_on.wait()
        if self.fail:
            raise self.fail.pop()
        if self.poison & set(names):
            raise KeyError("a mistake of ours")
        self.batches.append((partition, names))
        return {offset: Rejected("too late") for offset, record in records.items() if record.turn_id in self.refuse}


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    real = asyncio.sleep
    monkeypatch.setattr("streams.batches.asyncio.sleep", lambda _: real(0))  # back-off takes no time here
    monkeypatch.setattr(batches, "GATHER_SECONDS", 0.02)
    return Group()


def control(name: str) -> bytes:
    return encode(Control(action="stop", conversation_id="c", tenant="t", user="u", at=0, turn_id=name))


async def run(group: Group, handled: Handled) -> Batches[Control]:
    loop = Batches(group, TOPIC, Control, handled)
    group.close()
    await loop.run(group)
    return loop


async def test_what_comes_together_is_one_batch_a_partition_in_order(group: Group) -> None:
    handled = Handled()
    for name, partition in (("a", 0), ("b", 1), ("c", 0), ("d", 1)):
        group.deliver(control(name), partition=partition)

    loop = await run(group, handled)

    assert sorted(handled.batches) == [(0, ["a", "c"]), (1, ["b", "d"])]
    assert sorted(group.acked) == [0, 1, 2, 3]
    assert (loop.position(0), loop.position(1), loop.position(2)) == (3, 4, 0)


async def test_a_batch_is_bounded(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "AT_ONCE", 2)
    handled = Handled()
    for name in "abcde":
        group.deliver(control(name))

    await run(group, handled)

    assert [names for _, names in handled.batches] == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_passing_failure_is_tried_until_it_works(group: Group) -> None:
    handled = Handled()
    handled.fail = [LogUnavailable("busy") for _ in range(2 * MAX_ATTEMPTS)]
    group.deliver(control("a"))

    await run(group, handled)

    assert handled.batches == [(0, ["a"])]
    assert (group.acked, group.letters) == ([0], {})


async def test_what_cannot_be_decoded_or_is_refused_is_set_aside_and_the_rest_handled(group: Group) -> None:
    handled = Handled()
    handled.refuse = {"late"}
    for value in (control("a"), b'{"action": "dance"}', control("late"), control("b")):
        group.deliver(value)

    await run(group, handled)

    assert handled.batches == [(0, ["a", "late", "b"])]
    assert "Invalid enum value 'dance'" in group.letters[1]
    assert group.letters[2] == "too late"
    assert group.acked == [0, 1, 2, 3]


async def test_who_is_not_the_owner_of_a_topic_leaves_what_cannot_be_decoded_to_it(group: Group) -> None:
    handled = Handled()
    handled.refuse = {"late"}
    for value in (control("a"), b'{"action": "dance"}', control("late")):
        group.deliver(value)
    loop = Batches(group, TOPIC, Control, handled, is_owner=False)
    group.close()

    await loop.run(group)

    assert handled.batches == [(0, ["a", "late"])]
    assert group.letters == {2: "too late"}
    assert group.acked == [0, 1, 2]


async def test_the_record_that_makes_a_batch_fail_is_found_and_set_aside_alone(group: Group) -> None:
    handled = Handled()
    handled.poison = {"bad"}
    for name in ("a", "bad", "b"):
        group.deliver(control(name))

    await run(group, handled)

    assert handled.batches == [(0, ["a"]), (0, ["b"])]
    assert group.letters == {1: "'a mistake of ours'"}
    assert group.acked == [0, 1, 2]


async def test_what_is_in_work_during_a_rebalance_counts_when_it_is_delivered_again(group: Group) -> None:
    handled = Handled()
    handled.go_on.clear()
    loop = Batches(group, TOPIC, Control, handled)
    running = asyncio.create_task(loop.run(group))
    group.deliver(control("a"))
    await handled.started.wait()

    group.rebalance(kept={0})
    assert loop.position(0) == 0
    handled.go_on.set()
    group.close()
    await running

    assert handled.batches == [(0, ["a"]), (0, ["a"])]
    assert group.acked == [0]
    assert loop.position(0) == 1


async def test_an_event_of_an_older_assignment_is_not_handled_again(group: Group) -> None:
    handled = Handled()
    group.deliver(control("a"))
    group.rebalance(kept=set())

    loop = await run(group, handled)

    assert handled.batches == []
    assert group.acked == []
    assert loop.position(0) == 0
