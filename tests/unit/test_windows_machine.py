"""Windows against a count of the turns: late, repeated, delivered again; crashes, moves, and a clock that jumps."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from domain.errors import LogUnavailable, NotOwner, Rejected, Retriable
from domain.ids import new_turn_id
from domain.prices import FREE
from domain.windows import LARGEST_MS, SIZES_MS, CaughtUp, start_of
from streams.records import Turn
from tables.measures import Dimensions, Part
from tables.windows import Windows
from tests.support.window_rows import Died, WindowRows

SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
GRACE = 5 * SECOND
KEEP = HOUR
BEGAN = 1_800_000_000_000
T = TypeVar("T")

# Free text, and what separates keys is in it.
tenants = st.sampled_from(["acme", 'a"c', "o0010000", "\x00"])
ages = st.one_of(st.integers(-MINUTE, 20 * SECOND), st.integers(0, 10 * MINUTE), st.integers(0, 3 * HOUR))
Window = tuple[int, int]  # size and start


class WindowMachine(RuleBasedStateMachine):
    """One partition: its log, how far it is handled and committed, its rows, and the parts that were published."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.rows = WindowRows()
        self.now = self.latest_clock = BEGAN
        self.log: list[Turn] = []
        self.handled = self.committed = 0
        self.counted: dict[str, Turn] = {}
        self.begun: dict[str, Turn] = {}  # may be in the rows, though adding them broke off
        self.refused: dict[str, Turn] = {}
        self.parts: dict[Window, Part] = {}
        self.begin()

    def begin(self) -> None:
        """Begin a life of the worker, or an assignment."""
        self.windows = Windows(self.rows, FREE)
        self.caught_up = CaughtUp()
        self.handled = self.committed

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coro)

    def teardown(self) -> None:
        self.rows.room = None
        self.now = self.latest_clock = max([self.now, *(turn.ended_at for turn in self.log)]) + LARGEST_MS + GRACE
        self.handle(len(self.log))
        self.tick()
        assert {turn.turn_id for turn in self.log} == self.counted.keys() | self.refused.keys()
        self.begun = {turn_id: turn for turn_id, turn in self.begun.items() if turn_id in self.refused}
        for size in SIZES_MS:
            self.check(size, self.now)
        self.loop.close()

    # -- what happens to the log and the clock

    @rule(turns=st.lists(st.tuples(ages, tenants), min_size=1, max_size=5))
    def finish_turns(self, turns: list[tuple[int, str]]) -> None:
        for age, tenant in turns:
            self.finish(age, tenant)

    def finish(self, age: int, tenant: str) -> None:
        number = len(self.log)
        self.log.append(
            Turn(
                turn_id=new_turn_id(self.now, 0, number),
                conversation_id="c",
                tenant=tenant,
                user="u",
                input="?",
                answer="!",
                model="m",
                outcome="completed",
                ended_at=self.now - age,
            )
        )

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def publish_a_turn_again(self, data: st.DataObject) -> None:
        self.log.append(data.draw(st.sampled_from(self.log)))

    @rule(seconds=st.sampled_from([1, 7, 61, 301, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * SECOND
        self.latest_clock = max(self.latest_clock, self.now)

    @rule(by=st.sampled_from([-26 * HOUR, -HOUR, -MINUTE, MINUTE, HOUR, 26 * HOUR]))
    def the_clock_jumps(self, by: int) -> None:
        self.now += by
        self.latest_clock = max(self.latest_clock, self.now)

    # -- what the worker does

    @rule(count=st.integers(1, 8), commits=st.booleans())
    def handle_turns(self, count: int, commits: bool) -> None:
        self.handle(count)
        if commits:
            self.committed = self.handled

    def handle(self, count: int) -> None:
        turns = dict(list(enumerate(self.log))[self.handled : self.handled + count])
        try:
            refused = self.run(self.windows.add(0, turns))
        except BaseException:
            self.begun |= {turn.turn_id: turn for turn in turns.values()}
            raise
        self.note(turns, refused)
        self.handled += len(turns)

    def note(self, turns: dict[int, Turn], refused: dict[int, Rejected]) -> None:
        seen = [turn.ended_at for turn in self.log]
        for offset, turn in turns.items():
            if offset not in refused:
                assert turn.turn_id not in self.refused or turn.turn_id in self.counted
                self.counted[turn.turn_id] = turn
            else:
                assert turn.ended_at + KEEP < min(self.latest_clock, max(seen)) + LARGEST_MS
                self.refused[turn.turn_id] = turn

    @rule()
    def tick(self) -> None:
        at = self.caught_up.look(self.now, end=len(self.log), handled=self.handled)
        if at is not None:
            self.run(self.close_and_purge(at))

    async def close_and_purge(self, at: int) -> None:
        await self.windows.close(0, at, grace=GRACE, publish=self.publish)
        await self.windows.purge(0, self.now, keep=KEEP)

    async def publish(self, part: Part) -> None:
        if self.rows.room == 0 and self.rows.then == "fail":
            if not self.rows.loses:
                self.take(part)
            raise LogUnavailable("not now")
        self.take(part)
        if self.rows.room == 0 and self.rows.then == "move":
            self.rows.take_over(self.rows.log)

    def take(self, part: Part) -> None:
        if not part.rows:
            self.check(part.size, part.closed_through)
            return
        window = (part.size, part.start)
        before = self.parts.get(window)
        assert before is None or (part.epoch, part.revision) > (before.epoch, before.revision)
        assert part.start + part.size + GRACE <= self.latest_clock
        self.parts[window] = part

    def check(self, size: int, through: int) -> None:
        """Every window that ended by then has what was counted in it, and none has anything that was not begun."""
        counted, begun = self.counts(self.counted, size), self.counts(self.counted | self.begun, size)
        parts = {
            start: Counter({row.dimensions: row.measures.turns for row in part.rows})
            for (of, start), part in self.parts.items()
            if of == size
        }
        for start, counts in counted.items():
            if start + size <= through:
                assert counts <= parts[start]
        for start, counts in parts.items():
            assert counts <= begun[start]

    def counts(self, turns: dict[str, Turn], size: int) -> dict[int, Counter[Dimensions]]:
        """Return how many turns of which dimensions each window has."""
        windows: dict[int, Counter[Dimensions]] = {}
        for turn in turns.values():
            counts = windows.setdefault(start_of(turn.ended_at, size), Counter())
            counts[Dimensions(turn.tenant, turn.model, turn.prompt, turn.outcome)] += 1
        return windows

    # -- what goes wrong

    @rule(keeps_disk=st.booleans())
    def start_again(self, keeps_disk: bool) -> None:
        """Killed and started again on its disk; or another worker, or the same one with a new disk, takes over."""
        self.rows.take_over(self.rows.disk if keeps_disk else self.rows.log)
        self.begin()

    @rule(
        room=st.sampled_from([0, 0, 0, 1, 2, 3, 5, 8, 12]),
        loses=st.booleans(),
        then=st.sampled_from(["fail", "die", "move"]),
        ticks=st.booleans(),
        keeps_disk=st.booleans(),
    )
    def fail_in_the_middle(self, room: int, loses: bool, then: str, ticks: bool, keeps_disk: bool) -> None:
        self.rows.room, self.rows.loses, self.rows.then = room, loses, then
        try:
            if ticks:
                self.tick()
            else:
                self.handle(8)
        except Died:
            self.start_again(keeps_disk)
        except NotOwner:
            self.begin()
        except Retriable:
            pass
        self.rows.room = None


WindowMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestWindows = WindowMachine.TestCase
