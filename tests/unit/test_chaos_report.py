"""A silence is put down to the fault that caused it, and to nothing else; a missed goal fails a campaign."""

from pathlib import Path

import pytest

from bench.campaign import report
from bench.campaign.clients import Gap, Turn
from bench.campaign.report import FOUND, GOALS, NO_FAULT, NORMAL, SMALL_SLACK, Campaign, Mark, silences
from bench.campaign.schedule import NOT_DONE, Fault, errand
from bench.campaign.verify import Tally, Verdict


def mark(kind: str, began: float, steady: float) -> Mark:
    """Return a fault that was done."""
    return Mark(Fault(0, 0.0, kind, 0, 0.0), began, healed=began, steady=steady)


def turn(*gaps: tuple[float, float], affliction: str = "") -> Turn:
    """Return a turn whose reader saw nothing in these spans."""
    found = Turn(errand(1, 1, slots=1, tenants=1), "q", "c", "t", 0.0, 0.0, 0.0, affliction=affliction)
    found.seen.gaps = [Gap(since, until, until - since) for since, until in gaps]
    return found


KILL = mark("worker SIGKILL", 100.0, 106.0)


@pytest.mark.parametrize(
    ("gap", "row"),
    [
        ((99.9, 100.7), "worker SIGKILL"),
        ((100.4, 101.0), "worker SIGKILL"),
        ((104.0, 105.0), NORMAL),
        ((50.0, 51.0), NO_FAULT),
        ((98.0, 99.9), NO_FAULT),
        ((108.0, 109.0), NO_FAULT),
    ],
)
def test_a_silence_belongs_to_the_fault_that_it_overlaps_and_follows(gap: tuple[float, float], row: str) -> None:
    found = silences([turn(gap)], [KILL])

    assert [name for name, silence in found.items() if silence.turns] == [row]


def test_of_two_faults_the_later_counts() -> None:
    found = silences([turn((109.9, 111.0))], [KILL, mark("broker killed: leader", 106.0, 130.0)])

    assert found["broker killed: leader"].turns == 1


def test_a_turn_whose_model_failed_has_its_silence_there() -> None:
    found = silences([turn((99.9, 103.0), affliction="model stalls")], [mark("model stalls", 99.0, 99.0)])

    assert found["model stalls"].turns == 1


def test_a_silence_counts_for_none_if_a_model_failed_and_a_machine_too() -> None:
    stalls = mark("model stalls", 99.0, 99.0)
    found = silences([turn((99.9, 103.0), (104.0, 104.5), affliction="model stalls")], [KILL, stalls])

    assert found["worker SIGKILL"].turns == 0
    assert found["model stalls"].longest == pytest.approx(0.5)


def test_a_fault_that_could_not_be_done_has_no_row_and_is_told() -> None:
    full = mark("disk full", 100.0, 106.0)
    full.note = f"{NOT_DONE}nothing can be mounted here"
    done = campaign([turn((100.1, 101.0))], [full, full])

    assert "disk full" not in silences(done.turns, done.marks)
    assert silences(done.turns, done.marks)[NO_FAULT].turns == 1
    assert report.goals(done) == ["disk full: not done, 2 times (nobody: nothing can be mounted here)"]
    assert "\n0 faults and" in report.page(done)


def campaign(turns: list[Turn], marks: list[Mark], *, slack: float = 1.0) -> Campaign:
    """Return a campaign in which nothing was lost."""
    verdict = Verdict(Tally(accepted=len(turns)), [])
    return Campaign(1, "python -m bench.chaos", "a machine", Path(), 1.0, turns, marks, verdict, slack=slack)


@pytest.mark.parametrize("kind", ["worker SIGKILL", "host lost", "worker SIGTERM", "broker killed: coordinator"])
def test_a_missed_goal_fails_a_campaign_and_a_small_one_only_if_it_is_missed_by_far(kind: str) -> None:
    limit = next(seconds for name, seconds in GOALS.items() if kind.startswith(name))
    marks = [mark(kind, 100.0, 130.0)]

    def kept(seconds: float, *, slack: float = 1.0) -> bool:
        return campaign([turn((100.0, 100.0 + seconds))], marks, slack=slack).kept

    assert kept(limit - 0.01)
    assert not kept(limit + 0.01)
    assert kept(limit + 0.01, slack=SMALL_SLACK)
    assert not kept(SMALL_SLACK * limit + 0.01, slack=SMALL_SLACK)


def test_a_missed_goal_is_named_in_what_is_said_of_the_failure() -> None:
    done = campaign([turn((100.0, 102.0))], [KILL])

    assert "worker SIGKILL: p95 2.00 s of 1.5 s allowed: MISSED (1 turns)" in report.failure(done)


def test_the_page_has_what_people_wrote_of_what_was_found() -> None:
    assert FOUND.read_text().strip() in report.page(campaign([], []))


def test_of_a_turn_the_longest_silence_counts_and_of_turns_the_quantiles() -> None:
    turns = [turn((99.9, 100.9), (100.2, 100.2 + number)) for number in range(1, 21)]

    row = silences(turns, [KILL])["worker SIGKILL"]

    assert (row.faults, row.turns) == (1, 20)
    assert (row.p50, row.p95, row.longest) == pytest.approx((11.0, 20.0, 20.0))
