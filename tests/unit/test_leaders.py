"""Leaders are what a broker told last, and can be reached, whatever other answers leave out."""

from types import SimpleNamespace
from typing import Any

import pytest

from adapters import leaders
from adapters.leaders import Address, Leaders

UNKNOWN_TOPIC = 3
FIRST, SECOND = (1, "one", 9092, None), (2, "two", 9093, None)


async def told(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> Leaders:
    """Return what is known after brokers have given these answers."""
    coming = list(answers)

    class Connection:
        async def send(self, _: object) -> Any:
            return coming.pop(0)

        def close(self) -> None:
            """Do nothing."""

    async def connect(_address: Address, _patience: float) -> Connection:
        return Connection()

    monkeypatch.setattr(leaders, "_connect", connect)
    found = Leaders("one:9092,[::1]:9092", "tokens")
    for _ in answers:
        await found.ask()
    return found


def answer(*brokers: Any, code: int = 0, leading: dict[int, int] | None = None) -> Any:
    partitions: list[Any] = [(0, partition, leader, [], []) for partition, leader in (leading or {}).items()]
    return SimpleNamespace(brokers=brokers, topics=[(code, "tokens", False, partitions)])


async def test_a_partition_that_nobody_leads_has_no_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await told(monkeypatch, answer(FIRST, SECOND, leading={0: 2, 1: -1}))

    assert (found.of(0), found.of(1), found.of(2)) == (2, None, None)
    assert found.address(2) == ("two", 9093)


async def test_a_leader_can_be_reached_after_an_answer_that_knows_neither_it_nor_the_topic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = await told(monkeypatch, answer(FIRST, SECOND, leading={0: 2}), answer(FIRST, code=UNKNOWN_TOPIC))

    assert found.of(0) == 2
    assert found.address(2) == ("two", 9093)


async def test_a_later_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = (2, "elsewhere", 9094, None)
    found = await told(
        monkeypatch, answer(FIRST, SECOND, leading={0: 2, 1: 1}), answer(FIRST, moved, leading={0: 1, 1: 2})
    )

    assert (found.of(0), found.of(1)) == (1, 2)
    assert found.address(2) == ("elsewhere", 9094)
