"""A document is cut where its structure is, nothing of it is lost, and no passage is larger than a model reads."""

import re
import textwrap
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from domain.passages import BESIDE, Piece, model_tokens, split


def letters(text: str) -> str:
    return re.sub(r"\s+", "", text)


def test_passages_carry_the_headings_that_lead_to_them() -> None:
    text = "# Kafka\nIntro.\n\n## Topics\n### Keys\nBy key.\n\n## Brokers\nMany."

    assert split(text) == [
        Piece("Kafka", "Intro."),
        Piece("Kafka > Topics > Keys", "By key."),
        Piece("Kafka > Brokers", "Many."),
    ]


def test_underlined_headings_are_headings() -> None:
    assert split("Kafka\n=====\nA log.\n\nTopics\n------\nMany.") == [
        Piece("Kafka", "A log."),
        Piece("Kafka > Topics", "Many."),
    ]


def test_a_heading_with_nothing_under_it_is_found_by_itself() -> None:
    assert [piece.text for piece in split("# A\n# B\n")] == ["A", "B"]


def test_small_neighbours_share_a_passage() -> None:
    assert split("One.\n\nTwo.\n\n- a\n- b") == [Piece("", "One.\n\nTwo.\n\n- a\n- b")]


def test_a_number_sign_within_code_is_no_heading() -> None:
    text = "# Shell\n```sh\n# not a heading\nls\n```\nDone."

    assert split(text) == [Piece("Shell", "```sh\n# not a heading\nls\n```\n\nDone.")]


def test_each_part_of_a_long_table_has_its_head() -> None:
    rows = [f"| key-{number} | value of {number} |" for number in range(60)]
    text = "\n".join(["| key | value |", "|---|---|", *rows])

    pieces = split(text, most=100)

    assert len(pieces) > 3
    assert all(piece.text.startswith("| key | value |\n|---|---|\n| key-") for piece in pieces)
    assert [row for piece in pieces for row in piece.text.split("\n")[2:]] == rows


def test_long_code_is_cut_at_blank_lines() -> None:
    functions = [f"def f{number}():\n    a = {number}\n    return a" for number in range(30)]
    text = "```python\n" + "\n\n".join(functions) + "\n```"

    pieces = split(text, most=60)

    assert len(pieces) > 3
    assert all(piece.text.startswith(("```python\ndef f", "def f")) for piece in pieces)
    assert "\n\n".join(piece.text for piece in pieces) == text


def test_a_number_sign_that_ends_a_heading_closes_it_or_belongs_to_its_last_word() -> None:
    assert [piece.path for piece in split("# Closed ##\na\n# C#\nb")] == ["Closed", "C#"]


def test_scripts_without_spaces_are_cut_as_well() -> None:
    pieces = split("日本語" * 500, most=100)

    assert "".join(piece.text for piece in pieces) == "日本語" * 500
    assert {model_tokens(piece.text) for piece in pieces} == {100}


def test_another_models_count_may_be_given() -> None:
    assert [piece.text for piece in split("aa bb. cc dd.", most=6, overlap=0, count=len)] == ["aa bb.", "cc dd."]


def test_passages_are_in_the_documents_order() -> None:
    words = [f"word{number}" for number in range(3000)]

    pieces = split(" ".join(words), overlap=0)

    assert " ".join(piece.text.strip() for piece in pieces).split() == words


def test_long_prose_is_cut_between_sentences_and_overlaps() -> None:
    sentences = [f"This is sentence number {number} of a long text." for number in range(80)]

    pieces = split(" ".join(sentences), most=100, overlap=30)

    assert all(piece.text.startswith("This is") and piece.text.endswith("text.") for piece in pieces)
    for before, after in pairwise(pieces):
        assert after.text.split(". ")[0] in before.text
    assert {sentence for piece in pieces for sentence in re.findall(r"This[^.]*\.", piece.text)} == set(sentences)


def test_a_long_list_is_cut_between_items_that_keep_their_lines() -> None:
    items = [f"{number}. Step {number}. Do this,\n   and then that." for number in range(60)]

    pieces = split("\n".join(items), most=60, overlap=0)

    assert len(pieces) > 3
    assert all(re.match(r"\d+\. Step", piece.text) for piece in pieces)
    assert "\n".join(piece.text for piece in pieces) == "\n".join(items)


def test_wrapped_prose_is_cut_at_sentences_and_not_where_its_lines_end() -> None:
    text = textwrap.fill(" ".join(f"This is sentence number {number} of a long text." for number in range(80)), 72)

    pieces = split(text, most=100, overlap=0)

    assert len(pieces) > 3
    assert all(piece.text.startswith("This is") and piece.text.endswith("text.") for piece in pieces)
    assert " ".join(piece.text for piece in pieces).split() == text.split()


def test_lines_without_sentences_are_cut_between_lines() -> None:
    lines = [f"2026-11-{number:02} worker {number} started" for number in range(1, 60)]

    pieces = split("\n".join(lines), most=100)

    assert [line for piece in pieces for line in piece.text.split("\n")] == lines


def test_sentences_end_without_a_space_where_a_script_has_none() -> None:
    sentences = [f"これは{number}番目の文です。" for number in range(60)]

    pieces = split("".join(sentences), most=100, overlap=0)

    assert len(pieces) > 3
    assert all(piece.text.startswith("これは") and piece.text.endswith("です。") for piece in pieces)


def test_title_and_headings_take_room_from_the_text_but_never_most_of_it() -> None:
    prose = "Some words of one syllable each. " * 100

    def longest(title: str, heading: str) -> int:
        return max(model_tokens(piece.text) for piece in split(f"# {heading}\n{prose}", title, overlap=0))

    assert longest("Guide", "Leave") > 190
    assert 130 < longest("a title of many words " * 10, "Leave") <= 200 + BESIDE - 51
    assert 90 < longest("Guide", "some heading of many words " * 10) <= 200
    assert 90 < longest("a title of many words " * 100, "Leave") <= 100
    # What no title is given to is called by its first heading.
    assert longest("", "one heading or another " * 8) <= 200 + BESIDE - 2 * 32


blocks = st.sampled_from(
    [
        "# Heading", "## Under it", "Some words. And more of them! Are there?", "- a\n- b\n- c", "x" * 400,
        "```\ncode = 1\n\nmore()\n```", "| a | b |\n|---|---|\n| 1 | 2 |", "word " * 200,
        "日本語の文。" * 60, "~~~\nopen", "Title\n---",
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(blocks | st.text(max_size=300), max_size=8), st.integers(30, 240), st.integers(0, 20))
def test_nothing_is_lost_and_no_passage_is_too_large(parts: list[str], most: int, overlap: int) -> None:
    text = "\n\n".join(parts)

    pieces = split(text, most=most, overlap=overlap)

    assert all(model_tokens(piece.text) <= most for piece in pieces)
    said = letters("".join(piece.path + piece.text for piece in pieces))
    for word in set(re.findall(r"\w{1,60}", text)):
        assert word in said
    assert all(piece.text.strip() for piece in pieces)
