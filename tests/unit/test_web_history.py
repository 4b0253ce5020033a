"""A user's past is in one piece: recent things from the tables, older ones from the archive, and nobody else's."""

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from domain.history import Owner, StoredConversation
from domain.ids import new_turn_id
from streams.records import encode
from streams.topics import partition_of
from tests.support.fakes import BOB, PARTITIONS, FakeHistory, Record, finished_turn
from tests.support.past import old_conversation, old_conversation_id, old_turn, old_turn_id
from tests.support.web_client import Web, serving

ALICES, BOBS = Owner("acme", "alice"), Owner("acme", "bob")


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as found:
        yield found


@pytest.fixture
def history(web: Web) -> FakeHistory:
    return web.worker.services.history


def keep(history: FakeHistory, number: int, turns: int = 0, owner: Owner = ALICES) -> str:
    """Archive a conversation with turns that are numbered from 1."""
    conversation = old_conversation(number)
    history.kept_conversations[conversation.conversation_id] = owner, conversation
    archive(history, conversation.conversation_id, turns, owner)
    return conversation.conversation_id


def archive(history: FakeHistory, conversation_id: str, turns: int, owner: Owner = ALICES) -> None:
    partition = partition_of(conversation_id, PARTITIONS)
    for each in range(1, turns + 1):
        turn = old_turn(each, conversation_id, partition=partition)
        history.kept_turns[turn.turn_id] = owner, turn


def has_left(web: Web, conversation_id: str, *turn_ids: str) -> None:
    """Note that turns have left the table's row."""
    row = web.kafka.rows[conversation_id]
    kept = [turn for turn in row.turns if turn.turn_id not in turn_ids]
    web.kafka.rows[conversation_id] = msgspec.structs.replace(row, turns=kept, left=[*row.left, *turn_ids])


async def answered(web: Web, text: str, conversation_id: str) -> str:
    turn_id = await web.ask(text, conversation_id)
    web.kafka.claim(turn_id)
    web.kafka.say(turn_id, f"to {text}")
    web.kafka.end(turn_id)
    return turn_id


async def listed(web: Web, **query: str | int) -> dict[str, Any]:
    path = "&".join(f"{name}={value}" for name, value in query.items())
    answer = await web.call("GET", f"/v1/conversations?{path}")
    assert answer.status == 200, await answer.text()
    found: dict[str, Any] = await answer.json()
    return found


async def read(web: Web, conversation_id: str, query: str = "") -> dict[str, Any]:
    answer = await web.call("GET", f"/v1/conversations/{conversation_id}{query}")
    assert answer.status == 200, await answer.text()
    found: dict[str, Any] = await answer.json()
    return found


def titles(page: dict[str, Any]) -> list[str]:
    return [one["title"] for one in page["data"]]


def inputs(conversation: dict[str, Any]) -> list[str]:
    return [turn["input"] for turn in conversation["turns"]]


# -- the list


async def test_older_conversations_follow_recent_ones_to_the_first(web: Web, history: FakeHistory) -> None:
    for number in range(1, 6):
        keep(history, number)
    for title in ("New 1", "New 2"):
        await web.begin(title=title)
    expected = ["Old 5", "Old 4", "Old 3", "Old 2", "Old 1"]

    page = await listed(web, limit=3)
    assert sorted(titles(page)[:2]) == ["New 1", "New 2"]
    seen = titles(page)[2:]
    while page["has_more"]:
        page = await listed(web, limit=3, after=page["next"])
        seen += titles(page)

    assert seen == expected
    assert page["next"] is None
    assert not page["older_unavailable"]


async def test_the_next_page_begins_where_the_last_ended_although_its_conversation_has_moved(
    web: Web, history: FakeHistory
) -> None:
    for number in range(1, 5):
        keep(history, number)
    first = await listed(web, limit=2)
    last = first["data"][-1]["id"]
    history.kept_conversations[last] = ALICES, old_conversation(9)

    assert titles(await listed(web, limit=2, after=first["next"])) == ["Old 2", "Old 1"]


async def test_a_page_can_follow_an_id_that_only_the_archive_has(web: Web, history: FakeHistory) -> None:
    for number in range(1, 4):
        keep(history, number)

    assert titles(await listed(web, after=old_conversation_id(3))) == ["Old 2", "Old 1"]


async def test_what_both_have_is_shown_once_as_the_table_has_it(web: Web, history: FakeHistory) -> None:
    conversation_id = await web.begin(title="Newer")
    history.kept_conversations[conversation_id] = ALICES, StoredConversation(conversation_id, "Older", 1, 1, {})

    assert titles(await listed(web)) == ["Newer"]


async def test_while_the_archive_is_away_the_list_has_what_the_tables_have_and_says_so(
    web: Web, history: FakeHistory
) -> None:
    keep(history, 1)
    await web.begin(title="New")
    history.down = True

    page = await listed(web)
    assert (titles(page), page["has_more"], page["older_unavailable"]) == (["New"], False, True)

    history.down = False
    page = await listed(web)
    assert (titles(page), page["older_unavailable"]) == (["New", "Old 1"], False)


async def test_an_erased_conversation_is_hidden_before_the_archive_knows(web: Web, history: FakeHistory) -> None:
    conversation_id = keep(history, 1, turns=2)
    path = f"/v1/conversations/{conversation_id}"
    assert (await web.call("DELETE", path)).status == 204

    async with serving(web.kafka) as other:
        other.worker.services.history = history
        for each in (web, other):
            assert titles(await listed(each)) == []
            assert (await each.call("GET", path)).status == 404
            assert (await each.call("GET", f"/v1/turns/{_of(conversation_id, 1)}")).status == 404


async def test_nobody_reads_anothers_past(web: Web, history: FakeHistory) -> None:
    conversation_id = keep(history, 1, turns=1, owner=BOBS)

    assert titles(await listed(web)) == []
    for path in (f"/v1/conversations/{conversation_id}", f"/v1/turns/{_of(conversation_id, 1)}"):
        assert (await web.call("GET", path)).status == 404
        assert (await web.call("GET", path, key=BOB)).status == 200
    assert (await web.call("DELETE", f"/v1/conversations/{conversation_id}")).status == 404
    assert (await web.call("POST", f"/v1/conversations/{conversation_id}/turns", {"input": "x"})).status == 404


# -- a conversation


async def test_a_conversation_is_read_to_its_first_turn(web: Web, history: FakeHistory) -> None:
    conversation_id = await web.begin()
    archive(history, conversation_id, 5)
    for number in (6, 7, 8):
        await answered(web, f"Question {number}?", conversation_id)
    has_left(web, conversation_id, _of(conversation_id, 5))

    part = await read(web, conversation_id, "?limit=4")
    seen = inputs(part)
    while part["has_more"]:
        part = await read(web, conversation_id, f"?limit=4&before={part['turns'][0]['turn_id']}")
        seen = inputs(part) + seen

    assert seen == [f"Question {number}?" for number in range(1, 9)]
    assert part["turns"][0]["parent"] is None
    assert part["turns"][1]["parent"] == part["turns"][0]["turn_id"]


async def test_without_a_limit_everything_at_hand_is_there_and_more_up_to_a_hundred(
    web: Web, history: FakeHistory
) -> None:
    conversation_id = await web.begin()
    archive(history, conversation_id, 120)
    await answered(web, "Question 121?", conversation_id)
    has_left(web, conversation_id, _of(conversation_id, 120))

    part = await read(web, conversation_id)

    assert inputs(part) == [f"Question {number}?" for number in range(22, 122)]
    assert part["has_more"]


async def test_turns_stand_in_the_order_of_the_log_where_their_ids_have_another(web: Web, history: FakeHistory) -> None:
    conversation_id = await web.begin()
    archive(history, conversation_id, 1)
    for text in ("first", "second", "third"):
        await answered(web, text, conversation_id)
    has_left(web, conversation_id, _of(conversation_id, 1))
    row = web.kafka.rows[conversation_id]
    swapped = [row.turns[1], row.turns[0], row.turns[2]]
    web.kafka.rows[conversation_id] = msgspec.structs.replace(row, turns=swapped)

    part = await read(web, conversation_id)

    assert inputs(part) == ["Question 1?", "second", "first", "third"]


async def test_what_never_left_the_table_needs_no_archive(web: Web, history: FakeHistory) -> None:
    conversation_id = await web.begin()
    await answered(web, "one", conversation_id)
    history.down, history.asked = True, 0

    part = await read(web, conversation_id)

    assert (inputs(part), part["has_more"], part["older_unavailable"]) == (["one"], False, False)
    assert history.asked == 0


async def test_while_the_archive_is_away_the_latest_turns_are_there_and_it_is_said(
    web: Web, history: FakeHistory
) -> None:
    conversation_id = await web.begin()
    archive(history, conversation_id, 3)
    four = await answered(web, "Question 4?", conversation_id)
    has_left(web, conversation_id, _of(conversation_id, 3))
    history.down = True

    part = await read(web, conversation_id)
    assert (inputs(part), part["has_more"], part["older_unavailable"]) == (["Question 4?"], False, True)
    part = await read(web, conversation_id, f"?before={four}")
    assert (inputs(part), part["older_unavailable"]) == ([], True)

    history.down = False
    part = await read(web, conversation_id, f"?before={four}")
    assert (inputs(part), part["older_unavailable"]) == ([f"Question {number}?" for number in (1, 2, 3)], False)


async def test_citations_of_archived_turns_come_by_title_as_those_of_the_table_do(
    web: Web, history: FakeHistory
) -> None:
    conversation_id = await web.begin()
    archive(history, conversation_id, 2)
    await answered(web, "Question 3?", conversation_id)
    has_left(web, conversation_id, _of(conversation_id, 2))

    part = await read(web, conversation_id)

    given = [[(each["title"], each["text"]) for each in turn["citations"]] for turn in part["turns"]]
    assert given == [[("Manual", "")], [("Manual", "")] * 2, []]


async def test_a_turn_that_has_left_the_table_and_is_not_archived_yet_is_read_from_kafka(web: Web) -> None:
    conversation_id = await web.begin()
    one, two, three = [await answered(web, text, conversation_id) for text in ("one", "two", "three")]
    topic = web.worker.topics_of.turns.name
    for question in web.kafka.questions()[:2]:
        turn = msgspec.structs.replace(finished_turn(question, f"to {question.input}"), parent="")
        record = Record(partition_of(conversation_id, PARTITIONS), turn.asked_at + 5, encode(turn))
        web.kafka.records.setdefault(topic, []).append(record)
    has_left(web, conversation_id, one, two)

    turns = (await read(web, conversation_id))["turns"]

    assert [(turn["turn_id"], turn["answer"]) for turn in turns] == [
        (one, "to one"),
        (two, "to two"),
        (three, "to three"),
    ]


async def test_what_the_archive_may_lack_and_the_table_has_forgotten_is_no_silent_gap(
    web: Web, history: FakeHistory
) -> None:
    conversation_id = await web.begin()
    await answered(web, "New", conversation_id)
    has_left(web, conversation_id, *(_of(conversation_id, number) for number in range(10, 110)))
    archive(history, conversation_id, 7)  # 8 and 9 have left so long ago that nobody knows of them

    found = await read(web, conversation_id)
    assert (inputs(found), found["older_unavailable"]) == (["New"], True)

    archive(history, conversation_id, 10)
    found = await read(web, conversation_id)
    expected = [f"Question {number}?" for number in range(1, 11)]
    assert (inputs(found), found["older_unavailable"]) == ([*expected, "New"], False)


async def test_a_conversation_that_only_the_archive_has_can_be_read_asked_in_renamed_and_erased(
    web: Web, history: FakeHistory
) -> None:
    conversation_id = keep(history, 1, turns=2)
    path = f"/v1/conversations/{conversation_id}"

    found = await read(web, conversation_id)
    assert (found["title"], inputs(found)) == ("Old 1", ["Question 1?", "Question 2?"])
    await web.ask("more", conversation_id)
    assert inputs(await read(web, conversation_id)) == ["Question 1?", "Question 2?", "more"]
    assert (await web.call("PATCH", path, {"title": "Mine"})).status == 200
    assert (await web.call("DELETE", path)).status == 204
    assert (await web.call("GET", path)).status == 404
    assert [control.action for control in web.kafka.controls()] == ["rename", "erase"]


async def test_what_only_the_archive_could_know_is_503_while_it_is_away(web: Web, history: FakeHistory) -> None:
    conversation_id = keep(history, 1, turns=1)
    history.down = True

    for path in (f"/v1/conversations/{conversation_id}", f"/v1/turns/{_of(conversation_id, 1)}"):
        answer = await web.call("GET", path)
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await answer.json())["error"]["code"] == "sink_unavailable"


@pytest.mark.parametrize("query", ["before=x", "before=", "limit=0", "limit=101", "limit=", "limit=-3&before=x"])
async def test_a_part_that_nobody_could_mean_is_refused(web: Web, query: str) -> None:
    conversation_id = await web.begin()

    answer = await web.call("GET", f"/v1/conversations/{conversation_id}?{query}")

    assert answer.status == 400
    assert (await answer.json())["error"]["param"] in query


# -- a turn


async def test_a_turn_that_kafka_has_deleted_is_read_from_the_archive(web: Web, history: FakeHistory) -> None:
    conversation_id = keep(history, 1, turns=2)
    turn_id = _of(conversation_id, 2)

    turn = await (await web.call("GET", f"/v1/turns/{turn_id}")).json()

    assert (turn["input"], turn["answer"], turn["status"]) == ("Question 2?", "Answer 2.", "completed")
    assert turn["conversation_id"] == conversation_id
    assert [(each["n"], each["title"], each["text"]) for each in turn["citations"]] == [
        (1, "Manual", "Passage 1."),
        (2, "Manual", "Passage 2."),
    ]
    assert (turn["retrieval"], turn["cache"]) == ("found", None)
    assert (await web.call("GET", f"/v1/turns/{turn_id}/events")).status == 410
    again = await web.call("POST", f"/v1/turns/{turn_id}/regenerate", {})
    assert again.status == 202
    assert (web.kafka.questions()[-1].beside, web.kafka.questions()[-1].parent) == (turn_id, _of(conversation_id, 1))


@pytest.mark.parametrize(("number", "model"), [(3, ""), (4, "test-model")])
@pytest.mark.parametrize(("how", "body"), [("regenerate", {}), ("edit", {"input": "Otherwise?"})])
async def test_an_archived_turn_is_asked_again_as_it_was_with_documents_or_of_a_bare_model(
    web: Web, history: FakeHistory, number: int, model: str, how: str, body: dict[str, Any]
) -> None:
    turn_id = _of(keep(history, 1, turns=4), number)

    assert (await web.call("POST", f"/v1/turns/{turn_id}/{how}", body)).status == 202

    assert web.kafka.questions()[-1].model == model


async def test_the_cache_of_an_archived_turn_is_shown(web: Web, history: FakeHistory) -> None:
    turn = await (await web.call("GET", f"/v1/turns/{_of(keep(history, 1, turns=3), 3)}")).json()

    assert (turn["retrieval"], turn["cache"], turn["citations"]) == ("weak", "miss", [])


async def test_a_young_turn_that_is_not_in_kafka_is_nowhere(web: Web, history: FakeHistory) -> None:
    history.down = True

    answer = await web.call("GET", f"/v1/turns/{new_turn_id(time.time_ns() // 1_000_000, 1, 5)}")

    assert answer.status == 404


def _of(conversation_id: str, number: int) -> str:
    return old_turn_id(number, partition_of(conversation_id, PARTITIONS))
