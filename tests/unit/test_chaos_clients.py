"""What a campaign's reader takes for silence: the wait for the next word, and for the first where it is its turn."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import aiohttp
import msgspec
import pytest

from bench.campaign.clients import Load, Turn, take
from bench.campaign.schedule import Errand, Reading

PACE = 50
STARTED, TOKEN, COMPLETED = "turn.started", "token", "turn.completed"


def errand_of(number: int = 0, *, reading: Reading = "steady", keyed: bool = True) -> Errand:
    """Return what a client does: ask in the one conversation that there is, and read."""
    return Errand(number, 0, 0, 20, PACE, reading, keyed, False, False, -1, ())


def read(*events: tuple[str, float], behind: bool = False, reading: Reading = "steady") -> list[tuple[float, float]]:
    """Let a reader who waits since 10.0 see these events at these times; return the silences that it notes."""
    turn = Turn(errand_of(reading=reading), "q", "c", "t", 10.0, 10.0, 0.0, behind=behind)
    turn.seen.last_at = 0.0 if behind else 10.0
    for number, (name, at) in enumerate(events):
        see(turn, number, name, at)
    return [(gap.since, round(gap.seconds, 3)) for gap in turn.seen.gaps]


def see(turn: Turn, number: int, name: str, at: float) -> None:
    """Let a reader see an event."""
    take(turn, b"id: %d\nevent: %b\ndata: %b" % (number, name.encode(), msgspec.json.encode({"text": "x"})), at)


def test_the_wait_for_the_first_word_is_silence_whether_or_not_the_turn_has_begun_meanwhile() -> None:
    assert read((STARTED, 11.9), (TOKEN, 12.0), (TOKEN, 12.02)) == [(10.0, 2.0)]
    assert read((STARTED, 10.1), (TOKEN, 12.0), (TOKEN, 12.02)) == [(10.0, 2.0)]


def test_an_end_without_a_word_ends_the_wait() -> None:
    assert read((STARTED, 10.1), ("turn.failed", 12.0)) == [(10.0, 2.0)]


def test_a_turn_that_is_behind_another_waits_for_its_first_word_since_its_own_begin() -> None:
    assert read((STARTED, 15.0), (TOKEN, 15.1), (TOKEN, 15.12), behind=True) == []
    assert read((STARTED, 15.0), (TOKEN, 16.0), (TOKEN, 16.02), behind=True) == [(15.0, 1.0)]


def test_between_two_words_the_models_own_pace_is_no_silence() -> None:
    assert read((TOKEN, 10.1), (TOKEN, 11.1), (COMPLETED, 11.3)) == [(10.1, 1 - 1 / PACE)]
    assert read((TOKEN, 10.1), (TOKEN, 10.4), (COMPLETED, 10.7)) == []


def test_who_leaves_on_purpose_tells_nothing_of_silence() -> None:
    assert read((STARTED, 12.0), (TOKEN, 15.0), (COMPLETED, 20.0), reading="drops") == []


class ScriptedLoad(Load):
    """Clients whose requests are answered at once, and whose answers end when told."""

    def __init__(self) -> None:
        super().__init__(1, cast("aiohttp.ClientSession", None), list, [])
        self.ends = asyncio.Event()
        self.answers = True

    async def _until_answered(self, path: str, body: Any, tenant: int, key: str) -> Any:
        return {"id": "c", "turn_id": f"turn of {key}"}

    async def _once(self, path: str, body: Any, tenant: int) -> Any:
        return {"turn_id": "turn without a key"} if self.answers else None

    async def _events(self, turn: Turn) -> AsyncIterator[None]:
        await self.ends.wait()
        see(turn, 0, COMPLETED, 0.0)
        yield


@pytest.fixture
def load() -> ScriptedLoad:
    return ScriptedLoad()


async def until(done: Callable[[], bool]) -> None:
    """Return when it is so."""
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0)


async def test_a_turn_is_behind_as_long_as_another_of_its_conversation_is_open(load: ScriptedLoad) -> None:
    asking = []
    for number in range(2):
        asking.append(asyncio.create_task(load._run(errand_of(number))))
        await until(lambda: len(load.turns) == len(asking))
    assert [turn.seen.last_at > 0 for turn in load.turns] == [True, False]
    load.ends.set()
    await asyncio.gather(*asking)
    await load._run(errand_of(2))

    assert [turn.behind for turn in load.turns] == [False, True, False]


async def test_a_turn_is_taken_to_be_behind_a_question_of_which_nobody_knows_whether_it_was_accepted(
    load: ScriptedLoad,
) -> None:
    load.ends.set()
    load.answers = False
    await load._run(errand_of(0, keyed=False))
    await load._run(errand_of(1))

    assert [turn.behind for turn in load.turns] == [True]
