"""What the model reads."""

from dataclasses import dataclass
from typing import Any

from domain.prompt import Context, Prompt, for_client, for_conversation, load_prompt

PROMPT = Prompt("test.v1", "Be brief.")


@dataclass(frozen=True)
class Said:
    """A finished turn."""

    turn_id: str
    input: str
    answer: str
    parent: str = ""
    tokens: int = 0


def test_the_prompt_is_a_file_with_a_version() -> None:
    assert load_prompt("assistant.v1").text.startswith("You are Headrace")
    assert load_prompt().name == "assistant.v1"


def test_earlier_turns_stand_between_the_instructions_and_the_question() -> None:
    messages = for_conversation(PROMPT, [Said("1", "one?", "One.")], "two?", budget=1000)

    assert messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "two?"},
    ]


def test_marks_of_earlier_answers_are_left_out_where_other_passages_have_their_numbers() -> None:
    marked = "Yes [2]: `rows[1]`."
    given = Context(passages="<passages>", summary="It was so [1].")
    messages = for_conversation(PROMPT, [Said("2", "one?", marked, "1")], "two?", budget=1000, context=given)
    own: list[dict[str, Any]] = [{"role": "assistant", "content": each} for each in (marked, None)]

    assert messages[2]["content"] == "Yes: `rows[1]`."
    assert "It was so.\n" in messages[0]["content"]
    assert for_client(PROMPT, own, bare=False, context=given)[1:] == [{**own[0], "content": "Yes: `rows[1]`."}, own[1]]
    assert for_conversation(PROMPT, [Said("1", "one?", marked)], "two?", budget=1000)[2]["content"] == marked


def test_a_question_whose_earlier_turns_are_all_gone_has_their_summary() -> None:
    messages = for_conversation(PROMPT, [], "five?", budget=1000, context=Context(summary="One to four."))

    assert "One to four." in messages[0]["content"]


def test_turns_beyond_the_budget_are_left_out_oldest_first_and_the_question_never() -> None:
    path = [Said(str(n), f"question {n}", "x" * 300) for n in range(5)]

    messages = for_conversation(PROMPT, path, "now?", budget=250)

    assert [m["content"] for m in messages if m["role"] == "user"] == ["question 3", "question 4", "now?"]
    assert for_conversation(PROMPT, path, "y" * 9000, budget=250)[-1]["content"] == "y" * 9000


def test_turns_without_an_answer_are_left_out() -> None:
    assert len(for_conversation(PROMPT, [Said("1", "one?", "")], "two?", budget=1000)) == 2


def test_a_clients_own_instructions_are_kept() -> None:
    own = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}]

    assert for_client(PROMPT, own, bare=False) == own
    assert for_client(PROMPT, own[1:], bare=True) == own[1:]
    assert for_client(PROMPT, own[1:], bare=False)[0] == {"role": "system", "content": "Be brief."}
