"""However a list is split between tables and archive, reading it page by page gives each item once, in order."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from domain.history import Page, is_near, page_of


def place(item: int) -> int:
    return item


@dataclass
class Split:
    """A list of numbers, the latest the highest. ``floor``: above it the tables have everything, None: from the first.

    What is ``late`` is not in the archive yet although it has left the tables; it is read from elsewhere.
    """

    near: set[int]
    stored: set[int]
    late: set[int] = field(default_factory=set)
    floor: int | None = None
    looks: int = 0

    def read(self, before: int | None, limit: int) -> Page[int]:
        if is_near(self.near, place, floor=self.floor, before=before, limit=limit):
            return page_of(self.near, (), place, before=before, limit=limit)
        self.looks += 1
        rest = [each for each in self.stored - self.near if before is None or each < before]
        latest = sorted(rest, reverse=True)[: limit + 1]
        reaches = latest[-1] if len(latest) > limit else -1
        return page_of(
            self.near, [*latest, *(each for each in self.late if each > reaches)], place, before=before, limit=limit
        )

    def add(self, item: int) -> None:
        """A new item comes in at the front."""
        self.near.add(item)

    def leave(self) -> None:
        """The oldest has to leave the tables."""
        if len(self.near) > 1:
            oldest = min(self.near)
            self.near.discard(oldest)
            if oldest not in self.stored:
                self.late.add(oldest)
            self.floor = max(oldest, self.floor if self.floor is not None else oldest)

    def archive(self) -> None:
        """The archive catches up."""
        self.stored |= self.near | self.late
        self.late = set()


@st.composite
def splits(draw: st.DrawFn) -> Split:
    items = draw(st.sets(st.integers(0, 1000), max_size=40))
    floor = draw(st.none() | st.integers(0, 1000))
    below = {item for item in items if floor is not None and item <= floor}
    kept = {item for item in below if draw(st.booleans())}  # of those that left, some left out of turn
    late = {item for item in below - kept if draw(st.booleans())}
    both = {item for item in (items - below) | kept if draw(st.booleans())}
    return Split(near=(items - below) | kept, stored=(below - kept - late) | both, late=late, floor=floor)


changes = st.lists(st.lists(st.sampled_from(["add", "leave", "archive"]), max_size=4), max_size=60)


@given(splits(), st.integers(1, 12), changes)
def test_page_by_page_everything_comes_once_in_order_whatever_happens_meanwhile(
    split: Split, limit: int, meanwhile: list[list[str]]
) -> None:
    expected = sorted(split.near | split.stored | split.late, reverse=True)
    seen: list[int] = []
    newest, before, more = 2000, None, True

    while more:
        page = split.read(before, limit)
        assert len(page.items) <= limit
        assert page.items or not page.has_more
        seen += page.items
        before, more = (seen[-1] if seen else None), page.has_more
        for change in meanwhile.pop() if meanwhile else ():
            newest += 1
            match change:
                case "add":
                    split.add(newest)
                case "leave":
                    split.leave()
                case _:
                    split.archive()

    assert seen == expected


@given(st.sets(st.integers(0, 100)), st.integers(1, 30))
def test_what_is_all_in_the_tables_needs_no_archive(near: set[int], limit: int) -> None:
    split = Split(near=near, stored=set())

    assert split.read(None, limit) == Page(sorted(near, reverse=True)[:limit], len(near) > limit)
    assert split.looks == 0


def test_the_archive_is_asked_once_the_tables_do_not_know_what_follows() -> None:
    split = Split(near={5, 6, 7, 8}, stored={1, 2, 3, 4}, floor=4)

    assert split.read(None, 3) == Page([8, 7, 6], True)
    assert split.looks == 0
    assert split.read(6, 3) == Page([5, 4, 3], True)
    assert split.looks == 1
