"""Durations as DDSketch counts them: bins that are 2 % apart, so that a quantile is within 1 % of the true one.

Bin i holds what is longer than g^(i-1) ms and not longer than g^i, g = 1.01 / 0.99: the library's logarithmic mapping
(https://github.com/DataDog/sketches-py). Here is the half of it that is wanted for every token of every answer.
"""

from array import array
from itertools import pairwise
from math import ceil, log
from typing import Final

ACCURACY: Final = 0.01
# What is shorter or longer counts as this: it bounds a sketch to 1,267 bins. No turn of ours is 11 days long.
LEAST_MS: Final = 0.01
MOST_MS: Final = 1e9

Bins = dict[int, int]

_BINS_A_LOG: Final = 1 / log((1 + ACCURACY) / (1 - ACCURACY))


def bin_of(milliseconds: float) -> int:
    """Return the bin of a duration."""
    if not LEAST_MS <= milliseconds <= MOST_MS:  # half the time of min and max
        milliseconds = LEAST_MS if milliseconds < LEAST_MS else MOST_MS
    return ceil(log(milliseconds) * _BINS_A_LOG)


class Gaps:
    """How long after one another tokens came."""

    __slots__ = ("_at", "token")

    def __init__(self) -> None:
        self._at = array("d")
        # Takes note of a token by its time in seconds, by a monotonic clock. Bound as it is: for every token.
        self.token = self._at.append

    @property
    def bins(self) -> Bins:
        """Return the gaps in bins; two tokens have one."""
        bins: Bins = {}
        for before, at in pairwise(self._at):
            gap = bin_of((at - before) * 1000)
            bins[gap] = bins.get(gap, 0) + 1
        return bins
