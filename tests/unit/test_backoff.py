"""How long to wait before the next attempt."""

from hypothesis import given
from hypothesis import strategies as st

from domain.backoff import pause


def test_the_pause_doubles_up_to_its_bound() -> None:
    pauses = [pause(attempt, first=0.2, longest=1.0, chance=lambda: 1.0) for attempt in range(1, 6)]

    assert pauses == [0.2, 0.4, 0.8, 1.0, 1.0]


def test_those_who_failed_together_do_not_come_back_together() -> None:
    assert pause(1, chance=lambda: 0.0) == 0.1
    assert pause(1, chance=lambda: 1.0) == 0.2


@given(st.integers(0, 10**6), st.floats(0.001, 10), st.floats(10, 100))
def test_no_number_of_attempts_is_too_large(attempt: int, first: float, longest: float) -> None:
    assert first / 2 <= pause(attempt, first=first, longest=longest) <= longest
