"""A server that fails is left alone, and found again when it is back."""

from hypothesis import given
from hypothesis import strategies as st

from domain.breaker import (
    DOUBTFUL_SECONDS,
    FIRST_SECONDS,
    LONGEST_SECONDS,
    LONGEST_WISH_SECONDS,
    OPENS_AFTER,
    TRIAL_SECONDS,
    Breaker,
)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(OPENS_AFTER):
        breaker.failed(now)
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker()
    for _ in range(OPENS_AFTER - 1):
        breaker.failed(0.0)
    assert breaker.admits(0.0)

    breaker.failed(0.0)

    assert not breaker.admits(0.0)
    assert breaker.state(0.0) == "open"


def test_an_answer_in_between_starts_the_count_anew() -> None:
    breaker = Breaker()
    for _ in range(3 * OPENS_AFTER):
        breaker.failed(0.0)
        breaker.completed()

    assert breaker.state(0.0) == "closed"


def test_a_server_that_asks_for_time_gets_it_at_once() -> None:
    breaker = Breaker()

    breaker.failed(10.0, retry_after=7.0)

    assert not breaker.admits(16.9)
    assert breaker.wait(15.0) == 2.0
    assert breaker.admits(17.0)


def test_a_wish_for_hours_is_cut_to_a_minute() -> None:
    breaker = Breaker()

    breaker.failed(0.0, retry_after=86_400.0)

    assert breaker.admits(LONGEST_WISH_SECONDS)


def test_after_its_pause_one_request_a_second_tries_it() -> None:
    breaker = opened()
    now = FIRST_SECONDS
    assert breaker.state(now) == "half-open"
    assert breaker.admits(now)

    breaker.asked(now)

    assert breaker.state(now) == "half-open"
    assert not breaker.admits(now + TRIAL_SECONDS / 2)
    assert breaker.admits(now + TRIAL_SECONDS)


def test_a_trial_that_is_answered_closes_it_and_one_that_then_breaks_off_opens_it_again() -> None:
    breaker = opened()
    breaker.asked(FIRST_SECONDS)
    breaker.answered()
    assert breaker.state(FIRST_SECONDS) == "closed"

    breaker.failed(FIRST_SECONDS)

    assert breaker.state(FIRST_SECONDS) == "open"


def test_a_trial_that_fails_makes_the_pause_longer_up_to_a_bound() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(20):
        now += breaker.wait(now)
        breaker.asked(now)
        breaker.failed(now)
        waits.append(breaker.wait(now))

    assert waits[-1] > FIRST_SECONDS
    assert max(waits) <= LONGEST_SECONDS


def test_a_hundred_answers_that_break_in_one_moment_count_as_one_opening() -> None:
    few, many = opened(), opened()
    for _ in range(100):
        many.failed(0.0)

    assert many.wait(0.0) <= FIRST_SECONDS
    assert few.wait(0.0) <= FIRST_SECONDS


def test_who_failed_lately_is_doubtful_until_it_answers_or_time_passes() -> None:
    breaker = Breaker()
    breaker.failed(0.0)
    assert breaker.doubtful(DOUBTFUL_SECONDS - 1)
    assert not breaker.doubtful(DOUBTFUL_SECONDS)

    breaker.completed()

    assert not breaker.doubtful(0.0)


steps = st.lists(
    st.tuples(st.sampled_from(["ask", "answered", "completed", "failed", "wish"]), st.floats(0, 5)), max_size=60
)


@given(steps)
def test_whatever_happens_it_is_asked_again_within_a_minute_and_one_whole_answer_makes_it_well(
    happened: list[tuple[str, float]],
) -> None:
    breaker, now = Breaker(), 0.0
    for what, seconds in happened:
        now += seconds
        match what:
            case "ask" if breaker.admits(now):
                breaker.asked(now)
            case "answered":
                breaker.answered()
            case "completed":
                breaker.completed()
            case "failed":
                breaker.failed(now)
            case "wish":
                breaker.failed(now, retry_after=1e9)
            case _:
                pass
        assert breaker.admits(now) == (breaker.wait(now) == 0.0)
        assert breaker.admits(now + LONGEST_WISH_SECONDS)

    breaker.completed()

    assert breaker.state(now) == "closed"
