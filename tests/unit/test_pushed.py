"""A stream that is pushed loses, repeats and reorders nothing, however it is brought, paused and broken off."""

import asyncio
from collections.abc import Awaitable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.pushed import Pushed
from domain.hearing import Enough, Hear, then_enough


class Numbers(Pushed[list[int]]):
    """A stream of numbers, which come by `bring`."""

    def __init__(self, hear: Hear[int]) -> None:
        super().__init__(hear)
        self.come: list[int] = []
        self.ended = False

    def bring(self, *numbers: int) -> None:
        self.come += numbers
        self.look()

    def end(self) -> None:
        self.ended = True
        self.look()

    def _next(self) -> list[int]:
        new, self.come = self.come, []
        self._ended = self.ended
        return new


async def test_what_comes_is_heard_in_the_call_that_brings_it() -> None:
    heard: list[int] = []
    numbers = Numbers(heard.extend)
    reading = asyncio.create_task(numbers.until_end())
    await asyncio.sleep(0)

    numbers.bring(1)
    assert heard == [1]
    numbers.bring(2, 3)
    assert heard == [1, 2, 3]

    numbers.end()
    await reading


async def test_what_came_before_anybody_waited_is_heard() -> None:
    heard: list[int] = []
    numbers = Numbers(heard.extend)
    numbers.come = [1, 2]
    numbers.ended = True

    await numbers.until_end()

    assert heard == [1, 2]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=30))
async def test_pauses_keep_the_order_and_nothing_comes_in_between(steps: list[tuple[int, bool, bool]]) -> None:
    """Each step brings some numbers, may have their hearing take a while, and may let the loop run."""
    heard: list[int] = []
    slow = [wait for _, wait, _ in steps]
    pausing = False

    def hear(new: list[int]) -> Awaitable[object] | None:
        assert not pausing
        heard.extend(new)
        return pause() if slow and slow.pop() else None

    async def pause() -> None:
        nonlocal pausing
        pausing = True
        await asyncio.sleep(0)
        pausing = False

    numbers = Numbers(hear)
    reading = asyncio.create_task(numbers.until_end())
    count = 0
    for amount, _, runs in steps:
        numbers.bring(*range(count, count + amount))
        count += amount
        if runs:
            await asyncio.sleep(0)
    numbers.end()
    await reading

    assert heard == list(range(count))


async def test_whoever_hears_may_end_it_at_once_or_after_a_pause() -> None:
    def enough(_: list[int]) -> None:
        raise Enough

    def enough_later(_: list[int]) -> Awaitable[object]:
        return then_enough(asyncio.sleep(0))

    for hear in (enough, enough_later):
        numbers = Numbers(hear)
        reading = asyncio.create_task(numbers.until_end())
        await asyncio.sleep(0)

        numbers.bring(1)
        with pytest.raises(Enough):
            await reading
        numbers.bring(2)

        assert numbers.come == [2]


@pytest.mark.filterwarnings("error")
async def test_a_pause_that_nobody_waits_for_any_more_is_put_away() -> None:
    async def pause() -> None:
        raise AssertionError("nobody was there to wait for it")

    numbers = Numbers(lambda _: pause())
    reading = asyncio.create_task(numbers.until_end())
    await asyncio.sleep(0)

    numbers.bring(1)
    reading.cancel()

    with pytest.raises(asyncio.CancelledError):
        await reading
