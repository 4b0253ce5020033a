"""Whatever kind of server it is, a text so far is continued: tried out once, then asked in its own way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from adapters.model import open_model
from adapters.resuming import PROBE_AGAIN_SECONDS, PROBE_NEXT, PROBE_QUESTION, Resuming
from config.settings import Settings
from domain.errors import BadRequest, ModelBusy
from domain.generation import Delta, Generation
from domain.hearing import Hear
from tests.support.clock import Clock
from tests.support.model_client import read, settings_for, text_of, until
from tests.support.model_server import ModelServer
from tests.support.scripted_answer import Script, expected_answer

QUESTION = "why? [tokens=30 pace=0]"
TRUTH = "".join(expected_answer(QUESTION))

KINDS = {
    "continues": Script(),
    "continues with flags": Script(flags="needed"),
    "continues and refuses flags": Script(flags="refused"),
    "begins anew": Script(prefill=False),
    "begins anew and refuses flags": Script(prefill=False, flags="refused"),
}


class NoTimeForProbes:
    """A server that answers questions, and a probe only when it is not busy."""

    busy = True
    probes = 0

    async def stream(self, generation: Generation, hear: Hear[Delta]) -> None:
        if generation.messages[0]["content"] == PROBE_QUESTION:
            self.probes += 1
            if self.busy:
                raise ModelBusy("scripted")
        hear([Delta(PROBE_NEXT)])

    async def models(self) -> list[str]:
        return ["scripted"]


class Gateway:
    """A server of two models: ``needs flags`` continues a text only with them, ``refuses flags`` only without."""

    async def stream(self, generation: Generation, hear: Hear[Delta]) -> None:
        flags, last = "continue_final_message" in generation.options, generation.messages[-1]
        if flags and generation.model == "refuses flags":
            raise BadRequest("scripted 400")
        so_far = last["content"] if last["role"] == "assistant" else ""
        continues = flags or generation.model == "refuses flags"
        hear([Delta(TRUTH[len(so_far) if continues else 0 :])])

    async def models(self) -> list[str]:
        return ["needs flags", "refuses flags"]


@asynccontextmanager
async def resuming(server: ModelServer, setting: str = "auto", clock: Clock | None = None) -> AsyncIterator[Resuming]:
    async with open_model(settings_for(server.base_url)) as model:
        settings = Settings(model_resume=setting).ways_to_resume
        opened = Resuming(model, settings, clock=clock or Clock())
        try:
            yield opened
        finally:
            await opened.close()


def asking(so_far: str = "", *, question: str = QUESTION, written: int = 0, **options: object) -> Generation:
    return Generation("scripted", [{"role": "user", "content": question}], options, so_far, written)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_server_continues_wherever_the_text_was_cut(kind: str) -> None:
    async with ModelServer(defaults=KINDS[kind]) as server, resuming(server) as model:
        for at in range(20, len(TRUTH), 7):
            assert TRUTH[:at] + text_of(await read(model, asking(TRUTH[:at]))) == TRUTH


@pytest.mark.parametrize("kind", KINDS)
async def test_also_before_anything_is_known_of_it(kind: str) -> None:
    async with ModelServer(defaults=KINDS[kind]) as server, resuming(server, clock=Clock()) as model:
        model._probe_at["scripted"] = float("inf")

        assert TRUTH[:50] + text_of(await read(model, asking(TRUTH[:50]))) == TRUTH
        assert server.probes == 0


@pytest.mark.parametrize("kind", ["continues", "continues with flags", "continues and refuses flags"])
async def test_a_server_that_is_set_to_continue_is_not_tried_out(kind: str) -> None:
    async with ModelServer(defaults=KINDS[kind]) as server, resuming(server, "prefill") as model:
        assert TRUTH[:50] + text_of(await read(model, asking(TRUTH[:50]))) == TRUTH
        assert server.probes == 0


async def test_flags_that_a_server_refuses_are_sent_once_only() -> None:
    async with ModelServer(defaults=Script(flags="refused")) as server, resuming(server, "prefill") as model:
        for _ in range(3):
            await read(model, asking(TRUTH[:50]))

        assert ["continue_final_message" in body for body in server.requests] == [True, False, False, False]


@pytest.mark.parametrize("setting", ["auto", "prefill"])
async def test_flags_that_one_model_of_a_server_refuses_are_still_sent_for_another(setting: str) -> None:
    model = Resuming(Gateway(), Settings(model_resume=setting).ways_to_resume)

    for name in ("needs flags", "refuses flags", "needs flags", "refuses flags"):
        asked = Generation(name, [{"role": "user", "content": QUESTION}], {}, TRUTH[:50], 0)
        assert TRUTH[:50] + text_of(await read(model, asked)) == TRUTH
        await until(lambda: not model._probes)


async def test_a_model_may_have_a_way_of_its_own() -> None:
    async with ModelServer() as server, resuming(server, "prefill,told=instruct") as model:
        for name in ("told", "scripted"):
            asked = Generation(name, [{"role": "user", "content": QUESTION}], {}, TRUTH[:50], 0)
            assert TRUTH[:50] + text_of(await read(model, asked)) == TRUTH

    assert [body["messages"][-1]["role"] for body in server.requests] == ["user", "assistant"]
    assert server.probes == 0


@pytest.mark.parametrize(("named", "tried_out"), [("", "first"), ("second", "second")])
async def test_at_the_start_the_named_model_is_tried_out_or_the_first_one(named: str, tried_out: str) -> None:
    async with ModelServer() as server, resuming(server) as model:
        server.models = ["first", "second"]

        model.try_out(named)
        await until(lambda: bool(model._ways))

        assert (model._ways, server.probes) == ({tried_out: "prefill"}, 1)


async def test_a_server_that_is_not_up_at_the_start_is_tried_out_beside_its_first_answer() -> None:
    async with ModelServer() as server, resuming(server) as model:
        await server.refuse()
        model.try_out("scripted")
        await until(lambda: not model._probes)
        assert server.probes == 0

        await server.accept()
        await read(model, asking())
        await until(lambda: not model._probes)

        assert model._ways == {"scripted": "prefill"}


async def test_a_server_that_is_told_its_way_is_asked_nothing_at_the_start() -> None:
    async with ModelServer() as server, resuming(server, "prefill,told=instruct") as model:
        model.try_out("")

        assert not model._probes


async def test_a_server_is_tried_out_beside_its_first_answer_and_not_before_or_again() -> None:
    async with ModelServer() as server, resuming(server) as model:
        assert server.probes == 0
        for _ in range(3):
            await read(model, asking())
            await until(lambda: not model._probes)

        assert server.probes == 1


async def test_a_probe_that_fails_is_repeated_later() -> None:
    clock, server = Clock(), NoTimeForProbes()
    model = Resuming(server, {"": "auto"}, clock=clock)
    for _ in range(3):
        await read(model, asking())
        await until(lambda: not model._probes)
    assert server.probes == 1

    server.busy = False
    clock.now += PROBE_AGAIN_SECONDS
    for _ in range(3):
        await read(model, asking())
        await until(lambda: not model._probes)

    assert server.probes == 2
    assert model._ways == {"scripted": "prefill"}


async def test_a_request_that_is_refused_in_every_way_is_refused() -> None:
    async with ModelServer() as server, resuming(server) as model:
        with pytest.raises(BadRequest, match="scripted 422"):
            await read(model, asking("0:", question="[fault=422 times=all]"))


@pytest.mark.parametrize("kind", KINDS)
async def test_the_limit_is_that_of_the_whole_answer(kind: str) -> None:
    async with ModelServer(defaults=KINDS[kind]) as server, resuming(server) as model:
        so_far = "".join(expected_answer(QUESTION)[:8])

        deltas = await read(model, asking(so_far, written=8, max_tokens=12))

    assert so_far + text_of(deltas) in {
        "".join(expected_answer(QUESTION)[:12]),
        "".join(expected_answer(QUESTION)[:11]),
    }
    assert [delta.finish for delta in deltas if delta.finish] == ["length"]


@pytest.mark.parametrize("setting", ["auto", "prefill", "instruct"])
async def test_white_space_alone_is_not_given_to_be_continued(setting: str) -> None:
    async with ModelServer() as server, resuming(server, setting) as model:
        assert text_of(await read(model, asking("\n"))) == TRUTH
        assert server.requests[-1]["messages"][-1]["role"] == "user"


async def test_tool_calls_come_whole_and_once() -> None:
    question = "weather? [tool=look,ask pace=0]"
    async with ModelServer() as server, resuming(server) as model:
        deltas = await read(model, asking(question=question))

    assert [bool(delta.tools) for delta in deltas].count(True) == 1
    assert deltas[0].finish == "tool_calls"


async def test_a_probe_ends_with_the_worker() -> None:
    class Silent(NoTimeForProbes):
        async def stream(self, generation: Generation, hear: Hear[Delta]) -> None:
            await asyncio.Event().wait()

    model = Resuming(Silent(), {"": "auto"})
    model._probe_soon("m")
    await asyncio.sleep(0)

    await model.close()

    assert not model._probes
