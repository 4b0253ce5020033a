"""Whatever goes wrong has one shape, a stable code, and a request id."""

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import ClientConnectionResetError, ClientResponse, web
from aiohttp.test_utils import make_mocked_request

from domain.errors import BadRequest, ModelBusy
from tests.support.fakes import ALICE, FakeKafka
from tests.support.web_client import Web, serving
from web import bodies
from web.errors import CLIENT_CLOSED_REQUEST, answer_errors, seen_from_outside


async def error_of(answer: ClientResponse) -> dict[str, Any]:
    """Return the error object, having checked its shape."""
    body = await answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["message"]
    assert error["request_id"] == answer.headers["X-Request-Id"]
    assert answer.content_type == "application/json"
    return error


async def test_an_unknown_route_is_404() -> None:
    async with serving() as web:
        for key in (None, "nobody-knows-this-key"):
            answer = await web.call("GET", "/v1/nothing", key=key)

            assert answer.status == 404
            assert (await error_of(answer))["code"] == "not_found"


async def test_a_wrong_method_is_405_and_says_which_are_right() -> None:
    async with serving() as web:
        answer = await web.call("DELETE", "/v1/me")

        assert answer.status == 405
        assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}
        assert (await error_of(answer))["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"nothing", "invalid_json", None),
        (b'{"input": "\xff"}', "invalid_json", None),
        (b'{"input": "\\ud800"}', "invalid_json", None),
        (b'{"metadata": {"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "invalid_json", None),
        (b"[]", "invalid_value", None),
        (b"null", "invalid_value", None),
        (b"{}", "missing_required_parameter", "input"),
        (b'{"input": 7}', "invalid_value", "input"),
        (b'{"input": "x", "on_busy": "perhaps"}', "invalid_value", "on_busy"),
        (b'{"input": "x", "options": {"temperature": 3}}', "invalid_value", "options.temperature"),
        (b'{"input": "x", "options": {"max_tokens": 0}}', "invalid_value", "options.max_tokens"),
        (b'{"input": "x", "options": {"stop": ["a", "b", "c", "d", "e"]}}', "invalid_value", "options.stop"),
        (b'{"input": "x", "metadata": {"n": 1e999}}', "invalid_value", "metadata[...]"),
        (b'{"input": " \\n\\t "}', "input_empty", "input"),
        (b'{"input": "' + b"x" * 33_000 + b'"}', "input_too_long", "input"),
    ],
)
async def test_a_bad_body_is_400_and_names_the_field(data: bytes, code: str, param: str | None) -> None:
    async with serving() as web:
        conversation_id = await web.begin()
        answer = await web.call("POST", f"/v1/conversations/{conversation_id}/turns", data=data)

        assert answer.status == 400
        error = await error_of(answer)
        assert (error["code"], error["param"]) == (code, param)
        assert error["type"] == "invalid_request_error"
        assert web.kafka.questions() == []


async def test_the_limit_of_a_question_is_said() -> None:
    async with serving(max_input_chars=10) as web:
        answer = await web.call("POST", f"/v1/conversations/{await web.begin()}/turns", {"input": "x" * 11})

        message = (await error_of(answer))["message"]
        assert "11 characters" in message
        assert "at most 10" in message


async def test_another_content_type_is_415() -> None:
    async with serving() as web:
        answer = await web.call("POST", "/v1/conversations", data=b"title=x", headers={"Content-Type": "text/plain"})

        assert answer.status == 415
        assert (await error_of(answer))["code"] == "unsupported_media_type"


async def test_no_body_at_all_is_an_empty_object() -> None:
    async with serving() as web:
        assert (await web.call("POST", "/v1/conversations")).status == 201


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_large_body_is_413_and_not_read_to_its_end(*, chunked: bool) -> None:
    async with serving(max_body_bytes=1000) as web:
        body = b'{"title": "' + b"x" * 2000 + b'"}'

        async def piece_by_piece() -> Any:
            for at in range(0, len(body), 100):
                yield body[at : at + 100]

        answer = await web.session.post(
            web.server.make_url("/v1/conversations"),
            data=piece_by_piece() if chunked else body,
            headers={"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"},
        )

        assert answer.status == 413
        error = await error_of(answer)
        assert error["code"] == "body_too_large"
        assert "1000 bytes" in error["message"]
        assert answer.headers["Connection"] == "close"


@pytest.mark.parametrize("size", [8192, 40_000])
async def test_large_metadata_is_refused(size: int) -> None:
    async with serving() as web:
        answer = await web.call("POST", "/v1/conversations", {"metadata": {"x": "x" * size}})

        assert answer.status == 400
        assert (await error_of(answer))["code"] == "metadata_too_large"


async def test_metadata_with_many_keys_is_refused() -> None:
    async with serving() as web:
        answer = await web.call("POST", "/v1/conversations", {"metadata": {str(n): n for n in range(17)}})

        assert answer.status == 400
        assert (await error_of(answer))["param"] == "metadata"


@pytest.mark.parametrize(("depth", "status"), [(32, 201), (33, 400), (600, 400), (20_000, 400)])
async def test_metadata_may_be_nested_so_deeply_and_no_deeper(depth: int, status: int) -> None:
    nested = b'{"metadata": ' + b'{"a":' * (depth - 1) + b"[]" + b"}" * depth
    async with serving() as web:
        answer = await web.session.post(
            web.server.make_url("/v1/conversations"),
            data=nested,
            headers={"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"},
        )

        assert answer.status == status
        if depth in {33, 600}:
            error = await error_of(answer)
            assert (error["param"], error["code"]) == ("metadata", "metadata_too_deep")


@pytest.mark.parametrize("route", ["conversations", "conversation", "turns", "chat/completions"])
async def test_metadata_is_looked_at_wherever_it_is_taken(route: str) -> None:
    metadata: dict[str, Any] = {}
    for _ in range(40):
        metadata = {"a": metadata}
    async with serving() as web:
        conversation = await web.begin()
        method, path, body = {
            "conversations": ("POST", "/v1/conversations", {}),
            "conversation": ("PATCH", f"/v1/conversations/{conversation}", {}),
            "turns": ("POST", f"/v1/conversations/{conversation}/turns", {"input": "?"}),
            "chat/completions": ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}]}),
        }[route]
        answer = await web.call(method, path, {**body, "metadata": metadata})  # type: ignore[dict-item]  # each is one

        assert answer.status == 400
        assert (await error_of(answer))["param"] == "metadata"


async def test_kafka_being_down_is_503_and_says_when_to_come_back() -> None:
    async with serving() as web:
        web.worker.kafka_down = True
        answer = await web.call("POST", "/v1/conversations", {})

        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await error_of(answer))["code"] == "log_unavailable"


async def test_a_defect_of_ours_is_500_and_tells_nothing_of_itself() -> None:
    class Broken(FakeKafka):
        def carry_out(self, control: object) -> None:
            raise ZeroDivisionError("the secret")

    async with serving(Broken()) as web:
        answer = await web.call("POST", "/v1/conversations", {})

        assert answer.status == 500
        error = await error_of(answer)
        assert (error["type"], error["code"]) == ("server_error", "internal_error")
        assert "secret" not in error["message"]


async def test_a_sane_request_id_is_kept_and_another_replaced() -> None:
    async with serving() as web:
        kept = await web.call("GET", "/v1/me", headers={"X-Request-Id": "client-7.a:b/c=@+_"})
        replaced = [
            await web.call("GET", "/v1/me", headers={"X-Request-Id": own}) for own in ("", "a b", "<x>", "x" * 129)
        ]

    assert kept.headers["X-Request-Id"] == "client-7.a:b/c=@+_"
    assert len({answer.headers["X-Request-Id"] for answer in replaced}) == 4
    assert all(len(answer.headers["X-Request-Id"]) == 32 for answer in replaced)


async def test_every_answer_is_safe_to_open_in_a_browser() -> None:
    async with serving() as web:
        for path in ("/v1/me", "/v1/nothing", "/", "/docs", f"/v1/turns/{await finished_turn(web)}/events"):
            answer = await web.call("GET", path)

            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert "'unsafe" not in answer.headers["Content-Security-Policy"]
            assert answer.headers["Server"] == "headrace"


async def finished_turn(web: Web) -> str:
    """Ask a question and have it answered."""
    turn_id = await web.ask()
    web.kafka.claim(turn_id)
    web.kafka.end(turn_id)
    return turn_id


def test_what_the_model_refuses_is_the_clients_to_mend_and_what_it_cannot_do_now_is_not() -> None:
    assert seen_from_outside(BadRequest("too many tokens")).status == 400
    busy = seen_from_outside(ModelBusy("busy", retry_after=6.2))
    assert (busy.status, busy.headers["Retry-After"]) == (503, "7")


async def test_a_body_that_does_not_come_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    async with serving() as web, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", web.server.port)
        head = f"Host: localhost\r\nAuthorization: Bearer {ALICE}\r\nContent-Type: application/json\r\n"
        writer.write(f"POST /v1/conversations HTTP/1.1\r\n{head}Content-Length: 50\r\n\r\n{{".encode())
        status = await reader.readline()
        writer.close()

    assert status.split()[1] == b"408"


@pytest.mark.parametrize(("closing", "status"), [(True, CLIENT_CLOSED_REQUEST), (False, 500)])
async def test_a_client_that_left_before_its_answer_is_no_error_of_ours(closing: bool, status: int) -> None:
    async def begin_to_answer(_: web.Request) -> web.StreamResponse:
        raise ClientConnectionResetError("Cannot write to closing transport")

    transport = Mock(is_closing=Mock(return_value=closing))
    response = await answer_errors(make_mocked_request("GET", "/v1/me", transport=transport), begin_to_answer)

    assert response.status == status
