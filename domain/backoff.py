"""How long to wait before the next attempt: twice as long each time up to a bound, and never all at the same moment."""

import random
from collections.abc import Callable
from typing import Final

DOUBLINGS: Final = 30  # more would only make the number too large for a float, after days of attempts


def pause(
    attempt: int, *, first: float = 0.2, longest: float = 10.0, chance: Callable[[], float] = random.random
) -> float:
    """Return the seconds to wait after this attempt, counted from 1: half of a doubled ``first``, or up to all of it.

    ``chance`` gives numbers from 0 to 1. A server that comes back meets those who waited for it spread over half of
    their pause, where without chance they would all come at once and bring it down again.
    """
    whole = min(longest, first * 2.0 ** min(max(attempt, 1) - 1, DOUBLINGS))
    return whole * (1 + chance()) / 2
