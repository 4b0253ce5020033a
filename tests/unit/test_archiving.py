"""The archive's loop gives every sink every turn of the log once and in order, through outages, replays and rivals."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.log_reader import Record
from domain.errors import LogUnavailable, Overtaken, SinkRefused, SinkUnavailable
from domain.spans import Span
from streams import archiving
from streams.archiving import Archiver, Limits
from streams.patience import MAX_ATTEMPTS
from streams.records import Control, Feedback, Turn, encode

TURNS, CONTROLS, FEEDBACK = "turns", "controls", "feedback"


def turn(turn_id: str) -> bytes:
    return encode(
        Turn(
            turn_id=turn_id, conversation_id="c", tenant="t", user="u", input="?", answer="!", model="m",
            outcome="completed",
        )
    )  # fmt: skip


def erase(conversation_id: str = "c") -> bytes:
    return encode(Control(action="erase", conversation_id=conversation_id, tenant="t", user="u", at=1))


def thumb(turn_id: str) -> bytes:
    return encode(Feedback(turn_id=turn_id, conversation_id="c", tenant="t", user="u", rating=-1, at=1))


class Log:
    """Three topics of some partitions; ``first`` is where the turns' retention has got to."""

    def __init__(self, partitions: int = 1) -> None:
        self.records: dict[tuple[str, int], list[bytes]] = {
            (topic, number): [] for topic in (TURNS, CONTROLS, FEEDBACK) for number in range(partitions)
        }
        self.first = 0
        self.hidden = 0  # records that the broker of the moment does not show
        self.down = False

    def write(self, *values: bytes, topic: str = TURNS, partition: int = 0) -> None:
        self.records[topic, partition].extend(values)

    async def topic_id(self, topic: str) -> str:
        return "1"

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        if self.down:
            raise LogUnavailable("down")
        return {each: max(0, len(self.records[topic, each]) - self.hidden) for each in partitions}

    async def beginnings(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, self.first if topic == TURNS else 0)

    async def batch(
        self, topic: str, partition: int, start: int, stop: int, *, most: int, most_bytes: int
    ) -> Sequence[Record]:
        records: list[Record] = []
        size = 0
        for offset in range(max(start, self.first if topic == TURNS else 0), stop):
            if len(records) < most and size < most_bytes:
                records.append(Record(offset, b"c", self.records[topic, partition][offset]))
                size += len(records[-1].value)
        return records


class MemorySink:
    """A store that keeps the promises of `Sink`, and fails as it is told to."""

    name = "memory"

    def __init__(self) -> None:
        self.at: dict[tuple[str, int], int] = {}
        self.given: list[str] = []
        self.batches: list[int] = []
        self.prepared = 0
        self.failures: list[Exception] = []
        self.refuses: set[str] = set()
        self.poison: set[str] = set()
        self.is_broken = False
        self.attempts = 0

    async def prepare(self) -> None:
        self.prepared += 1

    async def progress(self, log: str, partitions: Iterable[int]) -> dict[int, int]:
        return {each: self.at.get((log, each), 0) for each in partitions}

    def _advance(self, span: Span, again: bool) -> None:
        if self.failures:
            raise self.failures.pop(0)
        if again:
            return
        if self.at.get((span.log, span.partition), 0) != span.start:
            raise Overtaken("elsewhere")
        self.at[span.log, span.partition] = span.stop

    async def keep(self, span: Span, turns: Mapping[int, Turn], *, again: bool = False) -> None:
        self.attempts += 1
        if self.is_broken or self.poison & {each.turn_id for each in turns.values()}:
            raise KeyError("a mistake of ours")
        refused = {offset: "odd" for offset, each in turns.items() if each.turn_id in self.refuses}
        if refused:
            raise SinkRefused(refused)
        self._advance(span, again)
        self.given += [each.turn_id for each in turns.values()]
        self.batches.append(len(turns))

    async def obey(self, span: Span, controls: Mapping[int, Control], turns_log: str, *, again: bool = False) -> None:
        self._advance(span, again)
        self.given += [f"erase {each.conversation_id}" for each in controls.values()]

    async def note(self, span: Span, feedback: Mapping[int, Feedback], turns_log: str, *, again: bool = False) -> None:
        self._advance(span, again)
        self.given += [f"rate {each.turn_id}" for each in feedback.values()]

    async def rewind(self, log: str, offsets: Mapping[int, int]) -> None:
        self.at |= {(log, partition): offset for partition, offset in offsets.items()}


class Letters:
    """The dead letters."""

    def __init__(self) -> None:
        self.of: list[tuple[str, int, str]] = []

    async def __call__(
        self, *, topic: str, partition: int, offset: int, error: Exception, key: bytes, value: bytes
    ) -> None:
        self.of.append((topic, offset, str(error)))


class Setup:
    """A loop with everything around it."""

    def __init__(self, partitions: int = 1, *, turns: int = 3, size: int = 1 << 20, seconds: float = 3600) -> None:
        self.log = Log(partitions)
        self.sink = MemorySink()
        self.letters = Letters()
        self.owned = set(range(partitions))
        self.archiver = self.another(turns=turns, size=size, seconds=seconds)

    def another(self, *, turns: int = 3, size: int = 1 << 20, seconds: float = 3600) -> Archiver:
        return Archiver(
            self.sink, self.log, Limits(seconds, turns, size),
            turns=TURNS, controls=CONTROLS, feedback=FEEDBACK, owned=lambda: self.owned, set_aside=self.letters,
        )  # fmt: skip


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(archiving, "LOOK_SECONDS", 0.001)


async def test_a_window_takes_what_the_log_has_in_batches_of_bounded_count() -> None:
    it = Setup(turns=3)
    it.log.write(*(turn(f"{number}") for number in range(8)))

    await it.archiver.write()

    assert it.sink.given == [f"{number}" for number in range(8)]
    assert it.sink.batches == [3, 3, 2]


async def test_a_batch_is_bounded_in_size_too() -> None:
    it = Setup(turns=100, size=2 * len(turn("0")))
    it.log.write(*(turn(f"{number}") for number in range(6)))

    await it.archiver.write()

    assert it.sink.batches == [2, 2, 2]


async def test_an_erasure_comes_before_the_turns_that_ended_after_it() -> None:
    it = Setup()
    it.log.write(turn("before"), turn("after"))
    it.log.write(erase(), topic=CONTROLS)

    await it.archiver.write()

    assert it.sink.given == ["erase c", "before", "after"]


@pytest.mark.usefixtures("no_pauses")
async def test_what_is_said_of_turns_is_given_once_and_goes_on_where_it_was() -> None:
    setup = Setup()
    setup.log.write(thumb("a"), topic=FEEDBACK)

    await setup.archiver.write()
    setup.log.write(thumb("b"), topic=FEEDBACK)
    await setup.another().write()

    assert setup.sink.given == ["rate a", "rate b"]
    assert setup.sink.at[f"{FEEDBACK}@1", 0] == 2


async def test_an_outage_loses_and_repeats_nothing() -> None:
    it = Setup(turns=2)
    it.log.write(*(turn(f"{number}") for number in range(6)))
    it.sink.failures = [SinkUnavailable("away"), SinkUnavailable("away"), RuntimeError("unforeseen")]

    await it.archiver.close_window()

    assert it.sink.given == [f"{number}" for number in range(6)]
    assert it.sink.prepared == 4


async def test_who_is_overtaken_goes_on_where_the_other_stopped() -> None:
    it = Setup(turns=2)
    it.log.write(*(turn(f"{number}") for number in range(6)))
    it.sink.failures = [Overtaken("elsewhere")]

    await it.archiver.write()
    await it.another().write()
    await it.archiver.write()

    assert it.sink.given == [f"{number}" for number in range(6)]


async def test_what_a_sink_refuses_is_set_aside_and_the_rest_written() -> None:
    it = Setup(turns=10)
    it.log.write(*(turn(name) for name in "abcd"))
    it.sink.refuses = {"b", "d"}

    await it.archiver.write()

    assert it.sink.given == ["a", "c"]
    assert it.letters.of == [(TURNS, 1, "memory: odd"), (TURNS, 3, "memory: odd")]


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("poison", [{"a"}, {"e"}, {"b", "c"}, {"a", "b", "c", "d", "e"}])
async def test_the_records_that_make_a_batch_fail_are_found_and_set_aside_alone(poison: set[str]) -> None:
    it = Setup(turns=10)
    it.log.write(*(turn(name) for name in "abcde"))
    it.sink.poison = poison

    await it.archiver.close_window()

    assert it.sink.given == [name for name in "abcde" if name not in poison]
    assert it.letters.of == [
        (TURNS, "abcde".index(name), "memory: KeyError('a mistake of ours')") for name in sorted(poison)
    ]
    assert await it.sink.progress(f"{TURNS}@1", [0]) == {0: 5}


@pytest.mark.usefixtures("no_pauses")
async def test_a_control_that_makes_its_batch_fail_is_set_aside_too(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Setup()
    obey = it.sink.obey

    async def fail(span: Span, controls: Mapping[int, Control], turns_log: str, **more: bool) -> None:
        if any(each.conversation_id == "odd" for each in controls.values()):
            raise KeyError("a mistake of ours")
        await obey(span, controls, turns_log, **more)

    monkeypatch.setattr(it.sink, "obey", fail)
    it.log.write(erase("a"), erase("odd"), erase("b"), topic=CONTROLS)
    it.log.write(turn("after"))

    await it.archiver.close_window()

    assert it.sink.given == ["erase a", "erase b", "after"]
    assert [(topic, offset) for topic, offset, _ in it.letters.of] == [(CONTROLS, 1)]


@pytest.mark.usefixtures("no_pauses")
async def test_a_sink_that_fails_whatever_it_is_given_has_no_record_set_aside() -> None:
    it = Setup()
    it.log.write(turn("a"), turn("b"))
    it.sink.is_broken = True
    closing = asyncio.create_task(it.archiver.close_window())
    async with asyncio.timeout(30):
        while it.sink.attempts < 4 * MAX_ATTEMPTS:
            await asyncio.sleep(0)

    it.sink.is_broken = False
    await closing

    assert it.sink.given == ["a", "b"]
    assert it.letters.of == []


@pytest.mark.parametrize("failure", [KeyError("a mistake of ours"), SinkUnavailable("not this month")])
async def test_a_partition_that_cannot_be_written_holds_up_no_other(failure: Exception) -> None:
    it = Setup(partitions=3)
    for partition, name in enumerate("abc"):
        it.log.write(turn(name), partition=partition)
    it.sink.failures = [failure]

    with pytest.raises(type(failure)):
        await it.archiver.write()

    assert it.sink.given == ["b", "c"]


async def test_a_record_that_is_no_turn_is_passed_by() -> None:
    it = Setup()
    it.log.write(turn("a"), b"{", turn("b"))

    await it.archiver.write()

    assert it.sink.given == ["a", "b"]
    assert it.letters.of == []


async def test_turns_that_kafka_has_deleted_do_not_hold_up_the_rest() -> None:
    it = Setup()
    it.log.write(*(turn(f"{number}") for number in range(6)))
    it.log.first = 4

    await it.archiver.write()

    assert it.sink.given == ["4", "5"]


async def test_a_log_of_which_all_is_deleted_is_passed() -> None:
    it = Setup()
    it.log.write(*(turn(f"{number}") for number in range(6)))
    it.log.first = 6

    await it.archiver.write()
    it.log.write(turn("6"))
    await it.archiver.write()

    assert it.sink.given == ["6"]


async def test_only_what_this_worker_owns_is_written() -> None:
    it = Setup(partitions=2)
    it.log.write(turn("a"), partition=0)
    it.log.write(turn("b"), partition=1)
    it.owned = {1}

    await it.archiver.write()

    assert it.sink.given == ["b"]


async def test_a_log_that_was_made_anew_is_read_from_its_beginning() -> None:
    it = Setup()
    it.log.write(*(turn(f"old {number}") for number in range(5)))
    await it.archiver.write()

    it.log.records[TURNS, 0][:] = [turn("new")]
    await it.archiver.write()
    await it.archiver.write()

    assert it.sink.given[5:] == ["new"]


async def test_a_broker_that_does_not_know_its_end_yet_makes_nothing_be_read_again() -> None:
    it = Setup()
    it.log.write(*(turn(f"{number}") for number in range(5)))
    await it.archiver.write()

    it.log.hidden = 2
    await it.archiver.write()
    it.log.hidden = 0
    await it.archiver.write()

    assert it.sink.given == [f"{number}" for number in range(5)]


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("limits", [{"turns": 4}, {"turns": 100, "size": 4 * len(turn("0"))}])
async def test_a_window_closes_early_when_a_batch_is_full(limits: Any) -> None:
    it = Setup(seconds=3600, **limits)
    it.log.write(*(turn(f"{number}") for number in range(3)))
    running = asyncio.create_task(it.archiver.run())
    while len(it.sink.given) < 3:
        await asyncio.sleep(0)

    it.log.write(*(turn(f"{number}") for number in range(3, 8)))

    async with asyncio.timeout(30):
        while len(it.sink.given) < 8:
            await asyncio.sleep(0)
    running.cancel()


@pytest.mark.usefixtures("no_pauses")
async def test_a_window_closes_in_time_however_little_waits() -> None:
    it = Setup(turns=1000, seconds=0.05)
    running = asyncio.create_task(it.archiver.run())
    it.log.write(turn("alone"))

    async with asyncio.timeout(30):
        while it.sink.given != ["alone"]:
            await asyncio.sleep(0)
    running.cancel()


FAULTS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 1), st.integers(1, 7)),
        st.tuples(st.just("window"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("fail"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("overtake"), st.integers(0, 1), st.integers(0, 1)),
        st.tuples(st.just("move"), st.integers(0, 1), st.integers(0, 1)),
    ),
    max_size=30,
)


@given(FAULTS)
def test_whatever_two_workers_and_their_sink_go_through_each_turn_is_given_once(
    steps: list[tuple[str, int, int]],
) -> None:
    async def run() -> None:
        it = Setup(partitions=2, turns=3)
        workers = [it.archiver, it.another()]
        written = 0
        for what, which, number in steps:
            match what:
                case "write":
                    it.log.write(*(turn(f"{written + each}") for each in range(number)), partition=which)
                    written += number
                case "fail":
                    it.sink.failures.append(SinkUnavailable("away"))
                case "overtake":
                    it.sink.failures.append(Overtaken("elsewhere"))
                case "move":
                    it.owned = {which, number}
                case "window":
                    await window(workers[which])
        it.owned, it.sink.failures = {0, 1}, []
        await window(workers[0])

        assert sorted(it.sink.given, key=int) == [f"{number}" for number in range(written)]

    async def window(worker: Archiver) -> None:
        with suppress(SinkUnavailable):
            await worker.write()

    asyncio.run(run())
