"""A rebuild writes what the log has from some offsets on once more, and disturbs no loop that runs beside it."""

from collections.abc import Mapping

import pytest

from domain.errors import LogUnavailable, SinkUnavailable
from domain.spans import Span
from streams import archiving
from streams.archiving import Archiver, Limits
from streams.rebuilding import Rebuilt, rebuild
from streams.records import Control
from tests.unit.test_archiving import CONTROLS, FEEDBACK, TURNS, Letters, Log, MemorySink, erase, thumb, turn

pytestmark = pytest.mark.usefixtures("no_pauses")

LIMITS = Limits(seconds=60, turns=2, bytes=1 << 20)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "FIRST_PAUSE_SECONDS", 0.0)


def worker(sink: MemorySink, log: Log) -> Archiver:
    return Archiver(
        sink, log, LIMITS, turns=TURNS, controls=CONTROLS, feedback=FEEDBACK, owned=lambda: {0, 1}, set_aside=Letters()
    )  # fmt: skip


async def run(sink: MemorySink, log: Log, start: int = 0, batches: list[int] | None = None) -> Rebuilt:
    starts = {TURNS: {0: start, 1: 0}, CONTROLS: {0: 0, 1: 0}, FEEDBACK: {0: 0, 1: 0}}
    done = batches if batches is not None else []
    topics = {"turns": TURNS, "controls": CONTROLS, "feedback": FEEDBACK}
    return await rebuild(sink, log, LIMITS, starts, **topics, on_batch=done.append)


async def test_everything_since_then_is_written_and_the_workers_progress_stays() -> None:
    log, sink = Log(2), MemorySink()
    log.write(*(turn(name) for name in "abcde"))
    log.write(turn("x"), partition=1)
    sink.at = {(f"{TURNS}@1", 0): 4}
    batches: list[int] = []

    rebuilt = await run(sink, log, start=1, batches=batches)

    assert sink.given == ["b", "c", "d", "e", "x"]
    assert sink.at == {(f"{TURNS}@1", 0): 4}
    assert (rebuilt.turns, sum(batches)) == (5, 5)


async def test_erasures_come_before_the_turns() -> None:
    log, sink = Log(2), MemorySink()
    log.write(turn("a"))
    log.write(erase(), topic=CONTROLS)

    await run(sink, log)

    assert sink.given == ["erase c", "a"]


async def test_what_was_said_of_turns_is_written_again_too() -> None:
    log, sink = Log(2), MemorySink()
    log.write(turn("a"))
    log.write(thumb("a"), topic=FEEDBACK)
    sink.at = {(f"{TURNS}@1", 0): 1, (f"{FEEDBACK}@1", 0): 1}

    rebuilt = await run(sink, log)

    assert sink.given == ["a", "rate a"]
    assert rebuilt.turns == 1


async def test_an_outage_of_the_sink_loses_nothing_and_begins_nothing_anew() -> None:
    log, sink = Log(2), MemorySink()
    log.write(*(turn(name) for name in "abcd"))
    sink.failures = [SinkUnavailable("away"), SinkUnavailable("away")]

    assert (await run(sink, log)).turns == 4

    assert sink.given == list("abcd")


async def test_what_the_sink_refuses_is_counted_and_not_set_aside_a_second_time() -> None:
    log, sink = Log(2), MemorySink()
    log.write(*(turn(name) for name in "abc"))
    sink.refuses = {"b"}

    rebuilt = await run(sink, log)

    assert sink.given == ["a", "c"]
    assert rebuilt.refused == {(TURNS, 0, 1)}


class Busy(MemorySink):
    """A store to whose log a control is added while the last one is carried out, and then a worker obeys it."""

    def __init__(self, log: Log, later: list[bytes]) -> None:
        super().__init__()
        self._log = log
        self._later = later

    async def obey(self, span: Span, controls: Mapping[int, Control], turns_log: str, *, again: bool = False) -> None:
        if again and self._later:
            self._log.write(self._later.pop(0), topic=CONTROLS)
            await worker(self, self._log).write()
        await super().obey(span, controls, turns_log, again=again)


async def test_what_a_worker_has_obeyed_meanwhile_stands_last() -> None:
    log = Log(2)
    log.write(erase("c1"), topic=CONTROLS)
    sink = Busy(log, [erase("c2"), erase("c3")])

    await run(sink, log)

    assert sink.given[-1] == "erase c3"
    again = [each for each in sink.given if each == "erase c3"]
    assert len(again) == 2, "by the worker, and once more after it"


async def test_a_broker_that_does_not_know_its_end_yet_does_not_end_it() -> None:
    log, sink = Log(2), MemorySink()
    log.write(*(turn(name) for name in "abcd"))
    seen = log.ends

    async def ends(topic: str, partitions: object) -> dict[int, int]:
        log.hidden = 2 if calls.pop(0) else 0
        return await seen(topic, partitions)  # type: ignore[arg-type]

    calls = [False, True, False] + [False] * 20
    log.ends = ends  # type: ignore[method-assign]

    assert (await run(sink, log)).turns == 4


async def test_a_log_that_is_away_from_the_first_is_said_at_once() -> None:
    log = Log(2)
    log.down = True

    with pytest.raises(LogUnavailable):
        await run(MemorySink(), log)
