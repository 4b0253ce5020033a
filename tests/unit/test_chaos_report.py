"""A silence is put down to the fault that caused it, and to nothing else."""

import pytest

from bench.campaign.clients import Gap, Turn
from bench.campaign.report import NO_FAULT, NORMAL, Mark, silences
from bench.campaign.schedule import Fault, errand


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


def test_a_turn_whose_model_failed_does_not_count_against_a_machine() -> None:
    found = silences([turn((99.9, 103.0), affliction="model stalls")], [KILL, mark("model stalls", 99.0, 99.0)])

    assert (found["worker SIGKILL"].turns, found["model stalls"].turns) == (0, 1)


def test_of_a_turn_the_longest_silence_counts_and_of_turns_the_quantiles() -> None:
    turns = [turn((99.9, 100.9), (100.2, 100.2 + number)) for number in range(1, 21)]

    row = silences(turns, [KILL])["worker SIGKILL"]

    assert (row.faults, row.turns) == (1, 20)
    assert (row.p50, row.p95, row.longest) == pytest.approx((11.0, 20.0, 20.0))
