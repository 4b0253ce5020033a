"""Turns: read at every stage of their life, stopped, answered again, asked otherwise; each user's own."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import pytest

from domain.generation import Usage
from domain.ids import new_turn_id, place_of
from domain.turns import End, Failure
from streams.records import Turn, encode
from tests.support.fakes import BOB, Record, finished_turn
from tests.support.web_client import Web, serving


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as found:
        yield found


async def test_a_turn_is_queued_then_running_then_completed(web: Web) -> None:
    turn_id = await web.ask("Why?", metadata={"a": 1})
    path = f"/v1/turns/{turn_id}"

    queued = await (await web.call("GET", path)).json()
    web.kafka.claim(turn_id)
    web.kafka.say(turn_id, "Be", "cause")
    running = await (await web.call("GET", path)).json()
    web.kafka.end(turn_id, finish="length")
    completed = await (await web.call("GET", path)).json()

    assert (queued["status"], queued["answer"], queued["claims"], queued["last_event_id"]) == ("queued", "", 0, None)
    assert (running["status"], running["answer"], running["claims"]) == ("running", "Because", 1)
    assert (running["outcome"], running["usage"], running["last_event_id"]) == (None, None, 2)
    assert (completed["status"], completed["answer"], completed["outcome"]) == ("completed", "Because", "completed")
    assert completed["usage"] == {"input_tokens": 7, "output_tokens": 3}
    assert set(completed["timings"]) == {"started_ms", "first_token_ms", "total_ms"}
    assert (completed["object"], completed["input"], completed["citations"]) == ("turn", "Why?", [])
    assert completed["metadata"] == {"a": 1}
    created = datetime.fromisoformat(completed["created_at"])
    assert abs((datetime.now(UTC) - created).total_seconds()) < 60


async def test_a_failed_turn_says_why(web: Web) -> None:
    turn_id = await web.ask()
    web.kafka.claim(turn_id)
    web.kafka.end(turn_id, "failed", error=Failure("too long", "model_refused"))

    turn = await (await web.call("GET", f"/v1/turns/{turn_id}")).json()

    assert (turn["status"], turn["error"]) == ("failed", {"message": "too long", "code": "model_refused"})


async def test_any_worker_finds_a_turn_in_kafka(web: Web) -> None:
    turn_id = await web.ask("Why?")
    async with serving(web.kafka) as other:
        turn = await (await other.call("GET", f"/v1/turns/{turn_id}")).json()
        await other.call("GET", f"/v1/turns/{turn_id}")

        assert turn["input"] == "Why?"
        assert other.worker.services.log_reader.searches == 1


@pytest.mark.parametrize(
    "turn_id",
    [
        "nothing",
        "x" * 300,
        new_turn_id(1_700_000_000_000, 1, 1),
        new_turn_id(1_700_000_000_000, 4000, 1),
        new_turn_id((1 << 48) - 1, 1, 1),
        new_turn_id(1_700_000_000_000, 1, 1).upper(),
    ],
)
async def test_a_turn_that_never_was_is_404(web: Web, turn_id: str) -> None:
    for method, rest in (("GET", ""), ("GET", "/events"), ("POST", "/stop"), ("POST", "/regenerate")):
        answer = await web.call(method, f"/v1/turns/{turn_id}{rest}")

        assert answer.status == 404
        assert (await answer.json())["error"]["code"] == "turn_not_found"


async def test_someone_elses_turn_is_not_there(web: Web) -> None:
    turn_id = await web.ask()
    before = len(web.kafka.published)
    for method, rest in (
        ("GET", ""),
        ("GET", "/events"),
        ("POST", "/stop"),
        ("POST", "/regenerate"),
        ("POST", "/edit"),
    ):
        answer = await web.call(method, f"/v1/turns/{turn_id}{rest}", {"input": "x"}, key=BOB)
        assert answer.status == 404
    assert len(web.kafka.published) == before


async def test_after_its_tokens_are_gone_the_finished_turn_still_has_the_answer(web: Web) -> None:
    turn_id = await web.ask("Why?")
    question = web.kafka.questions()[0]
    web.kafka.logged(turn_id).expired = True
    keep(web, finished_turn(question, "Because"))

    turn = await (await web.call("GET", f"/v1/turns/{turn_id}")).json()
    events = await web.call("GET", f"/v1/turns/{turn_id}/events")

    assert (turn["status"], turn["answer"], turn["input"]) == ("completed", "Because", "Why?")
    assert events.status == 410
    assert (await events.json())["error"]["code"] == "events_expired"


async def test_after_its_question_is_gone_too_the_turn_can_be_read_and_asked_again(web: Web) -> None:
    turn_id = await web.ask("Why?")
    question = web.kafka.questions()[0]
    web.kafka.records.clear()
    keep(web, finished_turn(question, "Because"))
    async with serving(web.kafka) as later:
        turn = await (await later.call("GET", f"/v1/turns/{turn_id}")).json()
        stopped = await later.call("POST", f"/v1/turns/{turn_id}/stop")
        again = await later.call("POST", f"/v1/turns/{turn_id}/regenerate")

        assert turn["answer"] == "Because"
        assert (await later.call("GET", f"/v1/turns/{turn_id}/events")).status == 410
        assert (await stopped.json())["status"] == "completed"
        assert again.status == 202
        assert later.kafka.questions()[-1].beside == turn_id
        assert (await later.call("GET", f"/v1/turns/{turn_id}", key=BOB)).status == 404


def keep(web: Web, turn: Turn) -> None:
    """Put a finished turn where the agents do."""
    place = place_of(turn.turn_id)
    assert place is not None
    record = Record(place.partition, place.milliseconds + 900, encode(turn))
    web.kafka.records.setdefault(web.worker.topics_of.turns.name, []).append(record)


# -- stop


async def test_a_running_turn_is_stopped_and_keeps_its_text(web: Web) -> None:
    turn_id = await web.ask()
    web.kafka.claim(turn_id)
    web.kafka.say(turn_id, "Be")

    answer = await web.call("POST", f"/v1/turns/{turn_id}/stop")
    turn = await (await web.call("GET", f"/v1/turns/{turn_id}")).json()

    assert answer.status == 202
    assert await answer.json() == {"turn_id": turn_id, "status": "running"}
    assert web.kafka.controls()[-1].turn_id == turn_id
    assert (turn["status"], turn["answer"]) == ("stopped", "Be")


async def test_a_finished_turn_is_not_stopped_again(web: Web) -> None:
    turn_id = await web.ask()
    web.kafka.claim(turn_id)
    web.kafka.end(turn_id)
    before = len(web.kafka.controls())

    answer = await web.call("POST", f"/v1/turns/{turn_id}/stop")

    assert await answer.json() == {"turn_id": turn_id, "status": "completed"}
    assert len(web.kafka.controls()) == before


# -- regenerate, edit


async def test_it_is_answered_again_beside_the_first_answer(web: Web) -> None:
    turn_id = await web.ask("Why?", options={"temperature": 0.1, "seed": 1}, metadata={"a": 1})
    web.kafka.claim(turn_id)
    web.kafka.end(turn_id)

    answer = await web.call("POST", f"/v1/turns/{turn_id}/regenerate", {"options": {"temperature": 1.0}})

    assert answer.status == 202
    old, new = web.kafka.questions()
    assert (await answer.json())["turn_id"] == new.turn_id != old.turn_id
    assert (new.conversation_id, new.input, new.beside) == (old.conversation_id, "Why?", turn_id)
    assert new.options == {"temperature": 1.0, "seed": 1}
    assert new.metadata == {"a": 1}


@pytest.mark.parametrize(("how", "body"), [("regenerate", {}), ("edit", {"input": "How?"})])
async def test_it_follows_what_the_first_one_followed_also_when_the_conversation_has_neither_any_more(
    web: Web, how: str, body: dict[str, str]
) -> None:
    turn_id = await web.ask("Why?")
    web.kafka.claim(turn_id)
    web.kafka.say(turn_id, msgspec.json.encode(End("completed", "test-model", "stop", Usage())).decode(), kind="end")
    (old,) = web.kafka.questions()
    keep(web, msgspec.structs.replace(finished_turn(old, "Because"), parent="long-gone"))

    first = await (await web.call("POST", f"/v1/turns/{turn_id}/{how}", body)).json()
    second = await web.call("POST", f"/v1/turns/{first['turn_id']}/edit", {"input": "And again?"})

    assert second.status == 202
    assert [question.parent for question in web.kafka.questions()] == ["", "long-gone", "long-gone"]


async def test_what_is_not_finished_is_not_answered_again(web: Web) -> None:
    turn_id = await web.ask()

    answer = await web.call("POST", f"/v1/turns/{turn_id}/regenerate")

    assert answer.status == 409
    assert (await answer.json())["error"]["code"] == "turn_not_finished"


async def test_it_is_asked_otherwise_beside_the_first_question(web: Web) -> None:
    turn_id = await web.ask("Why?")

    answer = await web.call("POST", f"/v1/turns/{turn_id}/edit", {"input": "How?", "model": "other-model"})

    assert answer.status == 202
    _, new = web.kafka.questions()
    assert (new.input, new.model, new.beside) == ("How?", "other-model", turn_id)


async def test_an_empty_edit_is_refused(web: Web) -> None:
    turn_id = await web.ask("Why?")

    assert (await web.call("POST", f"/v1/turns/{turn_id}/edit", {"input": " "})).status == 400
    assert (await web.call("POST", f"/v1/turns/{turn_id}/edit", {})).status == 400


async def test_nothing_more_is_asked_in_an_erased_conversation(web: Web) -> None:
    turn_id = await web.ask("Why?")
    web.kafka.claim(turn_id)
    web.kafka.end(turn_id)
    await web.call("DELETE", f"/v1/conversations/{web.kafka.questions()[0].conversation_id}")

    assert (await web.call("POST", f"/v1/turns/{turn_id}/regenerate")).status == 404


async def test_the_same_key_regenerates_once(web: Web) -> None:
    turn_id = await web.ask("Why?")
    web.kafka.claim(turn_id)
    web.kafka.end(turn_id)

    answers = [
        await (await web.call("POST", f"/v1/turns/{turn_id}/regenerate", {}, headers={"Idempotency-Key": "k"})).json()
        for _ in range(2)
    ]

    assert answers[0] == answers[1]
    assert len(web.kafka.questions()) == 2
