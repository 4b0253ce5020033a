"""One turn as the log has it: what its readers share, and how they wait for more."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from config import metrics
from domain.errors import LogUnavailable
from domain.tokens import Fold, Token, text_of


class LoggedTurn:
    """The accepted pieces of one turn so far; ``pieces[i].seq == i``. Grows while it is attached.

    Readers keep a position in ``pieces`` and nothing else, so a slow one costs no memory and delays nobody.
    ``expired``: the log had already deleted what stood before the first piece it still has. ``cut``: the tail lost the
    thread of this turn, so that it has to be attached again.
    """

    __slots__ = (
        "_counted",
        "_listeners",
        "_raw",
        "_why_cut",
        "cut",
        "expired",
        "fold",
        "last",
        "pieces",
        "readers",
        "since",
        "touched",
        "turn_id",
    )

    def __init__(self, turn_id: str, since: int, now: float) -> None:
        self.turn_id = turn_id
        self.fold = Fold()
        self.pieces: list[Token] = []
        self.expired = False
        # For the hub: every record of the turn from this offset on is here; the last one's offset.
        self.since = since
        self.last = -1
        self.touched = now
        self.readers = 0
        # Records that wait until those before them have been read back; None once the fold is live.
        self._raw: list[Token] | None = []
        self._listeners: list[Callable[[], object]] = []
        self._counted = 0
        self.cut = False
        self._why_cut = ""

    @property
    def text(self) -> str:
        """The answer so far."""
        return text_of(self.pieces)

    @property
    def live(self) -> bool:
        """Whether the pieces are complete, from the first to what the tail has read."""
        return self._raw is None

    @property
    def size(self) -> int:
        """How many tokens this holds in memory."""
        return len(self.pieces) + len(self._raw or ())

    async def changed(self, seen: int) -> None:
        """Wait until there are more than ``seen`` pieces, or the turn has another owner than at the call.

        Returns at once where the turn has ended: nothing more will come. Raises `LogUnavailable` when the tail
        lost its place in the log or is closed.
        """
        epoch = self.fold.epoch
        news = asyncio.Event()
        with self.heard_by(news.set):
            while len(self.pieces) <= seen and self.fold.epoch == epoch and not self.fold.ended:
                if self.cut:
                    raise LogUnavailable(self._why_cut)
                news.clear()
                await news.wait()

    @contextmanager
    def heard_by(self, listener: Callable[[], object]) -> Iterator[None]:
        """Call a function, which raises nothing, whenever something has come, and when nothing more will."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    # -- for the hub

    def take(self, token: Token) -> None:
        """Take the turn's next record from the tail."""
        if self._raw is not None:
            self._raw.append(token)
        elif self.fold.feed(token) is not None:
            self.pieces.append(token)

    def begin(self, fold: Fold, pieces: list[Token]) -> None:
        """Go live, with what came before ``since``; records that the tail read meanwhile follow it."""
        raw, self._raw = self._raw or [], None
        self.fold, self.pieces = fold, pieces
        self._counted = fold.dropped  # in the past: by whoever tailed the log then
        for token in raw:
            self.take(token)
        self._count_dropped()

    def _count_dropped(self) -> None:
        metrics.fenced_records.inc(self.fold.dropped - self._counted)
        self._counted = self.fold.dropped

    def wake(self) -> None:
        """Tell the readers that something has come, and the metrics what the fold has dropped since the last call."""
        if self.fold.dropped > self._counted:
            self._count_dropped()
        for listener in self._listeners:
            listener()

    def cut_off(self, why: str) -> None:
        """Tell the readers that nothing more will come here."""
        self.cut, self._why_cut = True, why
        self.wake()
