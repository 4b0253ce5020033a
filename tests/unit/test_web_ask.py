"""Asking: a question is accepted once, by Kafka, or not at all."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from config import metrics
from domain.ids import place_of
from streams.topics import partition_of
from tables.replays import HOLDS_MS
from tests.support.fakes import BOB, PARTITIONS, answering
from tests.support.web_client import Web, all_events, serving


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as found:
        yield found


async def test_a_question_is_accepted(web: Web) -> None:
    conversation_id = await web.begin()
    body = {
        "input": " Why? ",
        "model": "test-model",
        "on_busy": "replace",
        "metadata": {"a": [1]},
        "options": {"temperature": 0.5, "max_tokens": 9, "seed": 0, "stop": "x"},
    }
    answer = await web.call("POST", f"/v1/conversations/{conversation_id}/turns", body)

    assert answer.status == 202
    accepted = await answer.json()
    turn_id = accepted["turn_id"]
    assert accepted == {
        "turn_id": turn_id,
        "conversation_id": conversation_id,
        "status": "queued",
        "events_url": f"/v1/turns/{turn_id}/events",
    }
    (question,) = web.kafka.questions()
    assert (question.turn_id, question.tenant, question.user) == (turn_id, "acme", "alice")
    assert (question.input, question.model, question.on_busy) == (" Why? ", "test-model", "replace")
    assert question.options == body["options"]
    assert question.metadata == body["metadata"]
    assert question.tokens_from == 42
    assert question.request_id == answer.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("named", "arm"),
    [
        ("short-answers", "short-answers"),
        ("b/2:x.y_z", "b/2:x.y_z"),
        ("", ""),
        ("a b", ""),
        ("a" * 41, ""),
        (7, ""),
        (["a"], ""),
    ],
)
async def test_the_metadata_may_name_the_arm_of_an_experiment(web: Web, named: Any, arm: str) -> None:
    conversation_id = await web.begin()
    body = {"input": "Why?", "metadata": {"experiment": named}}

    assert (await web.call("POST", f"/v1/conversations/{conversation_id}/turns", body)).status == 202

    (question,) = web.kafka.questions()
    assert (question.experiment, question.metadata) == (arm, {"experiment": named})


async def test_its_turn_id_leads_back_to_its_record(web: Web) -> None:
    conversation_id = await web.begin()
    turn_id = await web.ask("Why?", conversation_id)

    place = place_of(turn_id)
    assert place is not None
    assert place.partition == partition_of(conversation_id, PARTITIONS)
    (record,) = web.kafka.records[web.worker.topics_of.questions.name]
    assert (record.partition, record.at_ms) == (place.partition, place.milliseconds)


async def test_what_kafka_did_not_take_is_not_accepted(web: Web) -> None:
    conversation_id = await web.begin()
    web.worker.kafka_down = True

    answer = await web.call("POST", f"/v1/conversations/{conversation_id}/turns", {"input": "x"})

    assert answer.status == 503
    assert "Retry-After" in answer.headers


async def test_an_unknown_model_is_404(web: Web) -> None:
    conversation_id = await web.begin()
    answer = await web.call("POST", f"/v1/conversations/{conversation_id}/turns", {"input": "x", "model": "gpt-9"})

    assert answer.status == 404
    error = (await answer.json())["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize("model", ["", "headrace", "test-model"])
async def test_a_known_model_and_the_default_are_taken(web: Web, model: str) -> None:
    await web.ask(model=model)

    assert web.kafka.questions()[0].model == model


async def test_where_the_model_server_has_no_list_or_is_down_any_model_is_taken(web: Web) -> None:
    web.worker.services.model.names = []
    await web.ask(model="anything")
    web.worker.services.model.down = True
    await web.ask(model="anything")

    assert len(web.kafka.questions()) == 2


async def test_with_accept_event_stream_the_events_come_in_the_same_answer(web: Web) -> None:
    conversation_id = await web.begin()
    web.worker.script = answering(["Be", "cause"])

    answer = await web.open(
        "POST",
        f"/v1/conversations/{conversation_id}/turns",
        {"input": "Why?"},
        headers={"Accept": "text/event-stream"},
    )

    assert answer.status == 200
    assert answer.content_type == "text/event-stream"
    turn_id = web.kafka.questions()[0].turn_id
    assert answer.headers["Content-Location"] == f"/v1/turns/{turn_id}/events"
    assert [event.name for event in await all_events(answer)] == ["turn.started", "token", "token", "turn.completed"]


async def test_what_does_not_fit_a_kafka_record_is_413_although_the_body_was_small_enough() -> None:
    async with serving(max_body_bytes=4 << 20, max_input_chars=2_000_000) as web:
        conversation_id = await web.begin()
        answer = await web.call("POST", f"/v1/conversations/{conversation_id}/turns", {"input": "x" * 1_000_000})

        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "body_too_large"
        assert web.kafka.questions() == []


# -- the same key, the same turn


async def keyed(web: Web, path: str, text: str = "Why?", key: str = "k-1", **more: Any) -> Any:
    answer = await web.call("POST", path, {"input": text}, headers={"Idempotency-Key": key}, **more)
    return answer.status, await answer.json()


async def test_the_same_key_gives_the_same_turn(web: Web) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"

    first = await keyed(web, path)
    again = await keyed(web, path)
    other = await keyed(web, path, key="k-2")

    assert first == again
    assert first[1]["turn_id"] != other[1]["turn_id"]
    assert len(web.kafka.questions()) == 2


async def test_duplicates_at_the_same_time_are_one_turn(web: Web) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"

    answers = await asyncio.gather(*(keyed(web, path) for _ in range(10)))

    assert len({body["turn_id"] for _, body in answers}) == 1
    assert len(web.kafka.questions()) == 1


async def test_the_same_key_with_another_body_is_409(web: Web) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"
    await keyed(web, path)

    status, body = await keyed(web, path, "What?")

    assert status == 409
    assert body["error"]["code"] == "idempotency_key_reused"
    assert len(web.kafka.questions()) == 1


async def test_another_users_key_is_another_key(web: Web) -> None:
    web.worker.script = answering(["x"])
    path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}
    for key in ("alice-key-0123456789", BOB):
        await web.call("POST", path, body, key=key, headers={"Idempotency-Key": "k"})

    assert [question.user for question in web.kafka.questions()] == ["alice", "bob"]


async def test_a_try_that_kafka_took_without_saying_so_is_found_in_the_log(web: Web) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"
    web.worker.loses_acknowledgements = True
    assert (await keyed(web, path))[0] == 503

    web.worker.loses_acknowledgements = False
    status, body = await keyed(web, path)

    (question,) = web.kafka.questions()
    assert (status, body["turn_id"]) == (202, question.turn_id)


async def test_a_try_that_may_still_come_is_repeated_as_the_same_record(web: Web) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"
    web.worker.late = True
    assert (await keyed(web, path))[0] == 503

    web.worker.late = False
    status, body = await keyed(web, path)

    (late,), (question,) = web.worker.still_to_come, web.kafka.questions()
    assert late == question
    assert (status, body["turn_id"]) == (202, question.turn_id)


async def test_a_worker_that_was_not_there_at_the_first_try_gives_the_same_turn(web: Web) -> None:
    conversation_id = await web.begin()
    path = f"/v1/conversations/{conversation_id}/turns"
    first = await keyed(web, path)

    async with serving(web.kafka) as successor:
        assert await keyed(successor, path) == first
        assert (await keyed(successor, path, "What?"))[1]["error"]["code"] == "idempotency_key_reused"
        web.kafka.claim(first[1]["turn_id"])
        web.kafka.end(first[1]["turn_id"])
        assert await keyed(successor, path) == first
        assert (await keyed(successor, path, "What?"))[0] == 409

    assert len(web.kafka.questions()) == 1


async def test_a_question_that_waits_in_kafka_is_found_there(web: Web) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"
    web.worker.reaches_runner = False
    await web.ask("Another?")
    first = await keyed(web, path)

    async with serving(web.kafka) as successor:
        assert await keyed(successor, path) == first

    assert len(web.kafka.questions()) == 2


async def test_a_worker_that_loses_its_turns_while_it_looks_for_a_key_makes_no_second_one(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"
    web.worker.reaches_runner = False
    first = await keyed(web, path)
    web.kafka.working.clear()
    reader = web.worker.services.log_reader
    scan = reader.scan

    async def losing(topic: str, partition: int, start: int, stop: int, visit: Any) -> None:
        await scan(topic, partition, stop, stop, visit)  # it is not among what waits: the runner had it
        web.worker.runner.is_handed_over = True

    monkeypatch.setattr(reader, "scan", losing)
    assert (await keyed(web, path))[0] == 503

    monkeypatch.undo()
    async with serving(web.kafka) as successor:
        assert await keyed(successor, path) == first
    assert len(web.kafka.questions()) == 1


async def test_with_accept_event_stream_a_repetition_streams_the_same_turn(web: Web) -> None:
    web.worker.script = answering(["Be", "cause"])
    path, body = f"/v1/conversations/{await web.begin()}/turns", {"input": "Why?"}
    headers = {"Accept": "text/event-stream", "Idempotency-Key": "k"}

    streams = [await all_events(await web.open("POST", path, body, headers=headers)) for _ in range(2)]

    assert streams[0] == streams[1]
    assert len(web.kafka.questions()) == 1


async def test_a_key_is_free_again_after_a_day(web: Web) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"
    first = await keyed(web, path)
    web.kafka.claim(first[1]["turn_id"])
    web.kafka.end(first[1]["turn_id"])
    ((key, replay),) = web.kafka.replays.items()
    web.kafka.replays[key] = msgspec.structs.replace(replay, at=replay.at - HOLDS_MS - 1)

    status, body = await keyed(web, path, "What?")

    assert status == 202
    assert body["turn_id"] != first[1]["turn_id"]


async def test_without_a_key_nothing_is_looked_up(web: Web) -> None:
    conversation_id = await web.begin()
    web.worker.services.log_reader.down = True

    await web.ask("Why?", conversation_id)
    status, _ = await keyed(web, f"/v1/conversations/{conversation_id}/turns")

    assert status == 503


async def test_a_worker_that_has_not_heard_of_an_erasure_does_not_take_a_question_with_a_key(web: Web) -> None:
    conversation_id = await web.begin()
    async with serving(web.kafka) as other:
        assert (await keyed(other, f"/v1/conversations/{conversation_id}/turns"))[0] == 202
        await web.call("DELETE", f"/v1/conversations/{conversation_id}")

        for key in ("k-1", "k-2"):
            assert (await keyed(other, f"/v1/conversations/{conversation_id}/turns", key=key))[0] == 404


async def test_repetitions_are_counted(web: Web) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"
    before = metrics.replays_served._value.get()

    for _ in range(3):
        await keyed(web, path)

    assert metrics.replays_served._value.get() - before == 2


async def test_a_key_that_was_refused_can_be_used_for_what_was_meant(web: Web) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"
    answer = await web.call("POST", path, {"input": "x", "model": "none"}, headers={"Idempotency-Key": "k-1"})
    assert answer.status == 404

    assert (await keyed(web, path))[0] == 202


@pytest.mark.parametrize("key", ["k" * 256, "a\tb"])
async def test_a_key_that_cannot_be_one_is_refused_by_name(web: Web, key: str) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"

    status, body = await keyed(web, path, key=key)

    assert status == 400
    assert body["error"]["param"] == "Idempotency-Key"
    assert "Idempotency-Key" in body["error"]["message"]


# -- a conversation that is busy


async def test_reject_is_409_while_an_answer_is_in_work_and_taken_after_it(web: Web) -> None:
    conversation_id = await web.begin()
    path = f"/v1/conversations/{conversation_id}/turns"
    turn_id = await web.ask("one", conversation_id)

    busy = await web.call("POST", path, {"input": "two", "on_busy": "reject"})
    web.kafka.claim(turn_id)
    web.kafka.end(turn_id)
    free = await web.call("POST", path, {"input": "two", "on_busy": "reject"})

    assert busy.status == 409
    assert (await busy.json())["error"]["code"] == "conversation_busy"
    assert free.status == 202


async def test_a_question_that_has_not_reached_the_runner_counts_as_in_work(web: Web) -> None:
    conversation_id = await web.begin()
    web.worker.reaches_runner = False
    await web.ask("one", conversation_id)

    answer = await web.call("POST", f"/v1/conversations/{conversation_id}/turns", {"input": "two", "on_busy": "reject"})

    assert answer.status == 409


async def test_a_turn_that_has_ended_is_waited_for_until_its_conversation_has_it(web: Web) -> None:
    conversation_id = await web.begin()
    turn_id = await web.ask("one", conversation_id)
    question = web.kafka.questions()[0]
    web.kafka.claim(turn_id)
    web.kafka.end(turn_id)
    web.kafka.working[conversation_id] = [question]
    path, body = f"/v1/conversations/{conversation_id}/turns", {"input": "two", "on_busy": "reject"}

    asking = asyncio.create_task(web.call("POST", path, body))
    await asyncio.wait([asking], timeout=0.1)
    assert not asking.done()
    web.kafka.working[conversation_id] = []

    assert (await asking).status == 202


async def test_of_many_at_the_same_time_only_one_is_taken(web: Web) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"
    body = {"input": "x", "on_busy": "reject"}

    answers = await asyncio.gather(*(web.call("POST", path, body) for _ in range(8)))

    assert sorted(answer.status for answer in answers) == [202] + [409] * 7


async def test_the_same_key_is_not_busy_with_itself(web: Web) -> None:
    path = f"/v1/conversations/{await web.begin()}/turns"
    body = {"input": "x", "on_busy": "reject"}

    answers = [await web.call("POST", path, body, headers={"Idempotency-Key": "k"}) for _ in range(2)]

    assert [answer.status for answer in answers] == [202, 202]
    assert len(web.kafka.questions()) == 1
