"""An answer by a real small model, whose worker is killed again and again: what stands at the seams.

    python -m bench.seams [--kills 10] [--out docs/recordings/seams.md]

The model is SmolLM2-135M under llama.cpp, at temperature 0 and with a seed; a recorder between worker and model
keeps what each attempt was given and what it said. Checked against the records of the log, read past the worker:

- each attempt was given exactly the text that the log had at its claim (but for white space at its end);
- what the log has between two claims is exactly what the model said to the first of them, from its first word on;
- the reader, who held one stream and reconnected, saw exactly the text in the log.

A run without kills is set beside it. The two may differ, with or without a seam in between: llama.cpp adds up in
another order for a prompt that it has in its cache and for one that it has not, and a small model is often torn.
"""

import argparse
import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import aiohttp
from aiohttp import web

from adapters.completion_stream import CompletionStream
from adapters.frames import decode
from adapters.log_reader import open_log_reader
from adapters.resuming import PROBE_QUESTION
from bench.machine import described
from deploy.embedded import Embedded, free_port
from domain.ids import place_of
from domain.resume import Join
from domain.tokens import Fold, Token, text_of
from tests.support.chat_client import ChatClient
from tests.support.worker import Worker

QUESTIONS: Final = (
    "Write a long story about a lighthouse keeper who finds a message in a bottle.",
    "Explain in detail how a log of events can replace a database. Give an example in Python.",
    "Describe a day at the market of an old harbour town, hour by hour.",
    "Give me ten pieces of advice for people who are learning to cook, each with a reason.",
)
OPTIONS: Final = {"temperature": 0.0, "seed": 7, "max_tokens": 400}
PIECES_BETWEEN: Final = (30, 110)


@dataclass
class Attempt:
    """One request to the model: the text that it was to continue, and what it said."""

    question: str
    given: str
    said: list[str] = field(default_factory=list)


@dataclass
class Seam:
    """Where one worker's part of an answer ends and the next one's begins: after so many characters."""

    at: int
    given: str


class Recorder:
    """Stands between a worker and the model server."""

    def __init__(self, upstream: str) -> None:
        self.attempts: list[Attempt] = []
        self._upstream = upstream

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Pass one request on, and its answer as it comes."""
        body = await request.read()
        attempt = attempt_of(await request.json()) if body else None
        if attempt is not None:
            self.attempts.append(attempt)
        decoder = CompletionStream()
        headers = {"Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, self._upstream + request.path, data=body, headers=headers) as answer,
        ):
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                if attempt is not None:
                    attempt.said += [delta.text for delta in decoder.feed(piece) if delta.text]
                await response.write(piece)
            return response


def attempt_of(body: dict[str, Any]) -> Attempt | None:
    """Return what a request asks for, None if a worker only tries out how the model goes on."""
    messages = body["messages"]
    if messages[0]["content"] == PROBE_QUESTION:
        return None
    given = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    return Attempt(next(m["content"] for m in reversed(messages) if m["role"] == "user"), given)


@asynccontextmanager
async def recording(upstream: str) -> AsyncIterator[tuple[Recorder, str]]:
    """Serve a recorder; yield it and its URL."""
    recorder = Recorder(upstream)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", recorder.__call__)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield recorder, f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()


class Stage:
    """Everything that a run needs."""

    def __init__(self, worker: Worker, recorder: Recorder, client: ChatClient, bootstrap: str) -> None:
        self.worker = worker
        self.recorder = recorder
        self.client = client
        self.bootstrap = bootstrap

    async def converse(self, kills: int, questions: int = 0) -> AsyncGenerator[tuple[str, str, str, list[Seam]], None]:
        """Ask until the worker was killed so often, or so many questions; yield what came of each."""
        conversation, chance, asked = await self.client.converse(), random.Random(7), 0  # noqa: S311 - no secret
        while kills > 0 or asked < questions:
            question = QUESTIONS[asked % len(QUESTIONS)]
            asked += 1
            before = len(self.recorder.attempts)
            turn = await self.client.ask(conversation, question, options=OPTIONS)
            reading = asyncio.create_task(self.client.read(turn, within=600))
            known = before
            while kills > 0 and await self._speaking(reading, known, chance.randint(*PIECES_BETWEEN)):
                self.worker.kill()
                kills, known = kills - 1, len(self.recorder.attempts)
                await self.worker.start()
            seen = (await reading).text
            yield question, turn, seen, await self._seams(turn, seen, self.recorder.attempts[before:])

    async def _speaking(self, reading: "asyncio.Task[Any]", known: int, pieces: int) -> bool:
        """Wait until an attempt after those that are known has said so much; False if the answer ends before."""
        while not reading.done():
            if any(len(attempt.said) >= pieces for attempt in self.recorder.attempts[known:]):
                return True
            await asyncio.sleep(0.005)
        return False

    async def _seams(self, turn: str, seen: str, attempts: Sequence[Attempt]) -> list[Seam]:
        """Check one answer against the log and the recorder; return its seams."""
        texts = await self._texts_at_claims(turn)
        if texts[-1] != seen:
            raise SystemExit(f"the reader saw another text than the log has:\n{seen!r}\n{texts[-1]!r}")
        seams, claims = [], texts[:-1]
        for number, attempt in enumerate(attempts):
            had = next((text for text in claims if text.rstrip() == attempt.given), None)
            if had is None:
                raise SystemExit(f"attempt {number} was given a text that the log never had:\n{attempt.given!r}")
            following = [text for text in texts if len(text) > len(had)]
            part = following[0][len(had) :] if following else ""
            join = Join(had, "prefill")
            said = "".join([join.push(text) for text in attempt.said]) + join.close()
            if not said.startswith(part):
                raise SystemExit(f"the log does not go on with what attempt {number} said:\n{part!r}\n{said!r}")
            if number:
                seams.append(Seam(len(had), attempt.given))
        return seams

    async def _texts_at_claims(self, turn: str) -> list[str]:
        """Return the text that the log had at each claim that counts, and at the end."""
        place = place_of(turn)
        assert place is not None
        topic = f"{self.worker.environ['HEADRACE_TOPIC_PREFIX']}chat.tokens.v1"
        fold, pieces, texts = Fold(), list[Token](), list[str]()
        async with open_log_reader(self.bootstrap) as reader:
            ends = await reader.ends(topic, [place.partition])
            records = await reader.read(topic, place.partition, 0, ends[place.partition])
        for token in [token for _, record in records for token in decode(record) if token.turn_id == turn]:
            claims = fold.claims
            if (piece := fold.feed(token)) is not None:
                pieces.append(piece)
            if fold.claims > claims:
                texts.append(text_of(pieces))
        return [*texts, text_of(pieces)]


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Start a broker, the model and a worker."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        embedded = stack.enter_context(Embedded(folder, only={"kafka", "model"}))
        found = embedded.environ
        recorder, url = await stack.enter_async_context(recording(found["OPENAI_BASE_URL"].removesuffix("/v1")))
        own = {
            "OPENAI_BASE_URL": url,
            "HEADRACE_AUTH": "dev",
            "HEADRACE_RETRIEVAL": "off",
            "HEADRACE_TOPIC_PREFIX": "seams.",
            "HEADRACE_GROUP": "seams",
        }
        worker = Worker(folder / "worker", found | own)
        stack.push_async_callback(worker.stop)
        await worker.start()
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Stage(worker, recorder, ChatClient(session, worker.url), found["KAFKA_BOOTSTRAP_SERVERS"])


def marked(text: str, seams: Sequence[Seam], first: int) -> str:
    """Return a text with a numbered mark at each seam, as a quotation."""
    for number, seam in reversed(list(enumerate(seams, first))):
        text = f"{text[: seam.at]}⟦{number}⟧{text[seam.at :]}"
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def differs(one: str, other: str, seams: Sequence[Seam]) -> str:
    """Say how an answer compares with the one that was not interrupted."""
    if one == other:
        return "The uninterrupted run has the same text, character by character."
    at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    passed = sum(seam.at <= at for seam in seams)
    return (
        f"The uninterrupted run has the same text up to character {at} of {len(other)}, {passed} of {len(seams)} seams"
        f" further on; there it goes on with {other[at : at + 30]!r}, and this one with {one[at : at + 30]!r}."
    )


HEAD: Final = """# Ten kills in the middle of an answer

A real small model (SmolLM2-135M under llama.cpp, temperature 0, a seed) answers in one conversation, and its worker
gets a SIGKILL {kills} times in mid-sentence. Each ⟦n⟧ is a seam: there one worker died and the next one went on.
The model is small, so what it says is often wrong or repeats itself; what counts is that it goes on where it stopped.

Checked for every answer, against the records of the log: each attempt was given exactly the text that the log had
at its claim, without white space at its end; what the log has between two claims is exactly what the model said in
between, from its first word on; the reader, who only ever reconnected, saw exactly the text in the log.

Each answer is compared with one to the same questions that nobody interrupted. At temperature 0 too the two may part,
even before the first seam: llama.cpp adds up in another order for a prompt that is in its cache than for a new one.
After that the next question has another conversation before it.

Made by `python -m bench.seams --out docs/recordings/seams.md` on {machine}.
"""


async def main(arguments: argparse.Namespace) -> None:
    """Run, check and print."""
    lines, total = [HEAD.format(kills=arguments.kills, machine=described())], 0
    async with stage() as on:
        answers = [answer async for answer in on.converse(arguments.kills)]
        plain = [answer async for answer in on.converse(0, len(answers))]
    for (question, _, text, seams), (_, _, uninterrupted, _) in zip(answers, plain, strict=True):
        lines += [f"## {question}\n", marked(text, seams, total + 1), ""]
        for number, seam in enumerate(seams, total + 1):
            lines.append(
                f"- ⟦{number}⟧ the model was given `…{seam.given[-40:]!r}` and said `{text[seam.at :][:40]!r}…`"
            )
        lines += ["", differs(text, uninterrupted, seams), ""]
        total += len(seams)
    lines.append(f"Seams: {total}. Words lost, doubled or moved: 0, or this page would not have been written.\n")
    page = "\n".join(lines)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(page, encoding="utf-8")
    print(page)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--out", type=Path, help="write the page here too")
    return options


if __name__ == "__main__":
    asyncio.run(main(parser().parse_args()))
