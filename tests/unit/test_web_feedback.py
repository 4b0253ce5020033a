"""What a user says of a finished turn is in Kafka once it is accepted, with what the turn is measured by."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from domain.turns import Failure
from streams.records import Feedback
from streams.topics import partition_of
from tests.support.fakes import BOB, PARTITIONS, TURNS
from tests.support.web_client import Web, serving
from web import feedback
from web.shapes import COMMENT_LENGTH, CORRECTION_LENGTH


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as found:
        yield found


async def answered(web: Web, conversation_id: str | None = None) -> str:
    turn_id = await web.ask("Why?", conversation_id)
    web.kafka.claim(turn_id)
    web.kafka.say(turn_id, "Because")
    web.kafka.end(turn_id)
    web.kafka.publish_turn(turn_id, prompt="assistant.v1")
    return turn_id


def given(web: Web) -> list[Feedback]:
    return [record for record in web.kafka.published if isinstance(record, Feedback)]


async def test_what_is_said_is_in_kafka_with_what_the_turn_is_measured_by(web: Web) -> None:
    conversation_id = await web.begin()
    turn_id = await answered(web, conversation_id)

    answer = await web.call(
        "POST", f"/v1/turns/{turn_id}/feedback", {"rating": -1, "comment": " No. ", "correction": "Since."}
    )

    shown = await answer.json()
    assert answer.status == 202
    assert (shown["object"], shown["turn_id"], shown["rating"]) == ("feedback", turn_id, -1)
    assert (shown["comment"], shown["correction"]) == ("No.", "Since.")
    (said,) = given(web)
    assert said == Feedback(
        turn_id=turn_id,
        conversation_id=conversation_id,
        tenant="acme",
        user="alice",
        rating=-1,
        at=said.at,
        comment="No.",
        correction="Since.",
        model="test-model",
        prompt="assistant.v1",
        outcome="completed",
    )
    (record,) = web.kafka.records["chat.feedback.v1"]
    assert (record.partition, record.at_ms) == (partition_of(conversation_id, PARTITIONS), said.at)


async def test_a_thumb_is_enough_and_what_is_said_later_takes_its_place(web: Web) -> None:
    conversation_id = await web.begin()
    turn_id = await answered(web, conversation_id)
    path = f"/v1/turns/{turn_id}/feedback"

    await web.call("POST", path, {"rating": -1, "comment": "No."})
    last = await (await web.call("POST", path, {"rating": 1, "comment": "  "})).json()
    turn = await (await web.call("GET", f"/v1/turns/{turn_id}")).json()
    (listed,) = (await (await web.call("GET", f"/v1/conversations/{conversation_id}")).json())["turns"]

    assert (last["rating"], last["comment"], last["correction"]) == (1, None, None)
    assert turn["feedback"] == listed["feedback"] == last


async def test_turns_are_shown_without_it_while_the_archive_is_away(web: Web) -> None:
    conversation_id = await web.begin()
    turn_id = await answered(web, conversation_id)
    await web.call("POST", f"/v1/turns/{turn_id}/feedback", {"rating": 1})
    web.worker.services.history.down = True

    turn = await (await web.call("GET", f"/v1/turns/{turn_id}")).json()
    part = await (await web.call("GET", f"/v1/conversations/{conversation_id}")).json()

    assert turn["feedback"] is part["turns"][0]["feedback"] is None
    assert part["older_unavailable"] is False


async def test_nobody_waits_for_an_archive_that_does_not_answer(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_id = await answered(web)
    monkeypatch.setattr(web.worker.services.history, "feedback", lambda *_: asyncio.Event().wait())
    monkeypatch.setattr(feedback, "SHOWN_SECONDS", 0.0)

    turn = await (await web.call("GET", f"/v1/turns/{turn_id}")).json()

    assert (turn["answer"], turn["feedback"]) == ("Because", None)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "rating", "rating is required."),
        ({"rating": 0}, "rating", "rating must be 1 or -1."),
        ({"rating": 5}, "rating", "rating must be 1 or -1."),
        ({"rating": "up"}, "rating", "rating: expected an integer, got a string."),
        ({"rating": 1, "comment": "x" * (COMMENT_LENGTH + 1)}, "comment", str(COMMENT_LENGTH)),
        ({"rating": 1, "correction": "x" * (CORRECTION_LENGTH + 1)}, "correction", str(CORRECTION_LENGTH)),
    ],
)
async def test_what_is_wrong_is_said_by_field_and_limit(web: Web, body: dict[str, Any], param: str, says: str) -> None:
    turn_id = await answered(web)

    answer = await web.call("POST", f"/v1/turns/{turn_id}/feedback", body)

    error = (await answer.json())["error"]
    assert (answer.status, error["param"]) == (400, param)
    assert says in error["message"]
    assert given(web) == []


async def test_only_the_turns_own_user_can_say_something(web: Web) -> None:
    conversation_id = await web.begin()
    turn_id = await answered(web, conversation_id)

    theirs = await web.call("POST", f"/v1/turns/{turn_id}/feedback", {"rating": 1}, key=BOB)
    none = await web.call("POST", "/v1/turns/nothing/feedback", {"rating": 1})
    await web.call("DELETE", f"/v1/conversations/{conversation_id}")
    erased = await web.call("POST", f"/v1/turns/{turn_id}/feedback", {"rating": 1})

    assert [theirs.status, none.status, erased.status] == [404, 404, 404]
    assert given(web) == []


async def test_nothing_is_said_of_a_turn_that_is_being_answered(web: Web) -> None:
    turn_id = await web.ask()
    web.kafka.claim(turn_id)

    answer = await web.call("POST", f"/v1/turns/{turn_id}/feedback", {"rating": 1})

    assert answer.status == 409
    assert (await answer.json())["error"]["code"] == "turn_not_finished"


async def test_a_turn_that_ended_this_moment_is_waited_for(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    turn_id = await answered(web)
    (record,) = web.kafka.records.pop(TURNS)
    path = f"/v1/turns/{turn_id}/feedback"

    monkeypatch.setattr(feedback, "ARRIVAL_SECONDS", 0.0)
    early = await web.call("POST", path, {"rating": 1})
    web.kafka.records[TURNS] = [record]
    later = await web.call("POST", path, {"rating": 1})

    assert (early.status, early.headers["Retry-After"]) == (503, "1")
    assert later.status == 202


async def test_a_failed_answer_can_be_rated(web: Web) -> None:
    turn_id = await web.ask()
    web.kafka.claim(turn_id)
    web.kafka.end(turn_id, "failed", error=Failure("too long", "model_refused"))
    web.kafka.publish_turn(turn_id, outcome="failed")

    answer = await web.call("POST", f"/v1/turns/{turn_id}/feedback", {"rating": -1})

    assert answer.status == 202
    assert given(web)[-1].outcome == "failed"


async def test_an_answer_outside_of_conversations_can_be_rated_when_its_question_is_gone(web: Web) -> None:
    turn_id = await answered(web)
    web.kafka.records.clear()
    web.kafka.publish_turn(turn_id, conversation_id="alone", stateless=True)
    async with serving(web.kafka) as later:
        answer = await later.call("POST", f"/v1/turns/{turn_id}/feedback", {"rating": 1})

    assert answer.status == 202
    assert given(web)[-1].conversation_id == "alone"


async def test_what_kafka_does_not_take_is_not_accepted(web: Web) -> None:
    turn_id = await answered(web)
    web.worker.kafka_down = True

    answer = await web.call("POST", f"/v1/turns/{turn_id}/feedback", {"rating": 1})

    assert (answer.status, given(web)) == (503, [])
