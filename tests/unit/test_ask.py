"""`make demo-question`: one question from a terminal, its answer as it comes, and a clear word when there is none."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from deploy import ask
from deploy.ask import NoAnswer
from deploy.embedded import free_port

Ending = tuple[str, dict[str, object]]
COMPLETED: Ending = ("turn.completed", {"outcome": "completed", "model": "tiny", "usage": {"output_tokens": 4}})


class Headrace:
    """The native routes as far as a question needs them. ``cuts``: after which events connections break off."""

    def __init__(
        self, words: Sequence[str], end: Ending = COMPLETED, *, cuts: Sequence[int] = (), busy: int = 0
    ) -> None:
        tokens: list[Ending] = [("token", {"text": word}) for word in words]
        self.events: list[Ending] = [("turn.started", {}), *tokens, end]
        self.cuts = list(cuts)
        self.busy = busy
        self.asked: list[tuple[str, str]] = []
        self.readers: list[str | None] = []
        self.keys: set[str | None] = set()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Yield the address of a server of these routes."""
        app = web.Application()
        app.router.add_post("/v1/conversations", self.converse)
        app.router.add_post("/v1/conversations/c1/turns", self.ask)
        app.router.add_get("/v1/turns/t1/events", self.stream)
        async with TestServer(app) as server:
            yield str(server.make_url("/"))

    async def converse(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers.get("Authorization"))
        return web.json_response({"id": "c1"}, status=201)

    async def ask(self, request: web.Request) -> web.Response:
        self.asked.append(((await request.json())["input"], request.headers["Idempotency-Key"]))
        if len(self.asked) <= self.busy:
            return web.json_response({"error": {"message": "Not ready."}}, status=503)
        return web.json_response({"turn_id": "t1", "events_url": "/v1/turns/t1/events"}, status=202)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        self.readers.append(request.headers.get("Last-Event-ID"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"retry: 1000\n\n: ping\n\n")
        cut = self.cuts.pop(0) if self.cuts else len(self.events)
        for number in range(int(self.readers[-1] or -1) + 1, min(cut, len(self.events))):
            name, data = self.events[number]
            await response.write(f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode())
        return response


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "PAUSE_SECONDS", 0.0)


Read = Callable[[], tuple[str, str]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Read:
    """What went to stdout and to stderr."""

    def read() -> tuple[str, str]:
        found = capsys.readouterr()
        return found.out, found.err

    return read


async def test_the_answer_goes_to_stdout_and_its_figures_elsewhere(printed: Read) -> None:
    async with Headrace(["Rivers ", "are ", "wet", ": «naß»."]).serve() as url:
        await ask.ask("What are rivers?", url, "")

    answer, figures = printed()
    assert answer == "Rivers are wet: «naß».\n"
    assert "first token after" in figures
    assert "4 tokens in" in figures
    assert "(tiny)" in figures


async def test_a_stream_that_breaks_off_is_taken_up_after_the_last_event(printed: Read) -> None:
    headrace = Headrace(["one ", "two ", "three"], cuts=[0, 2, 3])

    async with headrace.serve() as url:
        await ask.ask("Count.", url, "")

    assert printed()[0] == "one two three\n"
    assert headrace.readers == [None, None, "1", "2"]


async def test_a_question_that_is_sent_again_is_the_same_question(printed: Read) -> None:
    headrace = Headrace(["yes"], busy=2)

    async with headrace.serve() as url:
        await ask.ask("Are you there?", url, "a-key")

    assert printed()[0] == "yes\n"
    assert len(headrace.asked) == 3
    assert len(set(headrace.asked)) == 1
    assert headrace.keys == {"Bearer a-key"}


async def test_without_a_server_it_asks_whether_one_was_started() -> None:
    with pytest.raises(NoAnswer, match="Is `make up` running"):
        await ask.ask("Anyone?", f"http://127.0.0.1:{free_port()}", "")


async def test_a_server_that_goes_away_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "PATIENCE_SECONDS", 0.05)

    async with Headrace([], busy=1_000_000).serve() as url:
        with pytest.raises(NoAnswer, match="does not come back: Not ready"):
            await ask.ask("Are you there?", url, "")


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (("turn.failed", {"error": {"message": "The model server refuses it.", "code": "bad_request"}}), "refuses it"),
        (("turn.stopped", {"outcome": "stopped"}), "stopped"),
        (("turn.handed_over", {"reason": ""}), "person"),
    ],
)
async def test_an_answer_that_is_not_whole_is_an_error(end: Ending, why: str) -> None:
    async with Headrace(["half "], end).serve() as url:
        with pytest.raises(NoAnswer, match=why):
            await ask.ask("Tell me all.", url, "")


async def test_what_is_no_headrace_is_told_from_one_that_refuses() -> None:
    async with TestServer(web.Application()) as server:
        with pytest.raises(NoAnswer, match=r"answered with 404\. Is that Headrace"):
            await ask.ask("Who are you?", str(server.make_url("/")), "")


def test_no_answer_is_no_success(monkeypatch: pytest.MonkeyPatch, printed: Read) -> None:
    monkeypatch.setattr("sys.argv", ["ask", "Anyone?", "--url", f"http://127.0.0.1:{free_port()}"])

    assert ask.main() == 1
    assert printed()[0] == ""
