"""Windows of turns: what they hold, when they close, what corrects them, and what comes too late."""

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import BadRecord, LogUnavailable, NotOwner, Rejected, TooLate
from domain.ids import new_turn_id
from domain.prices import Prices
from domain.windows import LARGEST_MS, SIZES_MS, CaughtUp, closable, purgeable, start_of
from streams.records import Feedback, Turn
from tables.measures import Part
from tables.slices import ROWS_AT_ONCE
from tables.windows import Windows
from tests.support.window_rows import WindowRows

SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
BEGAN = 1_800_000_000_000  # a whole hour
SHORT = SIZES_MS[0]


@dataclass
class Measuring:
    """A partition's windows, its turns by offset, and the parts that Kafka took."""

    rows: WindowRows = field(default_factory=WindowRows)
    parts: list[Part] = field(default_factory=list)
    offset: int = 0
    down: bool = False
    first: int = 0

    def __post_init__(self) -> None:
        self.windows = Windows(self.rows, Prices({"": 1.0}), first=self.first)

    async def add(self, *records: Turn | Feedback) -> list[Rejected]:
        numbered = dict(enumerate(records, self.offset))
        self.offset += len(records)
        return list((await self.windows.add(0, numbered)).values())

    async def publish(self, part: Part) -> None:
        self.parts.append(part)
        if self.down:
            raise LogUnavailable("taken, but not acknowledged")

    async def close(self, at: int) -> list[Part]:
        """Return the parts with rows that come out."""
        before = len(self.parts)
        await self.windows.close(0, at, grace=5 * SECOND, publish=self.publish)
        return [part for part in self.parts[before:] if part.rows]

    async def purge(self, now: int) -> None:
        await self.windows.purge(0, now, keep=HOUR)


def turn(name: int, at: int = BEGAN, **fields: Any) -> Turn:
    """Return a turn that ended then."""
    return Turn(
        turn_id=new_turn_id(BEGAN, 0, name),
        conversation_id="c",
        tenant=fields.pop("tenant", "t"),
        user="u",
        input="?",
        answer="!",
        model="m",
        outcome="completed",
        ended_at=at,
        **fields,
    )


def turns_of(part: Part) -> dict[str, int]:
    return {row.dimensions.tenant: row.measures.turns for row in part.rows}


async def test_a_window_with_one_turn_closes_without_any_other() -> None:
    one = Measuring()
    await one.add(turn(1))

    assert await one.close(BEGAN + SHORT + 5 * SECOND - 1) == []
    (part,) = await one.close(BEGAN + SHORT + 5 * SECOND)
    assert (part.size, part.start, part.revision, turns_of(part)) == (SHORT, BEGAN, 1, {"t": 1})


async def test_a_turn_is_in_a_window_of_each_size() -> None:
    one = Measuring()
    await one.add(turn(1, BEGAN + 69 * SECOND), turn(2, BEGAN + 70 * SECOND))

    parts = await one.close(BEGAN + HOUR)

    assert [(part.size, part.start - BEGAN, turns_of(part)["t"]) for part in parts] == [
        (SHORT, 60 * SECOND, 1),
        (SHORT, 70 * SECOND, 1),
        (MINUTE, MINUTE, 2),
        (5 * MINUTE, 0, 2),
    ]


async def test_rows_differ_by_free_text_in_their_dimensions_only() -> None:
    one = Measuring()
    names = ["a", "a ", 'a","m', "o", "\x00", "é"]
    await one.add(*(turn(number, tenant=name) for number, name in enumerate(names)))

    (part, *_) = await one.close(BEGAN + HOUR)

    assert turns_of(part) == dict.fromkeys(names, 1)


async def test_a_late_turn_corrects_the_whole_window() -> None:
    one = Measuring()
    await one.add(turn(1, tenant="a"), turn(2, tenant="b"))
    await one.close(BEGAN + HOUR)

    await one.add(turn(3, tenant="b"))
    parts = await one.close(BEGAN + HOUR)

    assert [(part.revision, turns_of(part)) for part in parts] == [(2, {"a": 1, "b": 2})] * 3
    assert await one.close(BEGAN + HOUR) == []


async def test_a_turn_that_was_published_twice_counts_once_and_one_that_is_delivered_again_too() -> None:
    one = Measuring()
    await one.add(turn(1), turn(2), turn(1))
    one.offset = 1
    await one.add(turn(2), turn(1), turn(3))

    (part, *_) = await one.close(BEGAN + HOUR)
    assert turns_of(part) == {"t": 3}


def thumb(turn_id: str, rating: Literal[1, -1], at: int = BEGAN) -> Feedback:
    return Feedback(turn_id=turn_id, conversation_id="c", tenant="t", user="u", rating=rating, at=at, model="m")


def thumbs_of(parts: list[Part]) -> dict[tuple[int, int], tuple[int, int]]:
    """Return what is up and down, by size and start of the window."""
    return {
        (part.size, part.start - BEGAN): (row.measures.feedback_up, row.measures.feedback_down)
        for part in parts
        for row in part.rows
    }


async def test_of_what_is_said_of_a_turn_in_a_window_the_latest_counts() -> None:
    one = Measuring(first=8)
    await one.add(thumb("a", 1), thumb("a", -1), thumb("b", 1), thumb("a", 1, at=BEGAN + SHORT))

    parts = await one.close(BEGAN + HOUR)

    assert thumbs_of(parts) == {
        (SHORT, 0): (1, 1),
        (SHORT, SHORT): (1, 0),
        (MINUTE, 0): (2, 0),
        (5 * MINUTE, 0): (2, 0),
    }
    assert {part.partition for part in one.parts} == {8}


async def test_what_is_said_late_or_is_delivered_again_corrects_the_window_once() -> None:
    one = Measuring()
    await one.add(thumb("a", 1), thumb("b", 1))
    await one.close(BEGAN + HOUR)

    one.offset = 1
    await one.add(thumb("b", 1), thumb("a", -1))
    parts = await one.close(BEGAN + HOUR)

    assert set(thumbs_of(parts).values()) == {(1, 1)}
    assert {part.revision for part in parts} == {2}


async def test_what_kafka_may_have_taken_goes_out_again_under_a_higher_revision() -> None:
    one = Measuring()
    await one.add(turn(1))
    one.down = True
    with pytest.raises(LogUnavailable):
        await one.close(BEGAN + HOUR)
    one.down = False
    await one.add(turn(2))

    (part, *_) = await one.close(BEGAN + HOUR)

    assert (part.revision, turns_of(part)) == (2, {"t": 2})
    assert one.parts[0].revision == 1


async def test_a_part_tells_up_to_when_everything_is_closed_also_without_turns() -> None:
    one = Measuring()
    await one.close(BEGAN + HOUR)
    await one.close(BEGAN + HOUR + SECOND)

    assert {part.size: part.closed_through for part in one.parts} == {
        SHORT: BEGAN + HOUR - SHORT,
        MINUTE: BEGAN + HOUR - MINUTE,
        5 * MINUTE: BEGAN + HOUR - 5 * MINUTE,
    }
    assert len(one.parts) == 3


async def test_closing_leaves_what_another_owner_wrote_meanwhile() -> None:
    one = Measuring()
    await one.add(turn(1))

    async def publish(part: Part) -> None:
        one.rows.take_over(one.rows.log)

    with pytest.raises(NotOwner):
        await one.windows.close(0, BEGAN + HOUR, grace=0, publish=publish)
    assert len(await one.close(BEGAN + HOUR)) == 3


async def test_what_cannot_be_corrected_any_more_is_deleted_and_refused() -> None:
    one = Measuring()
    await one.add(turn(1), turn(2, BEGAN + 2 * HOUR))
    await one.close(BEGAN + 2 * HOUR)
    await one.purge(BEGAN + 2 * HOUR)

    (refused,) = await one.add(turn(3))
    assert isinstance(refused, TooLate)
    assert await one.close(BEGAN + 2 * HOUR) == []
    kept = [key for key in one.rows.disk if not key.startswith("o")]
    assert [key[0] for key in kept] == ["t", "p"]


async def test_nothing_is_deleted_because_a_clock_is_wrong() -> None:
    one = Measuring()
    await one.add(turn(1))
    await one.close(BEGAN + 48 * HOUR)
    await one.purge(BEGAN + 48 * HOUR)

    assert await one.add(turn(2)) == []
    (part, *_) = await one.close(BEGAN + HOUR)
    assert turns_of(part) == {"t": 2}


async def test_after_turns_that_ended_in_the_future_those_of_the_present_are_taken() -> None:
    one = Measuring()
    await one.add(turn(1), turn(2, BEGAN + 48 * HOUR))
    await one.close(BEGAN + 49 * HOUR)
    await one.purge(BEGAN + 49 * HOUR)

    assert await one.add(turn(3, BEGAN + LARGEST_MS)) == []


async def test_a_window_that_was_reopened_is_not_deleted_before_it_is_closed_again() -> None:
    one = Measuring()
    await one.add(turn(1, tenant="a"), turn(2, BEGAN + 2 * HOUR))
    await one.close(BEGAN + 2 * HOUR)
    await one.add(turn(3, tenant="b"))

    await one.purge(BEGAN + 2 * HOUR)

    (part, *_) = await one.close(BEGAN + 2 * HOUR)
    assert turns_of(part) == {"a": 1, "b": 1}


async def test_a_window_of_many_rows_is_one_part_and_is_deleted_over_several_ticks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = 3 * ROWS_AT_ONCE
    monkeypatch.setattr("tables.windows.PURGED_AT_ONCE", 2 * ROWS_AT_ONCE)
    one = Measuring()
    await one.add(*(turn(number, tenant=f"t{number}") for number in range(many)))
    await one.add(turn(many, BEGAN + 2 * HOUR))

    (part, *_) = await one.close(BEGAN + HOUR)
    assert len(part.rows) == many

    sizes: list[int] = []
    while not sizes or len(one.rows.disk) < sizes[-1]:
        sizes.append(len(one.rows.disk))
        await one.purge(BEGAN + 2 * HOUR)
    assert len(sizes) > 4
    assert len(one.rows.disk) == 1 + 1 + len(SIZES_MS)  # what is refused, and the last turn


@pytest.mark.parametrize("ended_at", [-1, 10**15])
async def test_a_time_that_is_none_is_refused(ended_at: int) -> None:
    (refused,) = await Measuring().add(turn(1, ended_at))

    assert isinstance(refused, BadRecord)


async def test_the_oldest_open_window_is_known_from_the_rows_alone() -> None:
    one = Measuring()
    assert one.windows.oldest(0) is None

    await one.add(turn(1, BEGAN + MINUTE), turn(2))

    assert Windows(one.rows, Prices()).oldest(0) == BEGAN + SHORT


async def test_costs_are_those_of_the_settings() -> None:
    one = Measuring()
    paid = msgspec.structs.replace(turn(1), usage=msgspec.json.decode(b'{"input_tokens": 7}', type=type(turn(1).usage)))
    await one.add(paid)

    (part, *_) = await one.close(BEGAN + HOUR)

    assert part.rows[0].measures.cost_nano == 7000


# -- the thinking behind it


@given(st.integers(0, 10**14), st.sampled_from(SIZES_MS))
def test_windows_of_a_size_lie_side_by_side_and_each_in_one_of_the_next_size(at: int, size: int) -> None:
    start = start_of(at, size)

    assert start <= at < start + size
    assert start_of(start, LARGEST_MS) <= start
    assert start + size <= start_of(start, LARGEST_MS) + LARGEST_MS


@given(st.integers(0, 10**14), st.sampled_from(SIZES_MS), st.integers(0, HOUR))
def test_what_may_close_is_over_for_the_grace_and_the_next_is_not(at: int, size: int, grace: int) -> None:
    end = closable(at, size=size, grace=grace)

    assert end == 0 or end + grace <= at
    assert end + size + grace > at


def test_neither_the_clock_nor_an_event_alone_makes_things_old() -> None:
    assert purgeable(BEGAN, latest=BEGAN + 48 * HOUR, keep=HOUR) == BEGAN - HOUR
    assert purgeable(BEGAN + 48 * HOUR, latest=BEGAN, keep=HOUR) == BEGAN - HOUR
    assert purgeable(BEGAN, latest=0, keep=HOUR) == 0


def test_caught_up_means_up_to_the_end_that_the_log_had_then() -> None:
    caught_up = CaughtUp()

    assert caught_up.look(1, end=5, handled=4) is None
    assert caught_up.look(2, end=9, handled=4) is None
    assert caught_up.look(3, end=12, handled=8) == 1
    assert caught_up.look(4, end=12, handled=8) is None
    assert caught_up.look(5, end=12, handled=12) == 5
    assert caught_up.look(4, end=12, handled=12) == 4
