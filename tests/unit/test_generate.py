"""A model's faults, and the worker's own: every turn comes to an end, with the text that it should have."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from time import monotonic
from typing import Any

import pytest

from agents import generate
from domain.errors import LogUnavailable
from domain.generation import Usage
from domain.sketches import bin_of
from domain.tokens import Token
from tests.support.answering import TURN, Answering, answering
from tests.support.model_client import until
from tests.support.model_server import ModelServer
from tests.support.scripted_answer import Script, expected_answer, tool_calls

BREAKS = ["reset", "end", "stall", "malformed", "error", "comments"]


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
async def other() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


def whole(question: str) -> str:
    return "".join(expected_answer(question))


# -- what a model server does wrong


@pytest.mark.parametrize("fault", [*BREAKS, "refuse", "429", "500", "503"])
async def test_an_answer_outlives_a_fault_before_its_first_token(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    question = f"[tokens=10 pace=0 fault={fault} times=2]"
    async with answering(monkeypatch, [server.base_url], question, model_stall_seconds=0.2) as turn:
        end = await turn.run()

    assert (end.outcome, end.finish, turn.text) == ("completed", "stop", whole(question))


@pytest.mark.parametrize("fault", BREAKS)
@pytest.mark.parametrize(
    "kind", [Script(), Script(prefill=False), Script(flags="needed")], ids=["continues", "anew", "with-flags"]
)
async def test_an_answer_outlives_breaks_in_its_middle(
    monkeypatch: pytest.MonkeyPatch, fault: str, kind: Script
) -> None:
    question = f"[tokens=30 pace=0 fault={fault} after=7 times=3]"
    async with (
        ModelServer(defaults=kind) as server,
        answering(monkeypatch, [server.base_url], question, model_stall_seconds=0.2) as turn,
    ):
        end = await turn.run()

        assert (end.outcome, end.finish, turn.text) == ("completed", "stop", whole(question))
        # A reset that comes late also breaks the next request of its connection.
        assert turn.claims >= 1 + 3


async def test_each_attempt_goes_on_from_the_text_in_the_log(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "[tokens=30 pace=0 fault=reset after=7 times=3]"
    async with answering(monkeypatch, [server.base_url], question) as turn:
        await turn.run()

    given = [body["messages"][-1]["content"] for body in server.requests]
    tokens = expected_answer(question)
    assert given == [question, *("".join(tokens[: 7 * breaks]).rstrip() for breaks in (1, 2, 3))]


# -- what other workers do meanwhile


async def test_what_an_older_worker_wrote_up_to_the_claim_belongs_to_the_answer(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "[tokens=10 pace=0]"
    tokens = expected_answer(question)
    async with answering(monkeypatch, [server.base_url], question) as turn:
        turn.have(*tokens[:3])
        turn.log.overtaking["claim"] = [Token(TURN, 1, 4, "token", tokens[3])]
        await turn.run()

        assert (turn.text, turn.claims) == (whole(question), 2)
    assert [body["messages"][-1]["content"] for body in server.requests] == ["".join(tokens[:4]).rstrip()]


async def test_an_end_that_a_newer_worker_has_fenced_is_none(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "[tokens=10 pace=0]"
    async with answering(monkeypatch, [server.base_url], question) as turn:
        turn.log.overtaking["end"] = [Token(TURN, (1 << 16) + 5, 0, "claim", "{}")]
        end = await turn.run()

        assert (end.outcome, turn.text, turn.claims) == ("completed", whole(question), 3)
    assert turn.kinds.count("end") == 2


# -- other servers of the group


async def test_an_attempt_that_fails_goes_to_another_server_at_once(
    server: ModelServer, other: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "[tokens=10 pace=0]"
    server.fail_next("503", times=100, retry_after="60")
    async with answering(monkeypatch, [server.base_url, other.base_url], question) as turn:
        await turn.run()

    assert (turn.text, turn.claims) == (whole(question), 1)
    assert other.stats.completed == 1


async def test_who_is_asked_to_wait_waits(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    question = "[tokens=3 pace=0 fault=429 retry_after=1]"
    async with answering(monkeypatch, [server.base_url], question) as turn:
        began = asyncio.get_running_loop().time()
        await turn.run()

        assert asyncio.get_running_loop().time() - began >= 1
        assert turn.text == whole(question)


async def test_a_stall_before_the_first_token_is_found_in_its_time(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(
        monkeypatch, [server.base_url], "[wait=1000]", model_stall_seconds=0.3, model_attempts=1
    ) as turn:
        end = await turn.run()

    assert (end.outcome, server.stats.requests) == ("failed", 1)


async def test_an_answer_longer_than_the_limit_ends_there(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    question = "[tokens=100 pace=0 fault=reset after=7 times=2]"
    async with answering(monkeypatch, [server.base_url], question, answer_tokens=20) as turn:
        end = await turn.run()

    assert (end.outcome, end.finish) == ("completed", "length")
    assert turn.text == "".join(expected_answer(question)[:20])


async def test_a_server_that_knows_no_limit_is_cut_off(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    question = "[tokens=5000 pace=0 limit=no]"
    async with answering(monkeypatch, [server.base_url], question, answer_tokens=20) as turn:
        end = await turn.run()

    assert (end.outcome, end.finish) == ("completed", "length")
    assert len(turn.log.records) < 1000


# -- servers that are left alone


def leave_alone(turn: Answering, seconds: float) -> None:
    """Let another answer find out that the server is not to be asked for so long."""
    (member,) = turn.worker.services.model._members
    member.breaker.failed(monotonic(), retry_after=seconds)


async def test_to_find_all_servers_left_alone_is_no_attempt(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "[tokens=10 pace=0]"
    async with answering(monkeypatch, [server.base_url], question, model_attempts=1) as turn:
        leave_alone(turn, 0.2)
        end = await turn.run()

    assert (end.outcome, turn.text, turn.claims) == ("completed", whole(question), 1)
    assert server.stats.requests == 1


async def test_where_they_are_left_alone_for_longer_than_the_turn_has_it_fails_at_once_and_says_why(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(monkeypatch, [server.base_url], "hi", turn_seconds=20) as turn:
        leave_alone(turn, 50)
        end = await turn.run()

    assert (end.outcome, server.stats.requests) == ("failed", 0)
    assert end.error is not None
    assert "did not come back in time" in end.error.message


async def test_a_turn_that_waits_for_a_server_is_stopped_at_once(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(monkeypatch, [server.base_url], "hi") as turn:
        leave_alone(turn, 60)
        running = asyncio.create_task(turn.run())
        await until(lambda: turn.claims == 1)

        turn.job.stopping.set()
        end = await running

    assert (end.outcome, server.stats.requests) == ("stopped", 0)


async def test_where_the_claim_finds_a_text_while_a_server_is_awaited_it_is_continued(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "[tokens=10 pace=0]"
    async with answering(monkeypatch, [server.base_url], question) as turn:
        turn.log.open.clear()
        leave_alone(turn, 0.2)
        running = asyncio.create_task(turn.run())
        await asyncio.sleep(0)
        turn.have(*expected_answer(question)[:4])  # another worker's, which the tail had not read
        turn.log.open.set()
        await running

    assert turn.text == whole(question)


# -- when it is given up


@pytest.mark.parametrize(
    ("fault", "said"), [("503", "did not answer"), ("reset after=0", "did not answer"), ("refuse", "did not answer")]
)
async def test_after_its_attempts_a_turn_fails_with_words_for_a_person(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    async with answering(monkeypatch, [server.base_url], f"[fault={fault} times=all]", model_attempts=2) as turn:
        end = await turn.run()

    assert end.outcome == "failed"
    assert end.error is not None
    assert said in end.error.message
    assert "2 times" in end.error.message
    assert "127.0.0.1" not in end.error.message
    assert end.error.code == "model_unavailable"


async def test_what_it_has_by_then_is_kept(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    question = "[tokens=10 pace=0 fault=reset after=10 times=all]"
    async with answering(monkeypatch, [server.base_url], question, model_attempts=2, model_resume="prefill") as turn:
        end = await turn.run()

    assert (end.outcome, turn.text) == ("failed", whole(question))
    assert end.error is not None
    assert "text so far is kept" in end.error.message


async def test_a_turn_has_only_its_time_even_if_its_model_says_nothing(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(monkeypatch, [server.base_url], "[wait=1000]", turn_seconds=0.3) as turn:
        end = await turn.run()

    assert end.outcome == "failed"
    assert end.error is not None
    assert "0.3 seconds" in end.error.message


async def test_a_wish_to_wait_longer_than_the_turn_has_ends_it_now(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(monkeypatch, [server.base_url], "[fault=429 retry_after=50]", turn_seconds=20) as turn:
        end = await turn.run()

    assert (end.outcome, server.stats.requests) == ("failed", 1)


async def test_a_refused_request_fails_once_and_says_why(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(monkeypatch, [server.base_url], "[fault=400 message=too-long]") as turn:
        end = await turn.run()

    assert (end.outcome, server.stats.requests) == ("failed", 1)
    assert end.error is not None
    assert "too-long" in end.error.message
    assert end.error.code == "model_refused"


async def test_a_question_that_kills_every_worker_is_given_up(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(monkeypatch, [server.base_url], "hi", turn_claims=5) as turn:
        turn.have(claims=5)
        end = await turn.run()

    assert (end.outcome, server.stats.requests) == ("failed", 0)
    assert end.error is not None
    assert "taken up 6 times" in end.error.message


# -- what another worker left


async def test_what_the_log_has_is_continued_and_counted(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    question = "[tokens=10 pace=0]"
    tokens = expected_answer(question)
    async with answering(monkeypatch, [server.base_url], question) as turn:
        turn.have(*tokens[:4], claims=2)
        end = await turn.run()

    assert (turn.text, turn.claims) == (whole(question), 3)
    assert end.usage.output_tokens == 10


async def test_usage_adds_up_the_attempts(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    question = "[tokens=30 pace=0 fault=reset after=7 times=3]"
    async with answering(monkeypatch, [server.base_url], question) as turn:
        end = await turn.run()

    words = sum(len(str(message["content"]).split()) for message in server.requests[-1]["messages"])
    assert end.usage.output_tokens == 7 + 7 + 7 + 9
    # Of an attempt that broke off nobody knows what was read for it.
    assert end.usage.input_tokens - words == pytest.approx(sum(map(about, list(server.requests)[:-1])), rel=0.1)


async def test_a_turn_that_is_stopped_before_its_usage_is_told_costs_about_what_it_read(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(monkeypatch, [server.base_url], "[tokens=5000 pace=1]") as turn:
        running = asyncio.create_task(turn.run())
        await until(lambda: turn.kinds.count("token") > 3)
        turn.job.stopping.set()
        end = await running

    assert end.outcome == "stopped"
    assert end.usage.input_tokens == pytest.approx(about(server.requests[0]), rel=0.1)


async def test_a_model_that_was_not_heard_has_cost_nothing(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(monkeypatch, [server.base_url], "[fault=503 times=all]", model_attempts=2) as turn:
        end = await turn.run()

    assert end.usage == Usage(0, 0)


def about(body: Mapping[str, Any]) -> float:
    """Return how many model tokens the prompt of a request has, by its length."""
    return sum(len(message["content"]) / 3.5 + 4 for message in body["messages"])


async def test_of_an_answer_every_gap_between_two_tokens_is_told_also_those_over_its_breaks(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "[tokens=30 pace=0 fault=reset after=7 times=3]"
    async with answering(monkeypatch, [server.base_url], question) as turn:
        end = await turn.run()

    assert sum(end.gaps.values()) == 29
    assert max(end.gaps) >= bin_of(10)  # the pause before an attempt


async def test_usage_adds_up_over_the_tries_of_a_turn_whose_log_failed(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "[tokens=10 pace=0]"
    async with answering(monkeypatch, [server.base_url], question) as turn:
        taken = turn.log.put

        async def cut(_: int, token: Token) -> int:
            if token.kind != "end":
                return await taken(0, token)
            turn.log.turn.cut = True
            raise LogUnavailable("scripted")

        monkeypatch.setattr(turn.log, "put", cut)
        with pytest.raises(LogUnavailable):
            await turn.run()
        monkeypatch.setattr(turn.log, "put", taken)
        turn.log.turn.cut = False
        end = await turn.run()

    words = [sum(len(str(message["content"]).split()) for message in body["messages"]) for body in server.requests]
    assert len(words) == 2
    assert end.usage.input_tokens == sum(words)


async def test_options_and_seed_are_the_same_in_every_attempt(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "[tokens=30 pace=0 fault=reset after=7 times=2]"
    options = {"temperature": 0.2, "seed": 7, "stop": ["END"], "max_completion_tokens": 25}
    async with answering(monkeypatch, [server.base_url], question, options=options, model_resume="prefill") as turn:
        await turn.run()

    kept = [{name: body.get(name) for name in options} for body in server.requests]
    assert kept == [{**options, "max_completion_tokens": left} for left in (25, 18, 11)]


async def test_an_answer_that_has_its_length_already_is_only_ended(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(monkeypatch, [server.base_url], "hi", answer_tokens=4) as turn:
        turn.have("a ", "b ", "c ", "d")
        end = await turn.run()

    assert (end.outcome, end.finish, server.stats.requests) == ("completed", "length", 0)


async def test_a_tool_call_is_logged_whole_or_made_again(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    question = "weather? [tool=look,ask pace=0]"
    async with answering(monkeypatch, [server.base_url], question) as turn:
        end = await turn.run()

    assert turn.kinds == ["claim", "tool", "end"]
    assert end.finish == "tool_calls"
    called = json.loads(turn.log.turn.pieces[1].text)
    assert called == [{"index": at, **call} for at, call in enumerate(tool_calls(question, "look,ask"))]


async def test_a_logged_tool_call_is_not_made_again(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(monkeypatch, [server.base_url], "weather? [tool=look pace=0]") as turn:
        turn.have('[{"index":0}]', kind="tool")
        end = await turn.run()

    assert (end.outcome, end.finish, server.stats.requests) == ("completed", "tool_calls", 0)


# -- the claim


async def test_a_fresh_turns_model_is_asked_while_the_claim_is_under_way(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "[tokens=10 pace=0]"
    async with answering(monkeypatch, [server.base_url], question) as turn:
        turn.log.open.clear()
        running = asyncio.create_task(turn.run())
        await until(lambda: server.stats.tokens == 10)
        assert turn.log.records == []

        turn.log.open.set()
        await running

    assert turn.text == whole(question)
    assert turn.kinds == ["claim", *["token"] * 10, "end"]


async def test_where_the_claim_finds_a_text_after_all_the_early_request_is_dropped(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "[tokens=10 pace=50]"
    async with answering(monkeypatch, [server.base_url], question) as turn:
        turn.log.open.clear()
        running = asyncio.create_task(turn.run())
        await until(lambda: server.stats.tokens > 0)
        turn.have(*expected_answer(question)[:4])  # another worker's, which the tail had not read

        turn.log.open.set()
        await running

    assert turn.text == whole(question)
    assert server.requests[-1]["messages"][-1]["role"] == "assistant"


async def test_a_turn_that_may_have_text_is_asked_for_only_after_the_claim(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(monkeypatch, [server.base_url], "[tokens=5 pace=0]") as turn:
        turn.have()
        turn.log.open.clear()
        running = asyncio.create_task(turn.run())
        await asyncio.sleep(0.1)

        assert server.stats.requests == 0
        turn.log.open.set()
        await running


async def test_a_turn_that_is_to_stop_is_ended_whoever_owns_it_by_now(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "ZOMBIE_SECONDS", 3600.0)
    async with answering(monkeypatch, [server.base_url], "[tokens=500]") as turn:
        turn.log.append(0, Token(TURN, 5 << 16, 0, "claim", "{}"))
        turn.log.read()
        running = asyncio.create_task(turn.run())
        await asyncio.sleep(0)
        assert turn.claims == 1

        turn.job.stopping.set()
        end = await running

    assert (end.outcome, turn.claims, server.stats.requests) == ("stopped", 2, 0)


async def test_a_turn_that_is_stopped_before_its_claim_is_through_is_stopped(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(monkeypatch, [server.base_url], "[tokens=500]") as turn:
        turn.log.open.clear()
        running = asyncio.create_task(turn.run())
        await until(lambda: server.stats.tokens > 0)
        turn.job.stopping.set()
        await until(lambda: server.stats.cancelled == 1)

        turn.log.open.set()
        end = await running

    assert (end.outcome, turn.kinds) == ("stopped", ["claim", "end"])
    assert turn.log.turn.pieces[0].turn_id == TURN
