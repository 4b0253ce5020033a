"""A list that two sides hold: what is recent in a worker's tables, what is older in the archive.

The tables are ahead of the archive, so what both have is taken from them, and the archive is asked for the rest alone.
An item's place in the list says where a page begins, so whatever comes in at the front meanwhile moves none of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, TypeVar

from domain.generation import Usage
from domain.knowledge import Citation, Retrieval
from domain.turns import Cache, Failure, Outcome, Timings

LEFT: Final = 100
"""How many turns that left a row it remembers by their ids, in 4 kB. The archive has them minutes later, as a rule."""

T = TypeVar("T")


class Owner(NamedTuple):
    """Whose past it is."""

    tenant: str
    user: str


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """A conversation as the archive has it, without turns. Times are Unix ms."""

    conversation_id: str
    title: str
    created_at: int
    updated_at: int
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """A finished turn as the archive has it. Times are Unix ms. Not every turn is shown ``in_conversation``."""

    turn_id: str
    conversation_id: str
    parent: str
    input: str
    answer: str
    model: str
    prompt: str
    outcome: Outcome
    finish: str
    error: Failure | None
    usage: Usage
    timings: Timings
    claims: int
    asked_at: int
    ended_at: int
    in_conversation: bool
    metadata: dict[str, Any]
    citations: list[Citation] = field(default_factory=list)
    retrieval: Retrieval | None = None
    cache: Cache | None = None
    experiment: str = ""
    bare: bool = False


@dataclass(frozen=True, slots=True)
class StoredFeedback:
    """What was said of a turn, as the archive has it. Times are Unix ms."""

    turn_id: str
    rating: int
    comment: str
    correction: str
    given_at: int


class Page(NamedTuple, Generic[T]):
    """A part of a list, the latest first. ``has_more``: whether there are older ones."""

    items: list[T]
    has_more: bool


def page_of(
    near: Iterable[T], stored: Iterable[T], place: Callable[[T], Any], *, before: Any = None, limit: int
) -> Page[T]:
    """Return the ``limit`` latest items that stand before a place.

    ``near``: what the tables have. ``stored``: of what the archive has besides, before that place, at least the
    ``limit`` + 1 latest.
    """
    found = sorted((each for each in (*near, *stored) if before is None or place(each) < before), key=place)
    return Page(found[: -limit - 1 : -1], len(found) > limit)


def is_near(near: Iterable[T], place: Callable[[T], Any], *, floor: Any, before: Any = None, limit: int) -> bool:
    """Return whether the tables alone have a page and know what follows it.

    ``floor``: the place above which they have everything; None if that is from the beginning.
    """
    if floor is None:
        return True
    sure = (each for each in near if place(each) > floor and (before is None or place(each) < before))
    return sum(1 for _ in sure) > limit
