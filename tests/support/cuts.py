"""Byte strings cut the way that a network cuts them: anywhere."""

from itertools import pairwise

from hypothesis import strategies as st


def cut_anywhere(data: st.DataObject, whole: bytes) -> list[bytes]:
    """Return the same bytes in pieces, none of which has to be an event, a line or a character."""
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=12).map(sorted), label="cuts")
    return [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)])]
