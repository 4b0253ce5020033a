"""What happens for every token of an answer is the library's sketch, by less."""

import pytest
from ddsketch.mapping import LogarithmicMapping
from hypothesis import given
from hypothesis import strategies as st

from domain.sketches import ACCURACY, LEAST_MS, MOST_MS, Gaps, bin_of

LIBRARY = LogarithmicMapping(ACCURACY)


@given(st.floats(LEAST_MS, MOST_MS))
def test_a_bin_is_that_of_the_library(milliseconds: float) -> None:
    # Right at the border of two bins either may be it: they are computed by another logarithm.
    near = {LIBRARY.key(milliseconds * (1 + tiny)) for tiny in (-1e-12, 0.0, 1e-12)}

    assert bin_of(milliseconds) in near


def test_tokens_have_a_gap_less_than_there_are_of_them() -> None:
    gaps = Gaps()
    assert gaps.bins == {}

    for at in (7.0, 7.02, 7.04, 9.04):
        gaps.token(at)

    assert gaps.bins == {bin_of(20.0): 2, bin_of(2000.0): 1}


@pytest.mark.parametrize("at", [7.0, 6.0])
def test_tokens_that_come_at_once_have_the_shortest_gap(at: float) -> None:
    gaps = Gaps()

    gaps.token(7.0)
    gaps.token(at)

    assert gaps.bins == {bin_of(LEAST_MS): 1}
