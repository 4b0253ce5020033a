"""What of a conversation is kept at hand, and which of its turns lead up to a question.

Turns form a tree: regenerate and edit put a new turn beside an old one, under the same parent. The context of
a question is the path from the root to its parent.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

CHARACTERS_PER_TOKEN = 3.5  # of English prose and code, by common tokenizers; counted low so that a prompt fits
TOKENS_PER_MESSAGE = 4  # role and separators
TITLE_LENGTH = 60


class Spoken(Protocol):
    """A finished turn, as far as context needs it."""

    @property
    def turn_id(self) -> str: ...  # noqa: D102
    @property
    def parent(self) -> str: ...  # noqa: D102
    @property
    def input(self) -> str: ...  # noqa: D102
    @property
    def answer(self) -> str: ...  # noqa: D102
    @property
    def tokens(self) -> int:
        """Return how many model tokens question and answer have, 0 where nobody has counted."""
        ...


S = TypeVar("S", bound=Spoken)


def tokens_in(text: str, characters_per_token: float = CHARACTERS_PER_TOKEN) -> int:
    """Return about how many model tokens a text has, rather too many than too few."""
    return int(len(text) / characters_per_token) + 1


def cost(turn: Spoken, characters_per_token: float = CHARACTERS_PER_TOKEN) -> int:
    """Return how many model tokens a turn takes in a prompt: as counted when it was closed, else about."""
    said = turn.tokens or sum(tokens_in(text, characters_per_token) for text in (turn.input, turn.answer))
    return said + 2 * TOKENS_PER_MESSAGE


def last_that_fit(turns: Sequence[S], budget: int, characters_per_token: float = CHARACTERS_PER_TOKEN) -> list[S]:
    """Return the longest tail of the turns whose cost is within the budget, oldest first."""
    kept: list[S] = []
    left = budget
    for turn in reversed(turns):
        left -= cost(turn, characters_per_token)
        if left < 0:
            break
        kept.append(turn)
    return kept[::-1]


def parent_of_next(turns: Sequence[Spoken], beside: str = "", parent: str = "") -> str:
    """Return the turn that a new one follows: the latest, or what the turn ``beside`` it follows.

    That is ``parent`` where the turn beside it is not among these: it may have left them, and then the latest of them
    comes long after it.
    """
    if beside:
        return next((turn.parent for turn in turns if turn.turn_id == beside), parent)
    return turns[-1].turn_id if turns else ""


def path_to(turns: Sequence[S], turn_id: str) -> list[S]:
    """Return the turns from the oldest that is kept to this one, along its branch."""
    known = {turn.turn_id: turn for turn in turns}
    path: list[S] = []
    while turn_id in known and len(path) < len(known):
        path.append(known[turn_id])
        turn_id = known[turn_id].parent
    return path[::-1]


def title_from(question: str) -> str:
    """Return a title for a conversation from its first question: its first line, cut at a word."""
    line = " ".join(question.strip().split("\n", 1)[0].split())
    if len(line) <= TITLE_LENGTH:
        return line
    cut = line[:TITLE_LENGTH].rsplit(" ", 1)[0]
    return f"{cut.rstrip('.,;:!?')}…"
