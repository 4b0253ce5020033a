"""Tumbling windows in event time: which ones a moment falls into, when they may close, how long they can be corrected.

Two times meet here and are never mixed. That of an event says where it belongs; this machine's clock only says when
to stop waiting for more. So a clock that jumps makes windows close early or late, and then there are corrections, but
nothing is counted twice, in another window, or not at all. Times are Unix ms; a window has its start and not its end.
"""

from typing import Final

SIZES_MS: Final = (10_000, 60_000, 300_000)  # each is a part of the next
LARGEST_MS: Final = SIZES_MS[-1]


def start_of(at: int, size: int) -> int:
    """Return the start of the window of a size that a moment falls into."""
    return at - at % size


def closable(at: int, *, size: int, grace: int) -> int:
    """Return the end of the latest window of a size that was over for ``grace`` at a moment."""
    return start_of(max(at - grace, 0), size)


def purgeable(now: int, *, latest: int, keep: int) -> int:
    """Return the moment before which nothing is corrected any more, by the clock and by the latest event seen.

    Either can be an hour ahead. A clock alone that was set wrong would have everything forgotten.
    """
    return start_of(max(min(now, latest) - keep, 0), LARGEST_MS)


class CaughtUp:
    """Tells when a partition's events were handled up to where its log ended: of what came before, nothing is missing.

    Under steady traffic the log has always just grown, so its end is kept in mind until that much is handled.
    """

    def __init__(self) -> None:
        self._mark: tuple[int, int] | None = None

    def look(self, now: int, *, end: int, handled: int) -> int | None:
        """Return the latest moment up to which everything is handled, None if there is none since the last look.

        ``end`` is the offset after the log's last record, asked for at ``now`` or later; ``handled`` the one after
        the last record that was handled.
        """
        mark = self._mark
        if handled >= end:
            mark = (now, end)
        elif mark is None:
            mark = self._mark = (now, end)
        if handled < mark[1]:
            return None
        self._mark = None
        return mark[0]
