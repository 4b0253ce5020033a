"""Frames go out on a beat, and a slow Kafka gets fewer of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.pace import MOST_BEATS, Pace

BEAT = 0.005
WHILE = 200

taken = st.floats(0, 60)
moments = st.floats(0, 1e6)


def after(pace: Pace, *, frames: int = WHILE, seconds: float) -> Pace:
    for _ in range(frames):
        pace.took(seconds)
    return pace


@given(st.lists(taken, max_size=100), moments)
def test_the_next_frame_is_on_the_beat_and_neither_too_soon_nor_too_late(took: list[float], sent_at: float) -> None:
    pace = Pace(BEAT)
    for seconds in took:
        pace.took(seconds)

    due = pace.after(sent_at)
    assert pace.gap / 2 - 1e-6 <= due - sent_at <= 1.5 * pace.gap + 1e-6
    assert abs(due / BEAT - round(due / BEAT)) < 1e-3
    assert BEAT <= pace.gap <= MOST_BEATS * BEAT + 1e-9


@pytest.mark.parametrize(
    ("takes", "beats"),
    [(0.001, 1), (0.003, 1), (0.005, 2), (0.008, 3), (0.010, 4), (5.0, MOST_BEATS)],
)
def test_a_frame_is_under_way_for_half_of_the_time_at_most_until_there_are_too_few(takes: float, beats: int) -> None:
    assert after(Pace(BEAT), seconds=takes).gap == pytest.approx(beats * BEAT)


def test_partitions_share_the_beat_whenever_they_sent_last() -> None:
    pace = after(Pace(BEAT), seconds=0.010)

    due = {round(pace.after(10.0 + at / 10_000) / pace.gap, 6) for at in range(200)}
    assert len(due) == 2  # a partition that sent in the first half of a gap is due with the rest of that half


def test_an_outage_is_forgotten_within_a_second_of_one_streams_tokens() -> None:
    pace = after(after(Pace(BEAT), seconds=0.001), frames=3, seconds=30.0)

    assert after(pace, frames=50, seconds=0.001).gap == BEAT


def test_one_slow_frame_changes_nothing() -> None:
    assert after(after(Pace(BEAT), seconds=0.001), frames=1, seconds=30.0).gap == BEAT


def test_without_a_beat_every_frame_goes_at_once() -> None:
    assert after(Pace(0.0), seconds=1.0).after(12.5) == 12.5
