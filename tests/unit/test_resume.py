"""What joins an interrupted answer: nothing doubled, nothing lost, wherever the texts decide it."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from domain.resume import LAST_WORDS, MIN_OVERLAP, Join, Way, last_words, messages_to_continue

# Two letters, so that texts often begin alike, and often nearly.
alike = st.text(alphabet="ab ", max_size=8)
places = st.lists(st.integers(0, 60), max_size=6)
texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=80)
# What answers are made of, and where they are cut.
ANSWER = (
    "As shown [12], a partition has **one** owner.\n\n```python\ndef owner(partition: int) -> str:\n"
    "    return owners[partition]\n```\n\n- naïve Größe 日本語 🙂 are characters, too\n- see [3] and [4].\n"
)
cuts = st.integers(1, len(ANSWER) - 1)


def cut(text: str, at: Sequence[int]) -> list[str]:
    ends = [0, *sorted(min(place, len(text)) for place in at), len(text)]
    return [text[start:end] for start, end in pairwise(ends)]


def shown(so_far: str, pieces: Sequence[str], way: Way) -> str:
    join = Join(so_far, way)
    return "".join([join.push(piece) for piece in pieces]) + join.close()


def asked(so_far: str, way: Way) -> str:
    """Return the text that the model is given to continue."""
    given_to_model = messages_to_continue([], so_far, way)
    return str(given_to_model[0]["content"]) if given_to_model else ""


# -- a server that continues


@given(texts, texts, places)
def test_a_continued_text_is_the_truth_wherever_it_was_cut(so_far: str, rest: str, at: list[int]) -> None:
    truth = so_far + rest
    new = truth[len(asked(so_far, "prefill")) :]

    assert so_far + shown(so_far, cut(new, at), "prefill") == truth


@given(cuts, places)
def test_of_an_answer_with_all_that_answers_have_too(at: int, pieces: list[int]) -> None:
    so_far = ANSWER[:at]
    new = ANSWER[len(asked(so_far, "prefill")) :]

    assert so_far + shown(so_far, cut(new, pieces), "prefill") == ANSWER


def test_a_server_that_drops_the_space_itself_gets_it_back_from_the_text_so_far() -> None:
    assert shown("one, ", ["two"], "prefill") == "two"


@given(texts)
def test_the_model_is_never_asked_to_go_on_after_white_space(so_far: str) -> None:
    text = asked(so_far, "prefill")

    assert text == text.rstrip()
    assert so_far.startswith(text)
    assert not so_far[len(text) :].strip()


# -- a server of which that is not known


@given(alike, alike, places)
def test_an_answer_begun_anew_goes_on_after_the_text_so_far(so_far: str, rest: str, at: list[int]) -> None:
    assert shown(so_far, cut(so_far + rest, at), "perhaps") == rest


@given(alike, alike, places)
def test_a_continuation_is_shown_whole_unless_it_repeats_the_whole_text_so_far(
    so_far: str, rest: str, at: list[int]
) -> None:
    truth = so_far + rest
    new = truth[len(asked(so_far, "perhaps")) :]
    assume(not new.startswith(so_far) or not so_far)  # "ha" after "ha": no comparison of texts can tell

    assert so_far + shown(so_far, cut(new, at), "perhaps") == truth


@given(alike, alike, places)
def test_nothing_is_held_back_once_it_is_decided(so_far: str, new: str, at: list[int]) -> None:
    join = Join(so_far, "perhaps")
    pushed = ""
    for piece in cut(new, at):
        released = join.push(piece)
        undecided = so_far.startswith(pushed + piece) and pushed + piece != so_far
        decided_before = bool(pushed) and not so_far.startswith(pushed)
        pushed += piece
        if undecided:
            assert released == ""
        elif decided_before and not so_far[-1:].isspace():
            assert released == piece


def test_an_answer_that_ends_while_it_repeats_keeps_its_last_words() -> None:
    join = Join("ha ha ha ha", "perhaps")

    assert join.push("ha ha") == ""
    assert join.close() == "ha ha"
    assert join.close() == ""


# -- a model that is told to go on


def words_of(so_far: str, count: int) -> str:
    """Return the last words of a text, as a model would repeat them."""
    text = so_far.rstrip()
    return text[len(text) - len(" ".join(text.split()[-count:])) :] if text.split() else ""


def is_decidable(repeated: str, so_far: str, new: str) -> bool:
    """Tell whether the repetition is long enough, and not by chance the middle of a longer one."""
    text = " ".join(so_far.split())
    longer = (text[at:] for at in range(len(text) - len(repeated)))
    return len(repeated) >= MIN_OVERLAP and not any(" ".join(new.split()).startswith(end) for end in longer)


sentences = st.lists(
    st.sampled_from(["log", "offset", "the", "of", "Größe", "日本語", "[3]", "a-b"]), min_size=1, max_size=20
)


@given(sentences, sentences, st.integers(2, 12), places, st.sampled_from(["", " ", "\n", '"', "“", "… ", "..."]))
@example(["the", "log", "of", "the", "log"], ["of"], 2, [], "")
def test_repeated_last_words_are_cut_off_whatever_stands_before_them(
    before: list[str], after: list[str], count: int, at: list[int], decoration: str
) -> None:
    so_far, rest = " ".join(before), " " + " ".join(after)
    repeated = " ".join(before[-count:])
    new = repeated + rest
    assume(is_decidable(repeated, so_far, new))

    assert shown(so_far, cut(decoration + new, at), "instruct") == rest


@given(cuts, places)
def test_an_answer_told_to_go_on_is_the_truth_wherever_it_was_cut(at: int, pieces: list[int]) -> None:
    so_far = ANSWER[:at]
    text = so_far.rstrip()
    new = last_words(text) + ANSWER[len(text) :]

    assert so_far + shown(so_far, cut(new, pieces), "instruct") == ANSWER


@given(cuts, places)
def test_an_answer_begun_anew_though_told_to_go_on_is_the_truth_too(at: int, pieces: list[int]) -> None:
    so_far = ANSWER[:at]
    assume(len(so_far.strip()) >= MIN_OVERLAP)

    assert so_far + shown(so_far, cut(ANSWER, pieces), "instruct") == ANSWER


@pytest.mark.parametrize(
    ("so_far", "new", "joined"),
    [
        ("Kafka keeps", "the log.", "Kafka keeps the log."),
        ("Kafka keeps ", "the log.", "Kafka keeps the log."),
        ("Kafka keeps it.", "Then what?", "Kafka keeps it. Then what?"),
        ("as shown [", "3] there", "as shown [3] there"),
        ("日本", "語です", "日本語です"),
        ("It is a partition of the topic", '"a partition of the topic" and', "It is a partition of the topic and"),
        ("It is a partition\n\nof the topic", "partition of the topic and", "It is a partition\n\nof the topic and"),
        ("```python\ndef owner(", "```python\ndef owner(partition):", "```python\ndef owner(partition):"),
        ("```python\nx = 1\n", "```python\ny = 2\n```", "```python\nx = 1\ny = 2\n```"),
        ("```python\nx = 1\n", "```\n\nDone.", "```python\nx = 1\n```\n\nDone."),
    ],
)
def test_what_is_not_repeated_is_joined_as_it_most_likely_goes_on(so_far: str, new: str, joined: str) -> None:
    for pieces in ([new], list(new)):
        assert so_far + shown(so_far, pieces, "instruct") == joined


@given(texts, texts, places, st.sampled_from(["prefill", "perhaps", "instruct"]))
def test_only_the_beginning_of_the_new_text_is_ever_left_out(so_far: str, new: str, at: list[int], way: Way) -> None:
    text = shown(so_far, cut(new, at), way)

    assert new.endswith(text) or (text[0] == " " and new.endswith(text[1:]))


fragments = st.lists(st.sampled_from(["ab", "ba", "a", "log", "```py\n", "```\n", '"', ".", "\n"]), max_size=14).map(
    " ".join
)


@given(fragments, fragments, places, places, st.sampled_from(["prefill", "perhaps", "instruct"]))
def test_how_the_new_text_comes_in_pieces_changes_nothing(
    so_far: str, new: str, one: list[int], other: list[int], way: Way
) -> None:
    assert shown(so_far, cut(new, one), way) == shown(so_far, cut(new, other), way)


# -- what the model reads


def test_the_text_so_far_is_the_beginning_of_the_models_message() -> None:
    question = [{"role": "user", "content": "Hi"}]

    assert messages_to_continue(question, "Hel", "prefill") == [*question, {"role": "assistant", "content": "Hel"}]
    assert messages_to_continue(question, " \n", "prefill") == question


def test_a_model_that_is_told_to_go_on_is_told_its_last_words() -> None:
    so_far = "The log is the truth. " * 10 + "Everything else"

    told = messages_to_continue([{"role": "user", "content": "Hi"}], so_far, "instruct")

    assert [message["role"] for message in told] == ["user", "assistant", "user"]
    assert last_words(so_far) in told[-1]["content"]
    assert last_words(so_far).endswith("is the truth. Everything else")
    assert len(last_words(so_far)) <= LAST_WORDS
