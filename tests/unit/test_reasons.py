"""What a person is told of a failure has nothing in it that only programs understand, and no secrets."""

import pytest

from domain import reasons


@pytest.mark.parametrize(
    "said",
    [
        "see https://user:secret@api.example.org/v1 for more",
        "Incorrect key sk-secret0123 provided",
        "organization org-secret was limited",
        "header Authorization: Bearer secret",
        "bad request\nTraceback (most recent call last):\n  secret",
    ],
)
def test_addresses_keys_and_traces_are_left_out(said: str) -> None:
    assert "secret" not in reasons.refused(said)
    assert "api.example.org" not in reasons.refused(said)


def test_what_helps_is_kept() -> None:
    said = "This model's maximum context length is 4096 tokens. Please shorten the messages."

    assert reasons.refused(said) == said


def test_a_long_story_is_cut() -> None:
    assert len(reasons.refused("x" * 5000)) <= reasons.LONGEST + 1


def test_each_way_to_fail_says_what_happened() -> None:
    assert "did not answer, though it was asked 8 times" in reasons.no_answer(8, begun=False)
    assert "text so far is kept" in reasons.no_answer(1, begun=True)
    assert "600 seconds" in reasons.no_time(600.0)
    assert "21 times" in reasons.taken_up_too_often(21)
