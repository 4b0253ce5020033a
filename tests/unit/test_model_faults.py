"""What goes wrong at a model server comes out as one of two errors: it may work soon, or it never will."""

import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from prometheus_client import REGISTRY

from adapters.model import Model, open_model
from domain.errors import BadRequest, ChatError, ModelBusy
from domain.generation import Delta
from tests.support.model_client import asking, read, settings_for, text_of
from tests.support.model_server import ModelServer
from tests.support.scripted_answer import expected_answer

STALL_SECONDS = 0.3


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
async def model(server: ModelServer) -> AsyncIterator[Model]:
    async with open_model(settings_for(server.base_url, stall_seconds=STALL_SECONDS)) as opened:
        yield opened


async def failure(model: Model, question: str) -> tuple[ChatError, list[Delta]]:
    """Return what an answer failed with, and what came before that."""
    before: list[Delta] = []
    with pytest.raises(ChatError) as caught:
        await read(model, asking(question), into=before)
    return caught.value, before


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
async def test_a_server_that_cannot_now_is_busy(model: Model, status: int) -> None:
    error, before = await failure(model, f"[fault={status} times=all retry_after=7]")

    assert isinstance(error, ModelBusy)
    assert f"scripted {status}" in str(error)
    assert error.retry_after == 7
    assert before == []


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_a_request_that_is_at_fault_is_refused_without_another_try(
    model: Model, server: ModelServer, status: int
) -> None:
    error, _ = await failure(model, f"[fault={status} times=all]")

    assert isinstance(error, BadRequest)
    assert f"scripted {status}" in str(error)
    assert server.stats.requests == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_named_and_never_quoted(server: ModelServer, status: int) -> None:
    server.fail_next(str(status), message="Incorrect API key provided: sk-se**ret.")
    async with open_model(settings_for(server.base_url, api_key="sk-secret")) as model:
        error, _ = await failure(model, "hi")

    assert isinstance(error, BadRequest)
    assert "OPENAI_API_KEY" in str(error)
    assert "sk-" not in str(error)


async def test_a_wish_to_wait_is_handed_on_at_once_and_not_slept_through(model: Model, server: ModelServer) -> None:
    error, _ = await failure(model, "[fault=429 times=all retry_after=100]")

    assert isinstance(error, ModelBusy)
    assert error.retry_after == 100
    assert server.stats.requests == 1


async def test_a_wish_to_wait_may_be_a_date(model: Model, server: ModelServer) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    server.fail_next("503", retry_after=date)

    error, _ = await failure(model, "hi")

    assert isinstance(error, ModelBusy)
    assert error.retry_after == pytest.approx(3600, abs=60)


async def test_a_wish_that_cannot_be_read_is_none(model: Model, server: ModelServer) -> None:
    server.fail_next("503", retry_after="soon")

    error, _ = await failure(model, "hi")

    assert isinstance(error, ModelBusy)
    assert error.retry_after is None


async def test_a_connection_that_is_dropped_unanswered_is_tried_once_more(server: ModelServer) -> None:
    question = "[fault=refuse tokens=3 pace=0]"

    async with open_model(settings_for(server.base_url)) as model:
        assert text_of(await read(model, asking(question))) == "".join(expected_answer(question))
    assert server.stats.requests == 2


async def test_a_server_that_is_not_there_is_busy(unused_port: int) -> None:
    async with open_model(settings_for(f"http://127.0.0.1:{unused_port}/v1")) as model:
        error, _ = await failure(model, "hi")

    assert isinstance(error, ModelBusy)
    assert str(unused_port) in str(error)


@pytest.mark.parametrize("fault", ["reset", "end", "stall", "malformed", "error"])
@pytest.mark.parametrize("after", [0, 5])
async def test_an_answer_that_breaks_off_is_busy_and_what_came_before_counts(
    model: Model, fault: str, after: int
) -> None:
    question = f"[fault={fault} after={after} times=all tokens=20 pace=200]"

    error, before = await failure(model, question)

    assert isinstance(error, ModelBusy)
    assert text_of(before) == "".join(expected_answer(question)[:after])


async def test_what_came_in_one_piece_with_the_break_counts_too(model: Model) -> None:
    question = "[fault=malformed after=5 tokens=20 pace=0]"

    _, before = await failure(model, question)

    assert text_of(before) == "".join(expected_answer(question)[:5])


async def test_a_server_that_sends_only_comments_has_stalled(model: Model) -> None:
    error, before = await failure(model, "[fault=comments after=2 times=all pace=0]")

    assert isinstance(error, ModelBusy)
    assert "said nothing" in str(error)
    assert len(before) == 2


async def test_a_silent_server_has_stalled_before_its_first_token_too(model: Model, server: ModelServer) -> None:
    error, _ = await failure(model, "[wait=1000]")

    assert isinstance(error, ModelBusy)
    assert server.stats.requests == 1


async def test_after_a_break_the_answer_can_be_continued(model: Model) -> None:
    question = "[fault=end after=5 tokens=20 pace=0]"
    _, before = await failure(model, question)

    rest = await read(model, asking(question, so_far=text_of(before)))

    assert text_of(before) + text_of(rest) == "".join(expected_answer(question))


@pytest.mark.parametrize(
    ("question", "result"),
    [
        ("[tokens=2 pace=0]", "completed"),
        ("[fault=503 times=all retry_after=1]", "busy"),
        ("[fault=400]", "refused"),
        ("[fault=end after=2 pace=0]", "broken"),
    ],
)
async def test_every_request_is_counted_by_what_becomes_of_it(model: Model, question: str, result: str) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("headrace_model_requests_total", {"result": result}) or 0

    before = counted()
    with suppress(ChatError):
        await read(model, asking(question))

    assert counted() == before + 1
    assert REGISTRY.get_sample_value("headrace_model_requests_open") == 0


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
