"""An agent's loop loses no record, whatever its handler does."""

import asyncio
from collections.abc import Callable

import pytest

from domain.errors import BadRecord, LogUnavailable, Rejected
from streams.handling import handle_each
from streams.patience import MAX_ATTEMPTS
from streams.records import Control, encode
from tests.support.runner_fakes import FakeGroup


class Letters(FakeGroup):
    """A group that also takes dead letters, perhaps not at once."""

    def __init__(self) -> None:
        super().__init__()
        self.letters: list[tuple[int, str]] = []
        self.refuse = 0

    def noack(self) -> "Letters":
        return self

    async def settled(self) -> None:
        pass

    async def dead_letter(
        self, *, topic: str, partition: int, offset: int, error: Exception, key: bytes | None, value: bytes | None
    ) -> None:
        assert (topic, key) == ("chat.questions.v1", b"c")
        if self.refuse:
            self.refuse -= 1
            raise LogUnavailable("not now")
        self.letters.append((offset, str(error)))


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Letters:
    real = asyncio.sleep
    monkeypatch.setattr("streams.handling.asyncio.sleep", lambda _: real(0))  # back-off takes no time here
    return Letters()


def control(turn_id: str) -> bytes:
    return encode(Control(action="stop", conversation_id="c", tenant="t", user="u", at=0, turn_id=turn_id))


async def run(letters: Letters, handle: Callable[[Control], None]) -> None:
    async def handler(record: Control, partition: int) -> None:
        assert partition == 0
        handle(record)

    letters.close()
    await handle_each(letters, letters, Control, handler)


async def test_records_are_handled_in_order_and_acknowledged(letters: Letters) -> None:
    seen: list[str] = []
    for name in "abc":
        letters.deliver(control(name))

    await run(letters, lambda record: seen.append(record.turn_id))

    assert seen == ["a", "b", "c"]
    assert letters.acked == [0, 1, 2]


async def test_a_record_that_cannot_be_decoded_is_set_aside_and_the_next_is_handled(letters: Letters) -> None:
    seen: list[str] = []
    letters.deliver(b'{"action": "dance"}')
    letters.deliver(control("b"))

    await run(letters, lambda record: seen.append(record.turn_id))

    assert seen == ["b"]
    assert letters.acked == [0, 1]
    assert "Invalid enum value 'dance'" in letters.letters[0][1]


async def test_a_passing_failure_is_tried_until_it_works(letters: Letters) -> None:
    failures: list[Exception] = [LogUnavailable("busy") for _ in range(2 * MAX_ATTEMPTS)]

    def handle(_: Control) -> None:
        if failures:
            raise failures.pop()

    letters.deliver(control("a"))
    await run(letters, handle)

    assert letters.acked == [0]
    assert letters.letters == []


@pytest.mark.parametrize(
    ("error", "attempts"), [(Rejected("no"), 1), (BadRecord("no"), 1), (KeyError("no"), MAX_ATTEMPTS)]
)
async def test_what_never_works_is_set_aside(letters: Letters, error: Exception, attempts: int) -> None:
    tried: list[str] = []

    def handle(record: Control) -> None:
        tried.append(record.turn_id)
        raise error

    letters.refuse = 2
    letters.deliver(control("a"))
    await run(letters, handle)

    assert len(tried) == attempts
    assert letters.letters == [(0, str(error))]
    assert letters.acked == [0]


async def test_an_event_of_an_older_assignment_is_left_for_its_next_delivery(letters: Letters) -> None:
    def rebalance(_: Control) -> None:
        letters.generation += 1
        raise LogUnavailable("the partition went away")

    letters.deliver(control("a"))
    await run(letters, rebalance)

    assert letters.acked == []
    assert letters.letters == []
