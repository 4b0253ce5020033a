"""Conversations: begun, listed, read with their turns, renamed, erased; each user's own."""

from collections.abc import AsyncIterator
from datetime import datetime

import msgspec
import pytest

from domain.ids import uuid7
from tests.support.fakes import BOB
from tests.support.web_client import Web, serving


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as found:
        yield found


async def test_a_conversation_is_begun(web: Web) -> None:
    answer = await web.call("POST", "/v1/conversations", {"title": "Tea", "metadata": {"a": 1}})

    assert answer.status == 201
    begun = await answer.json()
    assert (begun["object"], begun["title"], begun["metadata"]) == ("conversation", "Tea", {"a": 1})
    assert datetime.fromisoformat(begun["created_at"]).utcoffset() is not None
    assert begun["updated_at"] == begun["created_at"]
    assert answer.headers["Location"] == f"/v1/conversations/{begun['id']}"
    (control,) = web.kafka.controls()
    assert (control.action, control.conversation_id, control.tenant, control.user) == (
        "create",
        begun["id"],
        "acme",
        "alice",
    )


async def test_it_can_be_read_although_the_table_lags(web: Web) -> None:
    web.worker.lag = 3
    conversation_id = await web.begin(title="Tea")

    answer = await web.call("GET", f"/v1/conversations/{conversation_id}")

    assert answer.status == 200
    assert (await answer.json())["title"] == "Tea"


async def test_an_old_id_that_is_not_there_is_not_waited_for(web: Web) -> None:
    answer = await web.call("GET", f"/v1/conversations/{uuid7(1_700_000_000_000, 1, 1)}")

    assert answer.status == 404
    assert web.worker.table_reads == 1


@pytest.mark.parametrize("its_id", ["nothing", "%00", "..", "01890000-0000-7000-8000-00000000000G", "'; drop"])
async def test_what_is_no_id_is_404(web: Web, its_id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("PATCH", ""), ("POST", "/turns")):
        answer = await web.call(method, f"/v1/conversations/{its_id}{path}", {"input": "x", "title": "x"})

        assert answer.status in {404, 405}


async def test_someone_elses_conversation_is_not_there(web: Web) -> None:
    conversation_id = await web.begin()
    path = f"/v1/conversations/{conversation_id}"

    for method, where in (("GET", path), ("PATCH", path), ("DELETE", path), ("POST", f"{path}/turns")):
        answer = await web.call(method, where, {"input": "x", "title": "mine"}, key=BOB)
        assert answer.status == 404
        assert (await answer.json())["error"]["code"] == "conversation_not_found"
    assert [one["id"] for one in (await (await web.call("GET", "/v1/conversations", key=BOB)).json())["data"]] == []
    assert conversation_id in web.kafka.rows
    assert web.kafka.questions() == []


async def test_the_latest_active_is_listed_first_page_by_page(web: Web) -> None:
    ids = [await web.begin(title=str(number)) for number in range(5)]
    for place, conversation_id in enumerate(ids):
        row = web.kafka.rows[conversation_id]
        web.kafka.rows[conversation_id] = type(row)(
            **{name: getattr(row, name) for name in row.__struct_fields__} | {"updated_at": 1000 * ((place * 2) % 5)}
        )
    expected = [ids[place] for place in sorted(range(5), key=lambda place: (place * 2) % 5, reverse=True)]

    seen, after, more = [], "", True
    while more:
        page = await (await web.call("GET", f"/v1/conversations?limit=2&after={after}")).json()
        assert page["object"] == "list"
        assert len(page["data"]) <= 2
        seen += [one["id"] for one in page["data"]]
        after, more = seen[-1], page["has_more"]

    assert seen == expected


async def test_a_conversation_that_was_just_begun_is_listed_although_the_table_lags(web: Web) -> None:
    web.worker.lag = 1000
    conversation_id = await web.begin(title="Tea")

    listed = (await (await web.call("GET", "/v1/conversations")).json())["data"]

    assert [(one["id"], one["title"]) for one in listed] == [(conversation_id, "Tea")]


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "1.5", "٣", "9" * 40])
async def test_a_limit_out_of_range_is_refused(web: Web, limit: str) -> None:
    answer = await web.call("GET", f"/v1/conversations?limit={limit}")

    assert answer.status == 400
    assert (await answer.json())["error"]["param"] == "limit"


async def test_a_page_after_an_unknown_conversation_is_refused(web: Web) -> None:
    answer = await web.call("GET", "/v1/conversations?after=nothing")

    assert answer.status == 400
    assert (await answer.json())["error"]["param"] == "after"


async def test_it_is_renamed(web: Web) -> None:
    conversation_id = await web.begin(title="Tea", metadata={"a": 1})
    path = f"/v1/conversations/{conversation_id}"

    renamed = await (await web.call("PATCH", path, {"title": "Coffee"})).json()
    read = await (await web.call("GET", path)).json()

    assert (renamed["title"], renamed["metadata"]) == ("Coffee", {"a": 1})
    assert (read["title"], read["metadata"]) == ("Coffee", {"a": 1})
    assert read["updated_at"] == renamed["updated_at"] >= read["created_at"]


async def test_it_is_erased(web: Web) -> None:
    conversation_id = await web.begin()
    path = f"/v1/conversations/{conversation_id}"

    answer = await web.call("DELETE", path)

    assert answer.status == 204
    assert await answer.read() == b""
    assert (await web.call("GET", path)).status == 404
    assert (await web.call("DELETE", path)).status == 404
    assert (await web.call("POST", f"{path}/turns", {"input": "x"})).status == 404
    assert (await (await web.call("GET", "/v1/conversations")).json())["data"] == []


async def test_it_is_gone_at_once_although_the_table_lags(web: Web) -> None:
    conversation_id = await web.begin()
    web.worker.lag = 1000

    assert (await web.call("DELETE", f"/v1/conversations/{conversation_id}")).status == 204

    assert conversation_id in web.kafka.rows
    assert (await web.call("GET", f"/v1/conversations/{conversation_id}")).status == 404
    assert (await (await web.call("GET", "/v1/conversations")).json())["data"] == []


async def test_it_shows_finished_running_and_queued_turns_each_once(web: Web) -> None:
    conversation_id = await web.begin()
    finished = await web.ask("one", conversation_id)
    web.kafka.claim(finished)
    web.kafka.say(finished, "first ", "answer")
    web.kafka.end(finished)
    running = await web.ask("two", conversation_id)
    web.kafka.claim(running)
    web.kafka.say(running, "second ")
    queued = await web.ask("three", conversation_id)

    turns = (await (await web.call("GET", f"/v1/conversations/{conversation_id}")).json())["turns"]

    assert [(turn["turn_id"], turn["input"], turn["status"], turn["answer"]) for turn in turns] == [
        (finished, "one", "completed", "first answer"),
        (running, "two", "running", "second "),
        (queued, "three", "queued", ""),
    ]
    assert [turn["last_event_id"] for turn in turns] == [None, 1, None]


@pytest.mark.parametrize(
    ("beside", "parent", "shown"), [("", "", "one"), ("gone", "older", "older"), ("gone", "", None)]
)
async def test_a_turn_in_work_is_shown_where_it_will_be_in_the_conversation(
    web: Web, beside: str, parent: str, shown: str | None
) -> None:
    conversation_id = await web.begin()
    finished = await web.ask("one", conversation_id)
    web.kafka.claim(finished)
    web.kafka.end(finished)
    await web.ask("two", conversation_id)
    question = msgspec.structs.replace(web.kafka.questions()[-1], beside=beside, parent=parent)
    web.kafka.working[conversation_id] = [question]

    turns = (await (await web.call("GET", f"/v1/conversations/{conversation_id}")).json())["turns"]

    assert turns[-1]["parent"] == (finished if shown == "one" else shown)


async def test_a_turn_that_is_in_the_table_and_still_in_work_is_shown_once(web: Web) -> None:
    conversation_id = await web.begin()
    turn_id = await web.ask("one", conversation_id)
    question = web.kafka.questions()[0]
    web.kafka.claim(turn_id)
    web.kafka.end(turn_id)
    web.kafka.working[conversation_id] = [question]

    turns = (await (await web.call("GET", f"/v1/conversations/{conversation_id}")).json())["turns"]

    assert [(turn["turn_id"], turn["status"]) for turn in turns] == [(turn_id, "completed")]


async def test_the_same_idempotency_key_begins_one_conversation(web: Web) -> None:
    answers = [
        await (await web.call("POST", "/v1/conversations", {"title": "x"}, headers={"Idempotency-Key": "k"})).json()
        for _ in range(2)
    ]

    assert answers[0] == answers[1]
    assert len(web.kafka.rows) == 1


async def test_what_a_key_began_is_the_same_conversation_after_it_was_renamed(web: Web) -> None:
    headers, body = {"Idempotency-Key": "k"}, {"title": "Tea"}
    begun = await (await web.call("POST", "/v1/conversations", body, headers=headers)).json()
    await web.call("PATCH", f"/v1/conversations/{begun['id']}", {"title": "Coffee"})

    again = await web.call("POST", "/v1/conversations", body, headers=headers)

    assert again.status == 201
    assert await again.json() == begun | {"title": "Coffee", "updated_at": (await again.json())["updated_at"]}
    assert [control.action for control in web.kafka.controls()] == ["create", "rename"]


async def test_a_conversation_that_was_erased_is_not_begun_again_by_its_key(web: Web) -> None:
    headers = {"Idempotency-Key": "k"}
    begun = await (await web.call("POST", "/v1/conversations", {}, headers=headers)).json()
    await web.call("DELETE", f"/v1/conversations/{begun['id']}")

    async with serving(web.kafka) as successor:
        for each in (web, successor):
            again = await each.call("POST", "/v1/conversations", {}, headers=headers)
            assert again.status == 409
            assert (await again.json())["error"]["code"] == "idempotency_key_reused"


async def test_a_conversation_is_there_once_its_key_is_answered(web: Web) -> None:
    web.worker.lag = 5

    begun = await web.call("POST", "/v1/conversations", {}, headers={"Idempotency-Key": "k"})

    assert begun.status == 201
    assert (await begun.json())["id"] in web.kafka.rows
