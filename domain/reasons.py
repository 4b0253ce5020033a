"""Says why a turn failed, for the person who asked: what happened and what to do, in no program's words.

What a server or a library said goes into the worker's log; here it would show addresses, and at times keys.
"""

import re
from typing import Final

SECRETS: Final = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+|\b(?:sk|pk|key|org|proj)[-_]\S+|\bBearer\s+\S+", re.IGNORECASE)
LONGEST: Final = 300


def no_answer(attempts: int, *, begun: bool) -> str:
    """Say that the model's servers failed, before the answer or within it."""
    asked = "once" if attempts == 1 else f"{attempts} times"
    if begun:
        return f"The model broke off and did not go on, though it was asked {asked}. The text so far is kept."
    return f"The model did not answer, though it was asked {asked}. Please ask again in a few minutes."


def not_asked() -> str:
    """Say that the model's servers failed, and may not be asked again within the turn's time."""
    return "The model is not there or has no room, and did not come back in time. Please ask again in a few minutes."


def no_time(seconds: float) -> str:
    """Say that the answer took too long."""
    return f"The answer was not finished within {seconds:g} seconds, the longest time allowed here."


def taken_up_too_often(claims: int) -> str:
    """Say that a turn was begun again and again."""
    return f"The answer was taken up {claims} times and not finished, so it was given up. Please ask in another way."


def refused(said: str) -> str:
    """Return what a model server said of a request that it refused, if that can be shown: its first line."""
    line = SECRETS.sub("…", next(iter(said.strip().splitlines()), ""))
    return line if len(line) <= LONGEST else f"{line[:LONGEST].rstrip()}…"
