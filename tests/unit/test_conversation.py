"""Which turns are kept, and which lead up to a question."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from domain.conversation import cost, last_that_fit, parent_of_next, path_to, title_from, tokens_in


@dataclass(frozen=True)
class Said:
    """A finished turn."""

    turn_id: str
    parent: str = ""
    tokens: int = 0
    input: str = "a question"
    answer: str = "an answer"


def test_the_latest_turns_that_fit_the_budget_are_kept() -> None:
    turns = [Said("1"), Said("2"), Said("3")]
    budget = cost(turns[0]) * 2

    assert [turn.turn_id for turn in last_that_fit(turns, budget)] == ["2", "3"]


@given(st.lists(st.text(max_size=200), max_size=12), st.integers(0, 400))
def test_what_is_kept_is_a_tail_within_the_budget_and_as_long_as_can_be(answers: list[str], budget: int) -> None:
    turns = [Said(str(number), answer=answer) for number, answer in enumerate(answers)]

    kept = last_that_fit(turns, budget)

    assert kept == turns[len(turns) - len(kept) :]
    assert sum(map(cost, kept)) <= budget
    if len(kept) < len(turns):
        assert sum(map(cost, kept)) + cost(turns[-len(kept) - 1]) > budget


def test_a_question_follows_the_latest_turn() -> None:
    assert parent_of_next([Said("1"), Said("2", "1")]) == "2"
    assert parent_of_next([]) == ""


def test_a_regenerated_turn_follows_what_the_old_one_followed() -> None:
    turns = [Said("1"), Said("2", "1"), Said("3", "2")]

    assert parent_of_next(turns, beside="2") == "1"
    assert parent_of_next(turns, beside="1") == ""


def test_a_branch_beside_a_turn_that_is_not_kept_any_more_never_follows_the_latest() -> None:
    turns = [Said("5", "4"), Said("6", "5")]

    assert parent_of_next(turns, beside="1") == ""
    assert parent_of_next(turns, beside="4", parent="3") == "3"
    assert path_to(turns, parent_of_next(turns, beside="4", parent="3")) == []
    assert parent_of_next(turns, beside="6b", parent="5") == "5"
    assert parent_of_next(turns, beside="6", parent="5") == "5"
    assert parent_of_next(turns) == "6"


def test_the_context_of_a_branch_leaves_out_its_siblings() -> None:
    turns = [Said("1"), Said("2", "1"), Said("2b", "1"), Said("3", "2b")]

    assert [turn.turn_id for turn in path_to(turns, "3")] == ["1", "2b", "3"]
    assert [turn.turn_id for turn in path_to(turns, "2")] == ["1", "2"]


def test_a_path_begins_where_the_kept_turns_do_and_survives_a_circle() -> None:
    assert [turn.turn_id for turn in path_to([Said("8", "7"), Said("9", "8")], "9")] == ["8", "9"]
    assert len(path_to([Said("1", "2"), Said("2", "1")], "1")) == 2


def test_a_title_is_the_first_line_cut_at_a_word() -> None:
    assert title_from("  How do I   set retention?\nmore") == "How do I set retention?"
    long = title_from("word " * 40)
    assert long.endswith("word…")
    assert len(long) <= 61


@given(st.text())
def test_a_text_has_at_least_one_token(text: str) -> None:
    assert tokens_in(text) >= 1
