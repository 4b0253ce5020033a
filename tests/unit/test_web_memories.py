"""What is remembered of a user is theirs alone: to read, to add to, to change, to erase and to switch off."""

from typing import Any

import pytest

from domain.memory import TEXT_LENGTH
from streams.records import MemoryChange
from tests.support.fakes import ALICE, BOB
from tests.support.web_client import Web, serving
from web import memories

PATH = "/v1/me/memories"


async def add(web: Web, text: str, key: str = ALICE) -> dict[str, Any]:
    response = await web.call("POST", PATH, {"text": text}, key=key)
    assert response.status == 201, await response.text()
    added: dict[str, Any] = await response.json()
    return added


async def listed(web: Web, key: str = ALICE) -> dict[str, Any]:
    response = await web.call("GET", PATH, key=key)
    assert response.status == 200, await response.text()
    found: dict[str, Any] = await response.json()
    return found


async def texts(web: Web, key: str = ALICE) -> list[str]:
    return [each["text"] for each in (await listed(web, key))["data"]]


async def tell(web: Web, text: str, slot: str, turn_id: str) -> None:
    """Have the agents find a fact in a turn of Alice's."""
    change = MemoryChange(
        change_id=turn_id, action="remember", tenant="acme", user="alice", at=5, text=text, slot=slot,
        kind="identity", turn_id=turn_id, conversation_id="c",
    )  # fmt: skip
    await web.worker.publish(web.worker.topics_of.memory_changes, "acme/alice", change)


async def test_a_user_reads_what_is_remembered_and_where_it_was_told() -> None:
    async with serving() as web:
        assert await listed(web) == {
            "object": "list", "data": [], "has_more": False, "enabled": True, "switchable": True,
        }  # fmt: skip

        await tell(web, "The user's name is Ann.", "name", "turn-1")

        (found,) = (await listed(web))["data"]
        assert (found["text"], found["kind"], found["object"]) == ("The user's name is Ann.", "identity", "memory")
        assert found["source"] == {"conversation_id": "c", "turn_id": "turn-1"}
        assert found["created_at"] == found["valid_from"] == "1970-01-01T00:00:00.005000Z"


async def test_what_is_changed_is_there_when_the_change_is_answered() -> None:
    async with serving() as web:
        added = await add(web, "I work at  Acme.\n")
        assert (added["text"], added["kind"], added["source"]) == ("I work at Acme.", "identity", None)
        assert await texts(web) == ["I work at Acme."]

        changed = await web.call("PATCH", f"{PATH}/{added['id']}", {"text": "I work at Initech."})
        assert changed.status == 200
        assert (await changed.json())["id"] == added["id"]
        assert await texts(web) == ["I work at Initech."]

        assert (await web.call("DELETE", f"{PATH}/{added['id']}")).status == 204
        assert await texts(web) == []


async def test_what_is_added_takes_the_place_of_what_it_contradicts() -> None:
    async with serving() as web:
        await tell(web, "The user's name is Ann.", "name", "turn-1")
        await add(web, "My name is Beth")

        assert await texts(web) == ["My name is Beth"]


async def test_everything_is_erased_at_once() -> None:
    async with serving() as web:
        await add(web, "I like jazz")
        await add(web, "I like tea")

        assert (await web.call("DELETE", PATH)).status == 204
        assert await texts(web) == []


async def test_memory_is_switched_off_and_on_by_its_user() -> None:
    async with serving() as web:
        await add(web, "I like jazz")
        off = await web.call("PATCH", PATH, {"enabled": False})
        assert (off.status, (await off.json())["enabled"]) == (200, False)

        await tell(web, "The user's name is Ann.", "name", "turn-1")
        refused = await web.call("POST", PATH, {"text": "I like tea"})
        assert (refused.status, (await refused.json())["error"]["code"]) == (409, "memory_off")
        assert await texts(web) == ["I like jazz"]

        assert (await web.call("PATCH", PATH, {"enabled": True})).status == 200
        await add(web, "I like tea")


async def test_an_operator_switches_it_off_for_everyone_and_what_is_there_can_still_be_erased() -> None:
    async with serving(memory="off") as web:
        await tell(web, "The user's name is Ann.", "name", "turn-1")
        found = await listed(web)
        assert (found["enabled"], found["switchable"], len(found["data"])) == (False, False, 1)

        assert (await web.call("PATCH", PATH, {"enabled": True})).status == 409
        assert (await web.call("POST", PATH, {"text": "I like tea"})).status == 409
        assert (await web.call("DELETE", PATH)).status == 204
        assert await texts(web) == []


async def test_nobody_reads_changes_or_erases_what_is_remembered_of_somebody_else() -> None:
    async with serving() as web:
        added = await add(web, "I like jazz")
        await add(web, "I like tea", BOB)

        assert await texts(web, BOB) == ["I like tea"]
        for method, body in (("PATCH", {"text": "I hate jazz"}), ("DELETE", None)):
            response = await web.call(method, f"{PATH}/{added['id']}", body, key=BOB)
            assert (response.status, (await response.json())["error"]["code"]) == (404, "memory_not_found")
        assert (await web.call("DELETE", PATH, key=BOB)).status == 204
        assert await texts(web) == ["I like jazz"]
        for method, path in (("GET", PATH), ("DELETE", PATH), ("DELETE", f"{PATH}/{added['id']}")):
            assert (await web.call(method, path, key=None)).status == 401


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "invalid_value"), (" \n ", "invalid_value"), ("x" * (TEXT_LENGTH + 1), "invalid_value"), (7, "invalid_value"),
     ("my password is hunter2", "secret")],
)  # fmt: skip
async def test_what_cannot_be_remembered_is_refused(text: Any, code: str) -> None:
    async with serving() as web:
        known = await add(web, "I like jazz")
        for method, path in (("POST", PATH), ("PATCH", f"{PATH}/{known['id']}")):
            response = await web.call(method, path, {"text": text})
            assert (response.status, (await response.json())["error"]["code"]) == (400, code)


async def test_while_elasticsearch_is_away_nothing_is_told_and_nothing_changed() -> None:
    async with serving() as web:
        known = await add(web, "I like jazz")
        web.worker.services.memories.down = True
        published = len(web.kafka.published)
        for method, path, body in (
            ("GET", PATH, None),
            ("POST", PATH, {"text": "I like tea"}),
            ("PATCH", PATH, {"enabled": False}),
            ("DELETE", PATH, None),
            ("PATCH", f"{PATH}/{known['id']}", {"text": "I like tea"}),
            ("DELETE", f"{PATH}/{known['id']}", None),
        ):
            response = await web.call(method, path, body)
            assert response.status == 503
            assert "Retry-After" in response.headers
        assert len(web.kafka.published) == published


async def test_a_change_that_does_not_show_yet_is_answered_as_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "SHOWN_SECONDS", 0.05)
    async with serving() as web:
        known = await add(web, "I like jazz")
        web.worker.services.memories.stuck = True

        for method, path, body in (
            ("POST", PATH, {"text": "I like tea"}),
            ("PATCH", PATH, {"enabled": False}),
            ("PATCH", f"{PATH}/{known['id']}", {"text": "I like tea"}),
            ("DELETE", f"{PATH}/{known['id']}", None),
            ("DELETE", PATH, None),
        ):
            assert (await web.call(method, path, body)).status == 202


async def test_a_change_that_kafka_does_not_take_is_refused() -> None:
    async with serving() as web:
        web.worker.kafka_down = True

        assert (await web.call("DELETE", PATH)).status == 503
