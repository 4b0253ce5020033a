"""The keys of finished turns: the first turn has its key for a day, and the table does not outgrow a day."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.ids import new_turn_id
from domain.turns import DUPLICATE_REQUEST, Failure
from streams.records import Question, Turn
from tables import replays
from tables.replays import HOLDS_MS, LOOKS

CONVERSATION = "c"
HOUR = HOLDS_MS // 24


class FakeRows:
    """A table of rows whose changelog acknowledges at once."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def row(self, partition: int, key: str) -> bytes | None:
        return self.kept.get(key)

    def after(self, partition: int, key: str) -> Iterator[tuple[str, bytes]]:
        return iter([(found, self.kept[found]) for found in sorted(self.kept) if found > key])

    def put(self, partition: int, key: str, value: bytes | None) -> "asyncio.Future[None]":
        if value is None:
            del self.kept[key]
        else:
            self.kept[key] = value
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        acknowledged.set_result(None)
        return acknowledged


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> FakeRows:
    """An empty table of keys."""
    return empty(monkeypatch)


def empty(monkeypatch: pytest.MonkeyPatch) -> FakeRows:
    rows = FakeRows()
    monkeypatch.setattr(replays, "_replays", rows)
    monkeypatch.setattr(replays, "_looked_at", {})
    return rows


def asked(key: str, at: int, number: int = 0) -> Question:
    return Question(
        turn_id=new_turn_id(at, 0, number),
        conversation_id=CONVERSATION,
        tenant="t",
        user="u",
        input="?",
        model="",
        tokens_from=0,
        replay_key=key,
        fingerprint=f"of {key}",
    )


def finished(question: Question, at: int, error: Failure | None = None) -> Turn:
    return Turn(
        turn_id=question.turn_id,
        conversation_id=question.conversation_id,
        tenant=question.tenant,
        user=question.user,
        input=question.input,
        answer="!",
        model="m",
        outcome="failed" if error else "completed",
        error=error,
        asked_at=at,
        replay_key=question.replay_key,
        fingerprint=question.fingerprint,
    )


async def test_the_first_turn_keeps_its_key(rows: FakeRows) -> None:
    first, second = asked("k", 1000, 1), asked("k", 2000, 2)
    for question, at in ((first, 1000), (second, 2000), (first, 1000)):
        await replays.keep(finished(question, at))

    found = replays.find(CONVERSATION, "k", 3000)
    assert found is not None
    assert (found.turn_id, found.fingerprint) == (first.turn_id, "of k")
    assert replays.replayed(second) == first.turn_id
    assert replays.replayed(first) == ""


async def test_a_turn_that_was_refused_as_a_duplicate_does_not_get_the_key(rows: FakeRows) -> None:
    first, second = asked("k", 1000, 1), asked("k", 2000, 2)

    await replays.keep(finished(second, 2000, Failure("the other turn is first", DUPLICATE_REQUEST)))
    assert replays.replayed(first) == ""

    await replays.keep(finished(first, 1000))
    assert replays.replayed(second) == first.turn_id


async def test_a_turn_without_a_key_leaves_nothing(rows: FakeRows) -> None:
    question = asked("", 1000)
    await replays.keep(finished(question, 1000))

    assert rows.kept == {}
    assert replays.replayed(question) == ""


async def test_after_a_day_the_key_is_free_for_another_turn(rows: FakeRows) -> None:
    first, next_day = asked("k", 0, 1), asked("k", HOLDS_MS + 1, 2)
    await replays.keep(finished(first, 0))

    assert replays.replayed(asked("k", HOLDS_MS, 3)) == first.turn_id
    assert replays.replayed(next_day) == ""

    await replays.keep(finished(next_day, HOLDS_MS + 1))
    found = replays.find(CONVERSATION, "k", HOLDS_MS + 2)
    assert found is not None
    assert found.turn_id == next_day.turn_id


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10 * HOUR)), max_size=120),
    st.integers(0, 2 * HOLDS_MS),
)
def test_a_key_is_the_first_turns_for_a_day_whatever_else_is_asked(turns: list[tuple[int, int]], later: int) -> None:
    now, first = 0, dict[str, tuple[int, str]]()

    async def ask_all() -> None:
        nonlocal now
        for number, (name, pause) in enumerate(turns):
            key, now = f"key-{name}", now + pause
            question = asked(key, now, number)
            if key not in first or now - first[key][0] > HOLDS_MS:
                first[key] = (now, question.turn_id)
            await replays.keep(finished(question, now))

    with pytest.MonkeyPatch.context() as patch:
        empty(patch)
        asyncio.run(ask_all())
        at = now + later
        for key, (since, turn_id) in first.items():
            found = replays.find(CONVERSATION, key, at)
            assert (found.turn_id if found else None) == (turn_id if at - since <= HOLDS_MS else None)


async def test_the_table_stays_within_a_third_of_what_a_day_brings(rows: FakeRows) -> None:
    a_day = 600
    for number in range(5 * a_day):
        at = number * HOLDS_MS // a_day
        await replays.keep(finished(asked(f"{number * 0x9E3779B1 % 2**32:08x}", at, number), at))

        assert len(rows.kept) <= a_day * LOOKS / (LOOKS - 1) + LOOKS

    assert len(rows.kept) > a_day
