"""Which pieces of an answer count: the token record, and the one fold that every reader and resumer uses.

The rule, applied in log order: the highest epoch claimed so far owns the turn; a piece counts if it carries
that epoch and the next number. Everything else (a paused worker that woke up, a retry after a lost
acknowledgement, what follows a hole) is dropped, by everyone alike. So no two readers can disagree.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

Kind = Literal["claim", "citations", "token", "tool", "end"]


class Token(NamedTuple):
    """One piece of an answer, as it stands in the log and as it is numbered on the wire.

    ``seq`` is the event's number within the turn: 0 is the start, which the first claim brings, and pieces
    count on from 1, across epochs. ``text`` is the piece itself for a ``token``; JSON for a ``claim``
    (what ``turn.started`` says), the ``citations`` (a list of `domain.knowledge.Citation`, before the first token), a
    ``tool`` (OpenAI tool-call deltas) and the ``end`` (see `domain.turns.End`).
    """

    turn_id: str
    epoch: int
    seq: int
    kind: Kind
    text: str


class Fold:
    """The state of one turn after some prefix of its records.

    ``epoch`` is the owner's (-1 before any claim), ``next`` the number that the next piece must carry,
    ``claims`` how often the turn was taken up, ``dropped`` how many records did not count.
    """

    __slots__ = ("claims", "dropped", "ended", "epoch", "next")

    def __init__(self) -> None:
        self.epoch = -1
        self.next = 0
        self.ended = False
        self.claims = 0
        self.dropped = 0

    def feed(self, token: Token) -> Token | None:
        """Take the next record of the log; return it if it is a piece that readers see, else None."""
        if self.ended:
            self.dropped += 1
            return None
        if token.kind == "claim":
            return self._claimed(token)
        if not self.claims or token.epoch != self.epoch or token.seq != self.next:
            self.dropped += 1
            return None
        self.next += 1
        self.ended = token.kind == "end"
        return token

    def _claimed(self, token: Token) -> Token | None:
        if token.epoch <= self.epoch:
            self.dropped += 1
            return None
        self.epoch = token.epoch
        self.claims += 1
        if self.next:
            return None
        self.next = 1
        return token


class TurnInLog(Protocol):
    """A turn as far as this worker has read the log; grows as the log does.

    ``pieces[i].seq == i``. ``cut``: the reading lost its place, and what is here will not grow any more.
    """

    @property
    def fold(self) -> Fold: ...  # noqa: D102
    @property
    def pieces(self) -> Sequence[Token]: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def cut(self) -> bool: ...  # noqa: D102


def next_epoch(generation: int, highest: int) -> int:
    """Return the epoch to claim with: above everything seen, and above every older group generation's."""
    return max(generation << 16, highest + 1)


def text_of(pieces: Iterable[Token]) -> str:
    """Return the answer's text so far."""
    return "".join(piece.text for piece in pieces if piece.kind == "token")
