"""The overlap filter: one rule, whatever the pieces, and no word held back for longer than needed."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from domain.resume import Overlap

# Two letters, so that texts often begin alike, and often nearly.
words = st.text(alphabet="ab", max_size=8)
cuts = st.lists(st.integers(0, 20), max_size=6)


def cut(text: str, places: Sequence[int]) -> list[str]:
    ends = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(ends)]


def shown(so_far: str, pieces: Sequence[str]) -> str:
    overlap = Overlap(so_far)
    return "".join([overlap.push(piece) for piece in pieces]) + overlap.close()


@given(words, words, cuts)
def test_an_answer_begun_anew_goes_on_after_the_text_so_far(so_far: str, rest: str, places: list[int]) -> None:
    assert shown(so_far, cut(so_far + rest, places)) == rest


@given(words, words, cuts)
def test_any_other_text_is_a_continuation_and_is_shown_whole(so_far: str, new: str, places: list[int]) -> None:
    expected = new.removeprefix(so_far)

    assert shown(so_far, cut(new, places)) == expected


@given(words, words, cuts)
def test_nothing_is_shown_before_it_is_decided_and_nothing_is_held_after(
    so_far: str, new: str, places: list[int]
) -> None:
    overlap = Overlap(so_far)
    pushed = ""
    for piece in cut(new, places):
        released = overlap.push(piece)
        decided = pushed.startswith(so_far) or not so_far.startswith(pushed)
        pushed += piece
        if decided:
            assert released == piece
        elif pushed != so_far and so_far.startswith(pushed):
            assert released == ""


def test_a_model_that_starts_alike_and_departs_is_shown_from_its_first_word() -> None:
    overlap = Overlap("The log is the truth.")

    assert overlap.push("The ") == ""
    assert overlap.push("log") == ""
    assert overlap.push(" never lies") == "The log never lies"
    assert overlap.push(".") == "."


def test_an_answer_that_ends_while_it_repeats_keeps_its_last_words() -> None:
    overlap = Overlap("ha ha ha ha")

    assert overlap.push("ha ha") == ""
    assert overlap.close() == "ha ha"
    assert overlap.close() == ""
