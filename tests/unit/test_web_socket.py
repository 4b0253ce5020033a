"""The WebSocket: what the native routes do, as messages, with the same numbers, refusals and guards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError

from streams.records import Feedback
from tests.support.fakes import ALICE, BOB
from tests.support.web_client import Web, all_events, serving
from web import socket
from web.site import SITE


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as found:
        yield found


class Client:
    """One side of a socket. Every wait ends within ten seconds."""

    def __init__(self, connection: ClientWebSocketResponse) -> None:
        self.connection = connection

    async def send(self, **message: Any) -> None:
        await self.connection.send_str(msgspec.json.encode(message).decode())

    async def next(self) -> dict[str, Any]:
        said: dict[str, Any] = await self.connection.receive_json(timeout=10)
        return said

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """Return the messages up to the first of this type."""
        heard = [await self.next()]
        while heard[-1]["type"] != kind:
            heard.append(await self.next())
        return heard

    async def call(self, **message: Any) -> dict[str, Any]:
        """Send a message, and return what answers it."""
        await self.send(ref="call", **message)
        while (said := await self.next()).get("ref") != "call":
            pass
        return said


@asynccontextmanager
async def connected(web: Web, *, key: str | None = ALICE, **headers: str) -> AsyncIterator[Client]:
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    async with web.session.ws_connect(web.server.make_url("/v1/ws"), headers=headers) as connection:
        yield Client(connection)


async def test_a_question_is_accepted_and_its_events_follow_as_they_come(web: Web) -> None:
    conversation_id = await web.begin()
    async with connected(web) as client:
        await client.send(type="ask", ref="q1", conversation_id=conversation_id, input="Why?", metadata={"a": 1})
        accepted = await client.next()
        turn_id = accepted["turn_id"]
        web.kafka.claim(turn_id)
        web.kafka.say(turn_id, "Be", "cause\n")
        web.kafka.end(turn_id)
        events = await client.until("turn.completed")

    assert accepted == {
        "type": "accepted",
        "ref": "q1",
        "turn_id": turn_id,
        "conversation_id": conversation_id,
        "status": "queued",
        "events_url": f"/v1/turns/{turn_id}/events",
    }
    assert web.kafka.questions()[0].metadata == {"a": 1}
    streamed = await all_events(await web.open("GET", f"/v1/turns/{turn_id}/events"))
    assert events == [{"type": event.name, "id": int(event.id), "turn_id": turn_id, **event.data} for event in streamed]


async def test_without_a_conversation_one_is_begun(web: Web) -> None:
    async with connected(web) as client:
        accepted = await client.call(type="ask", input="Why?")

    assert (await web.call("GET", f"/v1/conversations/{accepted['conversation_id']}")).status == 200


async def test_a_repeated_key_gives_the_same_turn(web: Web) -> None:
    conversation_id = await web.begin()
    question = {"type": "ask", "conversation_id": conversation_id, "input": "Why?", "idempotency_key": "k"}
    async with connected(web) as client:
        first = await client.call(**question)
        async with connected(web) as other:
            again = await other.call(**question)
        otherwise = await client.call(**question | {"input": "How?"})

    assert first == again
    assert (otherwise["status"], otherwise["error"]["code"]) == (409, "idempotency_key_reused")
    assert len(web.kafka.questions()) == 1


async def test_questions_sent_at_once_are_accepted_in_their_order(web: Web) -> None:
    conversation_id = await web.begin()
    async with connected(web) as client:
        for number in range(30):
            await client.send(type="ask", ref=str(number), conversation_id=conversation_id, input=f"{number}?")
        refs = [(await client.next())["ref"] for _ in range(30)]

    assert refs == [str(number) for number in range(30)]
    assert [question.input for question in web.kafka.questions()] == [f"{number}?" for number in range(30)]


async def test_a_client_that_comes_back_goes_on_after_the_event_that_it_saw_last(web: Web) -> None:
    turn_id = await web.ask()
    web.kafka.claim(turn_id)
    web.kafka.say(turn_id, "a", "b")
    async with connected(web) as client:
        await client.send(type="events", turn_id=turn_id)
        assert [message["type"] for message in await client.until("token")] == ["accepted", "turn.started", "token"]
    async with connected(web) as client:
        await client.send(type="events", turn_id=turn_id, starting_after=1)
        running, missed = await client.next(), await client.next()
        web.kafka.end(turn_id)
        end = await client.next()
        done = await client.call(type="events", turn_id=turn_id, starting_after=3)

    assert (running["type"], running["status"]) == ("accepted", "running")
    assert (missed["id"], missed["text"], end["id"], end["type"]) == (2, "b", 3, "turn.completed")
    assert done["status"] == "completed"


async def test_one_socket_follows_many_turns_each_of_them_once(web: Web) -> None:
    turns = [await web.ask() for _ in range(5)]
    async with connected(web) as client:
        for turn_id in [*turns, *turns]:
            await client.call(type="events", turn_id=turn_id)
        for turn_id in turns:
            web.kafka.claim(turn_id)
            web.kafka.end(turn_id)
        heard = [await client.next() for _ in range(10)]
        await client.send(type="ping")

        assert sorted((message["turn_id"], message["id"]) for message in heard) == sorted(
            (turn_id, number) for turn_id in turns for number in (0, 1)
        )
        assert await client.next() == {"type": "pong"}


async def test_a_finished_turn_is_rated(web: Web) -> None:
    turn_id = await web.ask()
    web.kafka.claim(turn_id)
    web.kafka.end(turn_id)
    web.kafka.publish_turn(turn_id)
    async with connected(web) as client:
        refused = await client.call(type="feedback", turn_id=turn_id, rating=3)
        accepted = await client.call(type="feedback", turn_id=turn_id, rating=-1, comment="No.")

    assert (refused["type"], refused["status"], refused["error"]["param"]) == ("error", 400, "rating")
    assert (accepted["type"], accepted["turn_id"], accepted["rating"]) == ("accepted", turn_id, -1)
    (said,) = [record for record in web.kafka.published if isinstance(record, Feedback)]
    assert (said.rating, said.comment) == (-1, "No.")


async def test_a_turn_is_stopped_answered_again_and_asked_otherwise(web: Web) -> None:
    turn_id = await web.ask("Why?")
    web.kafka.claim(turn_id)
    web.kafka.say(turn_id, "Be")
    async with connected(web) as client:
        stopped = await client.call(type="stop", turn_id=turn_id)
        again = await client.call(type="regenerate", turn_id=turn_id, options={"seed": 7})
        otherwise = await client.call(type="edit", turn_id=turn_id, input="How?")

    assert stopped == {"type": "accepted", "ref": "call", "turn_id": turn_id, "status": "running"}
    assert web.kafka.controls()[-1].turn_id == turn_id
    _, regenerated, edited = web.kafka.questions()
    assert [regenerated.turn_id, edited.turn_id] == [again["turn_id"], otherwise["turn_id"]]
    assert (regenerated.beside, regenerated.options) == (turn_id, {"seed": 7})
    assert (edited.beside, edited.input) == (turn_id, "How?")


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ("no JSON", 400, "invalid_json"),
        ("[]", 400, "invalid_value"),
        ('{"type": "learn"}', 400, "invalid_value"),
        ('{"type": "events"}', 400, "missing_required_parameter"),
        ('{"type": "stop", "turn_id": ""}', 400, "missing_required_parameter"),
        ('{"type": "events", "turn_id": "none"}', 404, "turn_not_found"),
        ('{"type": "events", "turn_id": "none", "starting_after": -2}', 400, "invalid_value"),
        ('{"type": "stop", "turn_id": "../me"}', 404, "turn_not_found"),
        ('{"type": "stop", "turn_id": ".."}', 404, "turn_not_found"),
        ('{"type": "ask", "conversation_id": "none", "input": "Why?"}', 404, "conversation_not_found"),
        ('{"type": "ask", "input": " "}', 400, "input_empty"),
        ('{"type": "ask"}', 400, "missing_required_parameter"),
        ('{"type": "ask", "input": "Why?", "idempotency_key": "a\\r\\nb"}', 400, "invalid_value"),
    ],
)
async def test_what_cannot_be_done_is_said_and_the_socket_stays(web: Web, sent: str, status: int, code: str) -> None:
    async with connected(web) as client:
        await client.connection.send_str(sent)
        refused = await client.next()

        assert (refused["type"], refused["status"], refused["error"]["code"]) == ("error", status, code)
        assert refused["error"]["request_id"]
        assert await client.call(type="ping") == {"type": "pong", "ref": "call"}


async def test_while_partitions_move_a_client_is_told_when_to_ask_again(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.owner.PATIENCE_SECONDS", 0.0)
    web.worker.rebalancing = True
    conversation_id = (await (await web.call("POST", "/v1/conversations", {})).json())["id"]
    async with connected(web) as client:
        refused = await client.call(type="ask", conversation_id=conversation_id, input="x", on_busy="reject")

    assert (refused["status"], refused["retry_after"]) == (503, 1)


async def test_someone_elses_turn_is_not_there(web: Web) -> None:
    turn_id = await web.ask()
    async with connected(web, key=BOB) as client:
        for kind in ("events", "stop", "regenerate"):
            assert (await client.call(type=kind, turn_id=turn_id))["status"] == 404


async def test_a_socket_that_follows_too_many_turns_is_refused_more(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "MAX_FOLLOWED", 2)
    turns = [await web.ask() for _ in range(3)]
    async with connected(web) as client:
        answers = [await client.call(type="events", turn_id=turn_id) for turn_id in turns]
        asked = await client.call(type="ask", input="Why?")
        again = await client.call(type="events", turn_id=turns[0])

    assert [answer["type"] for answer in (*answers, asked, again)] == [
        "accepted",
        "accepted",
        "error",
        "error",
        "accepted",
    ]
    assert len(web.kafka.questions()) == 3


# -- the connection


@pytest.mark.parametrize(
    ("headers", "key", "status"),
    [
        ({}, None, 401),
        ({}, "wrong-key-0123456789", 401),
        ({"Origin": "https://elsewhere.example"}, ALICE, 403),
        ({"Origin": "null"}, ALICE, 403),
        ({"Origin": "http://127.0.0.1"}, ALICE, 403),
    ],
)
async def test_strangers_and_pages_of_other_websites_are_kept_out(
    web: Web, headers: dict[str, str], key: str | None, status: int
) -> None:
    with pytest.raises(WSServerHandshakeError) as refused:
        async with connected(web, key=key, **headers):
            pass

    assert refused.value.status == status


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_our_own_page_may_open_one_also_behind_a_proxy_that_ends_tls(web: Web, scheme: str) -> None:
    origin = f"{scheme}://{web.server.host}:{web.server.port}"
    async with connected(web, Origin=origin) as client:
        assert (await client.call(type="ping"))["type"] == "pong"


async def test_a_request_without_an_upgrade_is_told_what_this_is(web: Web) -> None:
    answer = await web.call("GET", "/v1/ws")

    assert (answer.status, answer.headers["Upgrade"]) == (426, "websocket")
    assert (await answer.json())["error"]["code"] == "upgrade_required"


async def test_a_message_that_is_too_large_ends_the_socket() -> None:
    async with serving(max_body_bytes=2000) as web, connected(web) as client:
        await client.send(type="ask", input="x" * 2000)

        assert (await client.connection.receive(timeout=10)).type is WSMsgType.CLOSE
        assert client.connection.close_code == 1009
        assert web.kafka.questions() == []


async def test_a_shutdown_sends_the_client_on_with_1012(web: Web) -> None:
    turn_id = await web.ask()
    web.kafka.claim(turn_id)
    async with connected(web) as client:
        await client.send(type="events", turn_id=turn_id)
        await client.until("turn.started")

        closing = asyncio.create_task(web.server.close())
        said = await client.connection.receive(timeout=10)

        assert (said.type, said.data, said.extra) == (WSMsgType.CLOSE, 1012, "service restart")
        await closing
        assert web.kafka.readers == 0


async def test_a_client_that_leaves_is_not_followed_any_more(web: Web) -> None:
    turn_id = await web.ask()
    async with connected(web) as client:
        await client.call(type="events", turn_id=turn_id)

    async with asyncio.timeout(10):
        while web.kafka.readers or len(web.server.app[SITE].streams):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("patience", [{"write_seconds": 0.2}, {"ping_seconds": 0.2}], ids=["stuck", "no pong"])
async def test_a_client_that_takes_nothing_is_cut_off_and_the_others_are_not_held_up(
    patience: dict[str, Any],
) -> None:
    async with serving(**patience) as web, connected(web) as client:
        turn_id = await web.ask()
        web.kafka.claim(turn_id)
        stuck = await stuck_client(web, turn_id)
        await client.call(type="events", turn_id=turn_id)
        await client.next()
        async with asyncio.timeout(10):
            while web.kafka.readers < 2:
                await asyncio.sleep(0.01)
            # More than all the buffers between us and the client can take.
            while web.kafka.readers == 2:
                web.kafka.say(turn_id, "x" * 65_536)
                assert (await client.next())["type"] == "token"

        web.kafka.end(turn_id)
        assert (await client.next())["type"] == "turn.completed"
        stuck.close()


async def stuck_client(web: Web, turn_id: str) -> asyncio.StreamWriter:
    """Open a socket, follow a turn on it, and never read."""
    url = web.server.make_url("/v1/ws")
    _, writer = await asyncio.open_connection(url.host, url.port, limit=1024)
    writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport has it
    handshake = (
        f"GET {url.path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ALICE}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    command = msgspec.json.encode({"type": "events", "turn_id": turn_id})
    # A text frame whose mask is zero, so that it is what it says.
    writer.write(handshake.encode() + bytes([0x81, 0x80 | len(command)]) + bytes(4) + command)
    return writer
