"""The events of a turn: the same numbers for every reader, whenever and from wherever it comes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from domain.turns import Failure
from tests.support.fakes import ALICE
from tests.support.web_client import Event, Web, all_events, events_of, serving

TEXTS = ("Be", "cause\n\nof", ' "tea"', "\r\ndata: no\r\n", "é 語 \u2028 🫖", "")


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as found:
        yield found


async def answered(web: Web) -> str:
    """Ask a question, and have it answered with the texts."""
    turn_id = await web.ask()
    web.kafka.claim(turn_id)
    web.kafka.say(turn_id, *TEXTS)
    web.kafka.end(turn_id)
    return turn_id


async def read(web: Web, turn_id: str, query: str = "", **headers: str) -> list[Event]:
    return await all_events(await web.open("GET", f"/v1/turns/{turn_id}/events{query}", headers=headers))


async def test_a_finished_turn_is_told_from_its_first_event_to_its_last(web: Web) -> None:
    turn_id = await answered(web)

    answer = await web.open("GET", f"/v1/turns/{turn_id}/events")
    events = await all_events(answer)

    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert [event.id for event in events] == [str(number) for number in range(len(TEXTS) + 2)]
    assert [event.name for event in events] == ["turn.started", *["token"] * len(TEXTS), "turn.completed"]
    conversation_id = web.kafka.questions()[0].conversation_id
    assert events[0].data == {"turn_id": turn_id, "conversation_id": conversation_id, "model": "test-model"}
    assert [event.data for event in events[1:-1]] == [{"text": text} for text in TEXTS]
    assert events[-1].data["outcome"] == "completed"
    assert events[-1].data["usage"] == {"input_tokens": 7, "output_tokens": 3}
    assert set(events[-1].data["timings"]) == {"started_ms", "first_token_ms", "total_ms"}


async def test_a_reader_can_come_back_at_every_event_and_misses_nothing(web: Web) -> None:
    turn_id = await answered(web)
    whole = await read(web, turn_id)

    for seen in range(len(whole) - 1):
        assert await read(web, turn_id, **{"Last-Event-ID": str(seen)}) == whole[seen + 1 :]
        assert await read(web, turn_id, f"?starting_after={seen}") == whole[seen + 1 :]
    assert await read(web, turn_id, "?starting_after=-1") == whole


async def test_what_the_browser_saw_last_counts_more_than_the_url_it_began_with(web: Web) -> None:
    turn_id = await answered(web)

    events = await read(web, turn_id, "?starting_after=1", **{"Last-Event-ID": "5"})

    assert events[0].id == "6"


@pytest.mark.parametrize("seen", [len(TEXTS) + 1, 999_999_999])
async def test_who_has_everything_is_told_not_to_come_back(web: Web, seen: int) -> None:
    turn_id = await answered(web)

    answer = await web.call("GET", f"/v1/turns/{turn_id}/events", headers={"Last-Event-ID": str(seen)})

    assert answer.status == 204
    assert await answer.read() == b""


@pytest.mark.parametrize("place", ["x", "1.5", "-2", "1e3", "1" * 10, "٣", "0x1"])
async def test_a_place_that_is_no_number_is_refused(web: Web, place: str) -> None:
    turn_id = await answered(web)

    for query, headers in ((f"?starting_after={place}", {}), ("", {"Last-Event-ID": place})):
        answer = await web.call("GET", f"/v1/turns/{turn_id}/events{query}", headers=headers)
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] == "invalid_value"


async def test_a_stream_is_open_before_its_turn_begins_and_tells_it_as_it_comes(web: Web) -> None:
    turn_id = await web.ask()
    async with asyncio.timeout(5):
        answer = await web.open("GET", f"/v1/turns/{turn_id}/events")
        assert answer.status == 200
        assert await answer.content.readuntil(b"\n\n") == b"retry: 300\n\n"
        events = events_of(answer)

        web.kafka.claim(turn_id)
        assert (await anext(events)).name == "turn.started"
        for text in TEXTS:
            web.kafka.say(turn_id, text)
            assert (await anext(events)).data == {"text": text}
        web.kafka.end(turn_id)
        assert (await anext(events)).name == "turn.completed"
        assert [event async for event in events] == []


async def test_many_readers_see_the_same(web: Web) -> None:
    turn_id = await web.ask()
    readers = [asyncio.create_task(read(web, turn_id)) for _ in range(5)]
    web.kafka.claim(turn_id)
    for text in TEXTS:
        web.kafka.say(turn_id, text)
        await asyncio.sleep(0)
    web.kafka.end(turn_id)

    told = await asyncio.gather(*readers, read(web, turn_id))

    assert all(events == told[0] for events in told)
    assert len(told[0]) == len(TEXTS) + 2


async def test_a_turn_that_changes_its_owner_is_told_as_one(web: Web) -> None:
    turn_id = await web.ask()
    reader = asyncio.create_task(read(web, turn_id))
    web.kafka.claim(turn_id, epoch=1)
    web.kafka.say(turn_id, "a")
    web.kafka.claim(turn_id, epoch=5)
    web.kafka.say(turn_id, "b")
    web.kafka.end(turn_id)

    events = await reader

    assert [event.id for event in events] == ["0", "1", "2", "3"]
    assert (await (await web.call("GET", f"/v1/turns/{turn_id}")).json())["claims"] == 2


async def test_a_stopped_and_a_failed_turn_say_so(web: Web) -> None:
    stopped, failed = await web.ask(), await web.ask()
    for turn_id in (stopped, failed):
        web.kafka.claim(turn_id)
    web.kafka.end(stopped, "stopped")
    web.kafka.end(failed, "failed", error=Failure("the model is away", "model_unavailable"))

    last_of_stopped = (await read(web, stopped))[-1]
    last_of_failed = (await read(web, failed))[-1]

    assert (last_of_stopped.name, last_of_stopped.data["outcome"]) == ("turn.stopped", "stopped")
    assert last_of_failed.name == "turn.failed"
    assert last_of_failed.data["error"] == {"message": "the model is away", "code": "model_unavailable"}


async def test_tool_calls_are_told_as_one_line(web: Web) -> None:
    turn_id = await web.ask()
    web.kafka.claim(turn_id)
    web.kafka.say(turn_id, '[{"index": 0,\n "id": "c1"}]', kind="tool")
    web.kafka.end(turn_id)

    event = (await read(web, turn_id))[1]

    assert (event.name, event.data) == ("turn.tool_calls", {"tool_calls": [{"index": 0, "id": "c1"}]})


async def test_head_tells_nothing_of_a_stream(web: Web) -> None:
    turn_id = await answered(web)

    assert (await web.call("HEAD", f"/v1/turns/{turn_id}/events")).status == 405


async def test_a_client_that_knows_no_chunks_gets_plain_bytes(web: Web) -> None:
    turn_id = await answered(web)

    reader, writer = await asyncio.open_connection(web.server.host, web.server.port)
    writer.write(f"GET /v1/turns/{turn_id}/events HTTP/1.0\r\nAuthorization: Bearer {ALICE}\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()

    assert b"chunked" not in head.lower()
    events = [block for block in body.decode().split("\n\n") if block.startswith("id: ")]
    assert [block.split("\n")[0] for block in events] == [f"id: {number}" for number in range(len(TEXTS) + 2)]
