"""A WebSocket through a real worker on Kafka: one answer over several connections, and over a restart of the worker."""

import asyncio
from typing import Any

import aiohttp

from tests.conftest import StartWorker
from tests.support.model_server import ModelServer
from tests.support.scripted_answer import expected_answer
from tests.support.services import Services

QUESTION = "over the wire [tokens=120]"


async def test_an_answer_goes_on_over_lost_connections_and_a_restart_of_the_worker(
    services: Services, start_worker: StartWorker, model: ModelServer, http: aiohttp.ClientSession
) -> None:
    worker = await start_worker(services, OPENAI_BASE_URL=model.base_url)
    url = f"{worker.url}/v1/ws"
    events: list[dict[str, Any]] = []

    async with http.ws_connect(url) as socket:
        await socket.send_json({"type": "ask", "input": QUESTION, "ref": "q"})
        accepted = await socket.receive_json(timeout=10)
        assert (accepted["type"], accepted["ref"]) == ("accepted", "q")
        turn_id = accepted["turn_id"]
        events += [await socket.receive_json(timeout=10) for _ in range(10)]

    for number in range(2):
        async with http.ws_connect(url) as socket:
            await follow_after(socket, turn_id, events)
            events += [await socket.receive_json(timeout=10) for _ in range(10)]
            if number == 1:
                ending = asyncio.create_task(worker.terminate())
                while (message := await socket.receive(timeout=10)).type is aiohttp.WSMsgType.TEXT:
                    events.append(message.json())
                assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1012)
                assert await ending == 0

    await worker.start()
    async with http.ws_connect(url) as socket:
        await follow_after(socket, turn_id, events)
        while events[-1]["type"] in {"turn.started", "token"}:
            events.append(await socket.receive_json(timeout=20))

    assert [event["id"] for event in events] == list(range(122))
    assert {event["turn_id"] for event in events} == {turn_id}
    assert "".join(event.get("text", "") for event in events) == "".join(expected_answer(QUESTION))
    assert events[-1]["type"] == "turn.completed"


async def follow_after(socket: aiohttp.ClientWebSocketResponse, turn_id: str, events: list[dict[str, Any]]) -> None:
    """Ask for the events after those that are here."""
    await socket.send_json({"type": "events", "turn_id": turn_id, "starting_after": events[-1]["id"]})
    assert (await socket.receive_json(timeout=10))["type"] == "accepted"
