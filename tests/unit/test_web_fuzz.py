"""No input makes a 500: whatever a client sends, it is answered in our shape."""

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fakes import ALICE, answering
from tests.support.web_client import Web, serving

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
        optional={"content": values, "name": leaves, "tool_calls": values, "tool_call_id": leaves},
    ),
    max_size=3,
)
OPTIONAL = [
    "model",
    "stream",
    "stream_options",
    "temperature",
    "max_tokens",
    "stop",
    "seed",
    "tools",
    "tool_choice",
    "response_format",
    "n",
    "metadata",
    "logit_bias",
    "user",
    "modalities",
]
BODIES: dict[str, st.SearchStrategy[Any]] = {
    "/v1/conversations": st.fixed_dictionaries({}, optional={"title": values, "metadata": values}),
    "/v1/conversations/{conversation}/turns": st.fixed_dictionaries(
        {"input": st.text() | values},
        optional={"model": values, "on_busy": values, "metadata": values, "options": values},
    ),
    "/v1/chat/completions": st.fixed_dictionaries(
        {"messages": messages | values},
        optional=dict.fromkeys(OPTIONAL, values),
    ),
}


async def sent(web: Web, path: str, data: bytes, **headers: str) -> None:
    """Send a body, and check the answer's shape."""
    answer = await web.call("POST", path, data=data, headers=headers)
    body = await answer.read()
    assert answer.status < 500, (path, data, body)
    if answer.status >= 400:
        error = msgspec.json.decode(body)["error"]
        assert error["code"]
        assert error["message"]


async def conversed(path: str, bodies: list[bytes]) -> None:
    async with serving() as web:
        web.worker.services.model.names = []
        web.worker.script = answering(["x"])
        path = path.replace("{conversation}", await web.begin())
        for body in bodies:
            await sent(web, path, body)


@pytest.mark.parametrize("path", BODIES)
@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_answered(path: str, data: st.DataObject) -> None:
    bodies = data.draw(st.lists(BODIES[path], min_size=1, max_size=20))

    asyncio.run(conversed(path, [msgspec.json.encode(body) for body in bodies]))


@given(bodies=st.lists(st.binary(max_size=200), min_size=1, max_size=20))
@settings(max_examples=10)
def test_any_bytes_are_answered(bodies: list[bytes]) -> None:
    asyncio.run(conversed("/v1/conversations/{conversation}/turns", bodies))


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /v1/conversations HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n%b\r\nhello",
        b"POST /v1/conversations HTTP/1.1\r\nExpect: miracles\r\nContent-Length: 2\r\n%b\r\n{}",
        b"POST /v1/conversations HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n%b\r\n{}",
        b"POST /v1/conversations HTTP/1.1\r\nIdempotency-Key: \xff\r\nContent-Length: 2\r\n%b\r\n{}",
        b"POST /v1/conversations HTTP/1.1\r\nX-Type: \xff\r\nContent-Length: 2\r\n%b\r\n[]",
        b"GET /v1/turns/%%ff%%fe HTTP/1.1\r\n%b\r\n",
        b"GET /v1/me HTTP/1.1\r\nX-Request-Id: \xff\r\n%b\r\n",
        b"GET /v1/conversations?limit=%%ff&after=%%00 HTTP/1.1\r\n%b\r\n",
        b"GET /nothing HTTP/1.1\r\nExpect: miracles\r\n%b\r\n",
    ],
)
async def test_what_no_client_library_would_send_is_answered_too(request_bytes: bytes) -> None:
    common = f"Host: localhost\r\nAuthorization: Bearer {ALICE}\r\nContent-Type: application/json\r\n".encode()
    async with serving() as web:
        reader, writer = await asyncio.open_connection("127.0.0.1", web.server.port)
        writer.write(request_bytes % common)
        async with asyncio.timeout(5):
            status = int((await reader.readline()).split()[1])
            if status == 100:
                await reader.readline()
                status = int((await reader.readline()).split()[1])
            head = await reader.readuntil(b"\r\n\r\n")
        writer.close()

    assert status < 500
    assert b"x-request-id: " in head.lower()
