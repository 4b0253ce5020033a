"""The campaign's own fold and judgement: each thing that may go wrong is found, and called by its name."""

from typing import Any, cast

import msgspec
import pytest

from bench.campaign.clients import Seen, Turn, take
from bench.campaign.schedule import errand
from bench.campaign.verify import Judge, Logged, Told
from tests.support.scripted_answer import expected_answer

QUESTION = "q1 [tokens=6 pace=50]"
TOKENS = expected_answer(QUESTION)


def logged(*records: tuple[int, int, str, str]) -> Logged:
    """Return the fold of (epoch, seq, kind, text)."""
    log = Logged()
    for offset, record in enumerate(records):
        log.feed(offset, *record)
    return log


def answered(tokens: list[str], *, outcome: str = "completed") -> Logged:
    """Return the log of a turn that was written at once."""
    said = [(1, number, "token", text) for number, text in enumerate(tokens, 1)]
    return logged((1, 0, "claim", "{}"), *said, (1, len(tokens) + 1, "end", f'{{"outcome":"{outcome}"}}'))


def turn(log: Logged, **seen: Any) -> Turn:
    """Return a turn whose reader saw what the log has, but for what is said otherwise."""
    saw = Seen(**{"pieces": log.pieces, "outcome": log.outcome} | seen)
    job = errand(1, 1, slots=10, tenants=1)
    return Turn(job, QUESTION, "c1", "t1", 0.0, 0.0, 0.0, seen=saw)


def judged(log: Logged, asked: Turn) -> dict[str, int]:
    """Return what is found wrong with a turn."""
    judge = Judge([asked], {asked.turn_id: log}, [])
    judge.turn(asked)
    return wrong(judge)


def wrong(judge: Judge) -> dict[str, int]:
    """Return what was counted and should not be there."""
    return {name: count for name, count in judge.tally.bad.items() if count}


def test_a_right_answer_is_right() -> None:
    log = answered(TOKENS)

    assert judged(log, turn(log)) == {}


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (TOKENS[:3] + TOKENS[4:], {"tokens_lost": 1}),
        (TOKENS[:4], {"tokens_lost": 2}),
        (TOKENS[:3] + TOKENS[2:], {"tokens_doubled": 1}),
        ([TOKENS[1], TOKENS[0], *TOKENS[2:]], {"tokens_reordered": 1}),
        ([*TOKENS[:5], "5:another "], {"tokens_lost": 1}),
    ],
)
def test_tokens_that_are_lost_doubled_or_moved_are_counted(tokens: list[str], found: dict[str, int]) -> None:
    log = answered(tokens)

    assert judged(log, turn(log)) == found


def test_a_turn_that_the_log_has_nothing_of_is_lost() -> None:
    assert judged(Logged(), turn(Logged())) == {"lost": 1}


def test_a_turn_without_an_end_is_unfinished() -> None:
    log = logged((1, 0, "claim", "{}"), (1, 1, "token", TOKENS[0]))

    assert judged(log, turn(log)) == {"unfinished": 1}


def test_a_turn_that_fails_although_the_model_could_answer_is_a_fault() -> None:
    log = answered(TOKENS, outcome="failed")

    assert judged(log, turn(log)) == {"failed": 1}


def test_a_stopped_turn_may_end_early_if_its_client_asked_for_it() -> None:
    log = answered(TOKENS[:3], outcome="stopped")
    asked = turn(log)
    asked.stop_asked = True

    assert judged(log, asked) == {}
    asked.stop_asked = False
    assert judged(log, asked) == {"tokens_lost": 1}


def test_a_reader_that_saw_something_else_than_the_log_is_found() -> None:
    log = answered(TOKENS)

    assert judged(log, turn(log, pieces=TOKENS[:5])) == {"readers_wrong": 1}
    assert judged(log, turn(log, outcome="")) == {"readers_wrong": 1}


def test_what_a_zombie_writes_is_dropped_and_counted() -> None:
    log = logged(
        (1, 0, "claim", "{}"),
        (1, 1, "token", TOKENS[0]),
        (2, 0, "claim", "{}"),
        (1, 2, "token", "zombie"),
        (2, 2, "token", TOKENS[1]),
        (2, 2, "token", "again"),
        (2, 3, "end", '{"outcome":"stopped"}'),
        (2, 4, "token", "late"),
    )

    assert (log.text, log.claims, log.dropped) == ("".join(TOKENS[:2]), 2, 3)


@pytest.mark.parametrize(
    ("published", "asked", "found"),
    [
        ([TOKENS], ["t1"], {}),
        ([TOKENS, TOKENS], ["t1"], {}),
        ([], ["t1"], {"lost": 1}),
        ([TOKENS, TOKENS[:3]], ["t1"], {"answered_twice": 1}),
        ([TOKENS[:3]], ["t1"], {"answered_twice": 1}),
        ([TOKENS], ["t1", "t2"], {"answered_twice": 1}),
    ],
)
def test_a_question_has_one_finished_turn(published: list[list[str]], asked: list[str], found: dict[str, int]) -> None:
    log = answered(TOKENS)
    finished = [{"turn_id": "t1", "answer": "".join(answer), "outcome": "completed"} for answer in published]
    questions = [{"turn_id": turn_id, "input": QUESTION, "conversation_id": "c1"} for turn_id in asked]
    judge = Judge([turn(log)], dict.fromkeys(asked, log), questions)

    judge.finished(finished)
    judge.accepted_once()

    assert wrong(judge) == found


class Tells:
    """A worker that has one conversation, with these turns."""

    def __init__(self, *turn_ids: str) -> None:
        self.turn_ids = turn_ids

    async def get(self, path: str, _tenant: int) -> tuple[int, Any]:
        turns = [{"turn_id": each, "answer": "".join(TOKENS)} for each in self.turn_ids]
        return 200, {"turns": turns} if "conversations" in path else {"status": "completed", "answer": "", "claims": 1}


@pytest.mark.parametrize(
    ("records", "shown", "found"),
    [
        (["t1", "t2"], ["t1", "t2"], {}),
        (["t1", "t1", "t2"], ["t1", "t2"], {}),  # a producer wrote the record of one question twice
        (["t1", "t2"], ["t2", "t1"], {"tables_wrong": 1}),
        (["t1", "t2"], ["t1"], {"tables_wrong": 1}),
        (["t1"], ["t1", "t1"], {"tables_wrong": 1}),
    ],
)
async def test_a_conversation_has_each_question_once_and_in_order(
    records: list[str], shown: list[str], found: dict[str, int]
) -> None:
    questions = [{"turn_id": turn_id, "input": QUESTION, "conversation_id": "c1"} for turn_id in records]
    judge = Judge([], dict.fromkeys(records, answered(TOKENS)), questions)

    await judge.told(cast("Told", Tells(*shown)), {"c1": 0})

    assert wrong(judge) == found


def test_a_reader_notices_an_event_that_is_missing() -> None:
    reading = turn(Logged(), pieces=[], outcome="")

    for number in (0, 1, 3):
        take(reading, b"id: %d\nevent: token\ndata: %b" % (number, msgspec.json.encode({"text": "x"})), 1.0)

    assert reading.seen.problems == ["event 3 came after 2 events"]
