"""Parts become rows: when a window is final, what is shown before, and that rows outlive crashes and zombies."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from domain.errors import BadRecord, LogUnavailable, NotOwner, Retriable, TooLate
from domain.windows import LARGEST_MS
from tables.measures import Dimensions, Measures, Part, PartRow
from tables.metric_rows import AnyRow
from tables.parts import PATIENCE_SECONDS, SLACK_MS, Parts
from tests.support.window_rows import Died, WindowRows

T = TypeVar("T")

SIZE = 10_000
BEGAN = 1_800_000_000_000
WHERE = Dimensions("acme", "m", "p", "completed")
KEEP = 3_600_000


class Merging:
    """One worker that merges, the clock that it goes by, and the topic that it writes to."""

    def __init__(self, partitions: int, rows: WindowRows | None = None) -> None:
        self.rows = rows or WindowRows()
        self.clock = 0.0
        self.now = BEGAN
        self.parts = Parts(self.rows, partitions, clock=lambda: self.clock)
        self.topic: list[tuple[str, AnyRow]] = []

    async def take(self, *parts: Part) -> list[type[Exception]]:
        """Take parts; return what is said of those that are refused."""
        return [type(error) for error in (await self.parts.take(0, dict(enumerate(parts)))).values()]

    async def tick(self) -> list[AnyRow]:
        """Return the rows of turns that this tick publishes."""
        before = len(self.topic)
        await self.parts.publish(0, SIZE, self.now, self.send)
        await self.parts.purge(0, SIZE, self.now, keep=KEEP)
        return [row for name, row in self.topic[before:] if name == "turns"]

    async def send(self, metric: str, size: int, row: AnyRow) -> None:
        """Write a row to the topic."""
        assert size == SIZE
        self.topic.append((metric, row))


def part(
    partition: int, turns: int = 0, *, revision: int = 1, epoch: int = 1, through: int = 0, start: int = BEGAN
) -> Part:
    rows = [PartRow(WHERE, Measures(turns=turns))] if turns else []
    return Part(
        partition=partition, epoch=epoch, revision=revision, size=SIZE, start=start, closed_through=through, rows=rows
    )


def closed(partition: int, through: int = BEGAN + SIZE) -> Part:
    return part(partition, through=through)


def said(rows: list[AnyRow]) -> list[tuple[int, bool]]:
    return [(row.measures.turns, row.final) for row in rows]


async def test_a_window_is_final_when_every_partition_has_closed_it() -> None:
    merging = Merging(2)

    await merging.take(part(0, 3), closed(0), part(1, 4))
    assert await merging.tick() == []
    await merging.take(closed(1))

    assert said(await merging.tick()) == [(7, True)]
    assert await merging.tick() == []
    assert [name for name, _ in merging.topic] == ["turns", "tokens", "quality"]


async def test_a_window_is_shown_without_a_partition_that_is_missing_for_long_and_corrected_when_it_is_back() -> None:
    merging = Merging(2)
    await merging.take(part(0, 3), closed(0))
    assert await merging.tick() == []

    merging.clock += PATIENCE_SECONDS
    shown = await merging.tick()
    assert said(shown) == [(3, False)]
    assert await merging.tick() == []
    await merging.take(part(1, 4))
    shown += await merging.tick()
    await merging.take(closed(1))
    shown += await merging.tick()

    assert said(shown) == [(3, False), (7, False), (7, True)]
    assert sorted({row.revision for row in shown}) == [row.revision for row in shown]


async def test_a_late_turn_is_a_correction_of_a_final_window() -> None:
    merging = Merging(1)
    await merging.take(part(0, 3), closed(0))
    first = await merging.tick()

    await merging.take(part(0, 4, revision=2))
    second = await merging.tick()

    assert said(first + second) == [(3, True), (4, True)]
    assert first[0].revision < second[0].revision
    assert first[0].key == second[0].key


@pytest.mark.parametrize("stale", [part(0, 9, revision=1, epoch=2), part(0, 9, revision=7, epoch=1)])
async def test_what_a_replaced_worker_says_of_a_window_counts_for_nothing(stale: Part) -> None:
    merging = Merging(1)
    await merging.take(part(0, 3, revision=2, epoch=2), closed(0))
    await merging.tick()

    await merging.take(stale)

    assert await merging.tick() == []


async def test_what_a_replaced_worker_publishes_late_is_never_the_latest() -> None:
    merging = Merging(1)
    await merging.take(part(0, 3), closed(0))
    asleep = Merging(1, WindowRows(disk=dict(merging.rows.disk), own_epoch=merging.rows.own_epoch))
    for _ in range(3):  # and it was shown often before
        await asleep.take(part(0, 3))
        await asleep.tick()

    merging.rows.take_over(merging.rows.log)
    await merging.take(part(0, 4, revision=2))
    [latest] = await merging.tick()
    await asleep.take(part(0, 3))
    [late] = await asleep.tick()

    assert (latest.measures.turns, late.measures.turns) == (4, 3)
    assert late.revision < latest.revision


async def test_what_was_not_acknowledged_is_not_published_as_something_else_under_its_revision() -> None:
    merging = Merging(1)
    await merging.take(part(0, 3), closed(0))
    send = merging.send

    async def lose(metric: str, size: int, row: AnyRow) -> None:
        await send(metric, size, row)
        raise LogUnavailable("not now")

    with pytest.raises(LogUnavailable):
        await merging.parts.publish(0, SIZE, BEGAN, lose)
    await merging.take(part(0, 4, revision=2))
    await merging.tick()

    rows = [row for metric, row in merging.topic if metric == "turns"]
    assert said(rows) == [(3, True), (4, True)]
    assert rows[0].revision < rows[1].revision


async def test_a_worker_that_was_replaced_while_it_published_keeps_the_rest_to_itself() -> None:
    merging = Merging(1)
    rows = [PartRow(Dimensions(f"{number}", "m", "p", "completed"), Measures(turns=1)) for number in range(50)]
    await merging.take(Part(partition=0, epoch=1, revision=1, size=SIZE, start=BEGAN, closed_through=0, rows=rows))
    await merging.take(closed(0))
    sent = []

    async def sleep(metric: str, size: int, row: AnyRow) -> None:
        sent.append(row)
        merging.rows.own_epoch = 2

    with pytest.raises(NotOwner):
        await merging.parts.publish(0, SIZE, BEGAN, sleep)

    assert 0 < len(sent) < len(rows)


async def test_a_part_in_pieces_is_one_part() -> None:
    merging = Merging(1)
    elsewhere = PartRow(Dimensions("other", "m", "p", "failed"), Measures(turns=5))

    await merging.take(
        part(0, 3), Part(partition=0, epoch=1, revision=1, size=SIZE, start=BEGAN, closed_through=0, rows=[elsewhere])
    )
    await merging.take(closed(0))

    assert sorted(said(await merging.tick())) == [(3, True), (5, True)]


async def test_a_part_of_a_window_that_is_forgotten_is_refused_and_not_taken_for_the_whole() -> None:
    merging = Merging(2)
    await merging.take(part(0, 3), closed(0), closed(1))
    await merging.tick()

    merging.now += KEEP + SLACK_MS
    await merging.tick()

    assert await merging.take(part(1, 4)) == [TooLate]
    assert await merging.take(part(1, 4, start=BEGAN + SIZE)) == []
    assert not [key for key in merging.rows.disk if key[0] in "rw" and str(BEGAN) in key]


async def test_yesterdays_windows_are_kept_for_as_long_as_todays() -> None:
    merging = Merging(2)
    yesterday = BEGAN - 86_400_000
    await merging.take(closed(0), closed(1), part(0, 3, start=yesterday))
    assert said(await merging.tick()) == [(3, True)]

    merging.now += KEEP
    await merging.tick()
    await merging.take(part(1, 4, start=yesterday))

    assert said(await merging.tick()) == [(7, True)]


async def test_a_window_that_is_not_final_is_not_forgotten() -> None:
    merging = Merging(2)
    await merging.take(part(0, 3), closed(0))
    merging.clock += PATIENCE_SECONDS
    await merging.tick()
    merging.clock += PATIENCE_SECONDS
    await merging.tick()

    merging.now += 10 * KEEP
    await merging.tick()
    await merging.take(part(1, 4), closed(1))

    assert said(await merging.tick()) == [(7, True)]


async def test_a_tick_forgets_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tables.parts.PURGED_AT_ONCE", 20)
    merging = Merging(1)
    many = range(25)
    await merging.take(*(part(0, 1, start=BEGAN + SIZE * number) for number in many))
    await merging.take(closed(0, BEGAN + SIZE * len(many)))
    await merging.tick()

    merging.now += KEEP + SLACK_MS
    left = []
    for _ in range(2):
        await merging.tick()
        left.append(sum(key[0] in "rw" for key in merging.rows.disk))

    assert left == [10, 0]


@pytest.mark.parametrize("bad", [closed(2), closed(-1), Part(partition=0, epoch=1, size=7, closed_through=1)])
async def test_a_part_of_what_does_not_exist_is_refused(bad: Part) -> None:
    assert await Merging(2).take(bad) == [BadRecord]


async def test_two_rows_of_free_text_are_never_one() -> None:
    merging = Merging(1)
    names = ["a", "a0000", 'a","m', "\x00", "."]
    rows = [PartRow(Dimensions(name, "m", "p", "completed"), Measures(turns=1)) for name in names]
    await merging.take(
        Part(partition=0, epoch=1, revision=1, size=SIZE, start=BEGAN, closed_through=0, rows=rows), closed(0)
    )

    assert {row.dimensions.tenant for row in await merging.tick()} == set(names)


class PartsMachine(RuleBasedStateMachine):
    """Three partitions, two windows; parts that are old, repeated, and of replaced workers; crashes in any place."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.rows = WindowRows()
        self.truth: dict[tuple[int, int], Part] = {}  # by partition and start
        self.through = [0, 0, 0]
        self.published: list[AnyRow] = []
        self.sends: int | None = None
        self.clock = 0.0
        self.parts = self.begin()

    def begin(self) -> Parts:
        """Begin a life of the worker, or an assignment."""
        return Parts(self.rows, 3, clock=lambda: self.clock)

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coro)

    async def send(self, metric: str, _size: int, row: AnyRow) -> None:
        """Publish, or lose the acknowledgement."""
        if metric == "turns":
            same = [each for each in self.published if (each.key, each.revision) == (row.key, row.revision)]
            assert all(each == row for each in same)
            self.published.append(row)
        if self.sends is not None:
            self.sends -= 1
            if self.sends < 0:
                raise LogUnavailable("not now")

    @rule(
        partition=st.integers(0, 2),
        window=st.integers(0, 1),
        epoch=st.integers(1, 3),
        revision=st.integers(1, 3),
        closes=st.integers(0, 3),
    )
    def a_part_comes(self, partition: int, window: int, epoch: int, revision: int, closes: int) -> None:
        start = window * SIZE
        # What is of one epoch and revision is the same each time.
        turns = hash((partition, window, epoch, revision)) % 100 + 1
        found = part(partition, turns, epoch=epoch, revision=revision, start=start, through=closes * SIZE)
        try:
            self.run(self.parts.take(0, {7: found}))
        except Died:
            self.start_again()
            self.run(self.parts.take(0, {7: found}))  # it was not acknowledged
        except NotOwner:  # which "move" says, and then there is a new epoch
            self.parts = self.begin()
            self.run(self.parts.take(0, {7: found}))
        except Retriable:
            self.rows.room = None
            self.run(self.parts.take(0, {7: found}))
        known = self.truth.get((partition, start))
        if known is None or (known.epoch, known.revision) <= (epoch, revision):
            self.truth[partition, start] = found
        self.through[partition] = max(self.through[partition], found.closed_through)

    @rule(seconds=st.sampled_from([1, 10]))
    def time_passes(self, seconds: int) -> None:
        self.clock += seconds

    @rule()
    def tick(self) -> None:
        before = len(self.published)
        try:
            self.run(self.parts.publish(0, SIZE, BEGAN, self.send))
        except Died:
            self.start_again()
        except NotOwner:
            self.parts = self.begin()
        except Retriable:
            pass
        self.rows.room = self.sends = None
        for row in self.published[before:]:
            end = int(row.window_end.timestamp() * 1000)
            assert row.final == (end <= min(self.through))
            assert row.measures.turns == self.total(end - SIZE)
            assert row.revision >= max(
                (each.revision for each in self.published[:before] if each.key == row.key), default=0
            )

    def total(self, start: int) -> int:
        return sum(found.rows[0].measures.turns for (_, begun), found in self.truth.items() if begun == start)

    @rule(room=st.integers(0, 4), loses=st.booleans(), then=st.sampled_from(["fail", "die", "move"]))
    def the_changelog_will_fail(self, room: int, loses: bool, then: str) -> None:
        self.rows.room, self.rows.loses, self.rows.then = room, loses, then

    @rule(sends=st.integers(0, 4))
    def kafka_will_fail(self, sends: int) -> None:
        self.sends = sends

    @rule()
    def start_again(self) -> None:
        """The process ends; its successor has what the changelog has."""
        self.rows.take_over(self.rows.log)
        self.parts = self.begin()

    def teardown(self) -> None:
        self.rows.room = self.sends = None
        for partition in range(3):
            self.run(self.parts.take(0, {0: closed(partition, 2 * SIZE)}))
            self.through[partition] = max(self.through[partition], 2 * SIZE)
        self.tick()
        for start in {begun for _, begun in self.truth}:
            rows = [row for row in self.published if int(row.window_start.timestamp() * 1000) == start]
            last = max(rows, key=lambda row: row.revision)
            assert (last.measures.turns, last.final) == (self.total(start), True)
        self.loop.close()


PartsMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=30)
TestParts = PartsMachine.TestCase


def test_nothing_is_forgotten_before_a_partition_has_had_its_chance_to_correct_it() -> None:
    # tables.windows forgets whole windows of the largest size; what it still takes may be so much older than KEEP.
    assert SLACK_MS > LARGEST_MS
