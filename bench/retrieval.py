"""What it costs to learn documents and to find passages, on 1,488 passages of tests/data.

    ELASTICSEARCH_URL=… python -m bench.retrieval [--rounds 3]

First, learning from a cold start: passages a second, and the event loop's longest stall meanwhile, while 50 tasks wake
up 50 times a second as streams of tokens do; beside that, the same loop with nothing to embed. A stall is how late a
task comes, which a busy machine adds to; so the processor time of the loop's longest turn is printed, too. Then what a
search takes in the app, against its own two requests (words, vectors) sent raw and at once: the same bodies, encoded
before and not decoded; and against these two with the texts of what they find, which a search reads in a third request
for the best few. The vectors of the questions are known on all sides.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from selectors import DefaultSelector, SelectorKey
from statistics import median, quantiles
from typing import Any, Final
from uuid import uuid4

import aiohttp
import click
import msgspec

from adapters.elastic import open_elastic
from adapters.embedder import Embedder, Embedders, open_embedders
from adapters.passage_index import Learned, PassageIndex, _near, _words, keyed
from adapters.retriever import Retriever
from bench.machine import described
from config.settings import Settings
from domain.knowledge import Passage, Reader
from domain.passages import split
from domain.retrieval import DEPTH, combined, keywords, queries
from mlops import mtrag

READER: Final = Reader("bench", "bench")
STREAMS: Final = 50
TOKEN_SECONDS: Final = 0.02
AT_ONCE: Final = 32
QUESTIONS: Final = 150
NO_TEXT: Final = b'"_source":false'
TEXT: Final = b'"_source":{"excludes":["vector"]}'


class Turns(DefaultSelector):
    """Notes the processor time between two looks for events, which is what a turn of the loop takes, in ms."""

    def __init__(self) -> None:
        super().__init__()
        self.took: list[float] = []
        self._began = time.thread_time()

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait for events."""
        self.took.append((time.thread_time() - self._began) * 1000)
        events = super().select(timeout)
        self._began = time.thread_time()
        return events


@dataclass
class Stalls:
    """How late a task that wants to run every millisecond does, in ms, and what the loop's own turns take."""

    turns: Turns
    late: list[float] = field(default_factory=list)

    async def watch(self) -> None:
        """Notice until cancelled."""
        self.turns.took.clear()
        while True:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            self.late.append((time.perf_counter() - due) * 1000)

    def __str__(self) -> str:
        return f"late: {_spread(self.late)}; processor time of a turn: {_spread(self.turns.took)}"


def _spread(times: Sequence[float]) -> str:
    cuts = quantiles(times, n=1000)
    return f"longest {max(times):.1f} ms, p99.9 {cuts[-1]:.1f} ms, p99 {cuts[989]:.1f} ms"


async def stream() -> None:
    """Do what a stream of tokens does to the loop."""
    event = {"turn_id": "0" * 36, "epoch": 1, "seq": 1, "text": "token"}
    while True:
        await asyncio.sleep(TOKEN_SECONDS)
        msgspec.json.encode(event)


async def under_load(work: Awaitable[float], turns: Turns) -> tuple[float, str]:
    """Do something beside streams; return what it returns and what happened to the loop."""
    stalls = Stalls(turns)
    tasks = [asyncio.create_task(stream()) for _ in range(STREAMS)] + [asyncio.create_task(stalls.watch())]
    try:
        return await work, str(stalls)
    finally:
        for task in tasks:
            task.cancel()


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured."""

    settings: Settings
    index: PassageIndex
    embedders: Embedders

    @property
    def embedder(self) -> Embedder:
        """Return the model."""
        return self.embedders.of(self.settings.embedding_model)

    async def learn(self, texts: Sequence[mtrag.Text]) -> float:
        """Learn all passages; return the seconds that it took."""
        began = time.perf_counter()
        (index,) = await self.index.prepare(self.embedder.model, self.embedder.dims)
        with click.progressbar(length=len(texts), label="Learning", show_pos=True) as bar:
            for start in range(0, len(texts), AT_ONCE):
                part = texts[start : start + AT_ONCE]
                await asyncio.gather(*(self._learn(index.name, text) for text in part))
                bar.update(len(part))
        await self.index.refresh()
        return time.perf_counter() - began

    async def _learn(self, index: str, text: mtrag.Text) -> None:
        pieces = await asyncio.to_thread(split, text.text)
        passages = keyed(
            READER.tenant,
            [
                Learned(Passage(text.passage_id, text.title, piece.path, piece.text, "", position))
                for position, piece in enumerate(pieces)
            ],
        )
        vectors = await self.embedder.documents([each.spoken for each in passages.values()])
        new = {key: (each, vector) for (key, each), vector in zip(passages.items(), vectors, strict=True)}
        await self.index.write(index, READER.tenant, new, {}, (), seen=False)

    async def search(self, questions: Sequence[mtrag.Asked], concurrency: int, rounds: int) -> None:
        """Print what searches take here and raw."""
        retriever = Retriever(self.embedders, self.index, self.settings)
        bodies = [await self._bodies(asked) for asked in questions]
        url = f"{self.settings.elasticsearch_url.rstrip('/')}/{self.index.alias}/_search"
        took: dict[str, list[float]] = {"app": [], "raw": [], "raw with texts": []}
        async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:

            async def app(number: int) -> None:
                messages = questions[number].messages
                found = await retriever.find(READER, messages, k=5, tokens=1536, threshold=0.0)
                assert found.outcome == "found"

            async def raw(number: int) -> None:
                await asyncio.gather(*(post(body) for body in bodies[number]))

            async def with_texts(number: int) -> None:
                await asyncio.gather(*(post(body.replace(NO_TEXT, TEXT)) for body in bodies[number]))

            async def post(body: bytes) -> None:
                async with session.post(url, data=body) as answer:
                    await answer.read()
                    assert answer.status == 200

            ways: dict[str, Callable[[int], Awaitable[None]]] = {"app": app, "raw": raw, "raw with texts": with_texts}
            for way in ways.values():  # connections, caches
                await timed(way, len(questions), concurrency)
            ratios = []
            for number in range(rounds):
                part = {
                    name: await timed(ways[name], len(questions), concurrency)
                    for name in sorted(ways, reverse=bool(number % 2))
                }
                ratios.append(median(part["app"]) / median(part["raw"]))
                for name, times in part.items():
                    took[name] += times
        p50 = ", ".join(f"{name} {median(times):.1f} ms" for name, times in took.items())
        spread = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{concurrency} at once, p50: {p50}; app to raw {median(ratios):.2f} (rounds: {spread})")

    async def _bodies(self, asked: mtrag.Asked) -> list[bytes]:
        ways = queries(asked.messages)
        vectors = await self.embedder.queries([each.text for each in ways])  # which are known from here on
        vector = combined(vectors, [each.weight for each in ways])
        bodies: list[dict[str, Any]] = [_words(READER, keywords(asked.messages), DEPTH), _near(READER, vector, DEPTH)]
        return [msgspec.json.encode(body) for body in bodies]


async def timed(way: Callable[[int], Awaitable[None]], count: int, concurrency: int) -> list[float]:
    """Return what each call took, in ms."""
    took: list[float] = []
    numbers = iter(range(count))

    async def go() -> None:
        for number in numbers:
            began = time.perf_counter()
            await way(number)
            took.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(go() for _ in range(concurrency)))
    return took


async def main(arguments: argparse.Namespace, turns: Turns) -> None:
    """Run and print."""
    if "ELASTICSEARCH_URL" not in os.environ:
        raise SystemExit("Set ELASTICSEARCH_URL to an Elasticsearch that serves nobody else.")
    data = mtrag.load()
    texts = data.texts[: arguments.passages]
    settings = Settings(index_prefix=f"bench-{uuid4().hex[:8]}-")
    print(described())
    async with open_elastic(settings) as elastic:
        began = time.perf_counter()
        async with open_embedders(settings) as embedders:
            bench = Bench(settings, PassageIndex(elastic, settings.index_prefix), embedders)
            try:
                await bench.embedder.loaded()
                loaded = time.perf_counter() - began
                _, idle = await under_load(asyncio.sleep(5.0, 0.0), turns)
                seconds, stalls = await under_load(bench.learn(texts), turns)
                print(
                    f"{len(texts)} passages in {seconds:.1f} s: {len(texts) / seconds:.1f} a second"
                    f" (after {loaded:.1f} s in which the model was loaded)"
                )
                print(f"event loop meanwhile: {stalls}\nthe same without:     {idle}")
                for concurrency in (1, 4):
                    await bench.search(data.questions[:QUESTIONS], concurrency, arguments.rounds)
            finally:
                for index in await bench.index.indices():
                    await bench.index.drop(index.name)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--passages", type=int, default=1488, help="of those that there are")
    options.add_argument("--rounds", type=int, default=4, help="for each concurrency, in turn")
    selector = Turns()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(main(options.parse_args(), selector))
