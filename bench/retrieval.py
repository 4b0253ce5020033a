"""What it costs to learn documents and to find passages, on 1,488 passages of tests/data.

    ELASTICSEARCH_URL=… python -m bench.retrieval [--rounds 3]

First, learning from a cold start, as a worker does it (`streams.learning` with statuses, progress and, for one document
of a hundred, a parser's process), from a log in memory: passages a second, and the event loop's longest stall
meanwhile, while 50 tasks wake up 50 times a second as streams of tokens do; beside that, the same loop with nothing to
embed. A stall is how late a task comes, which a busy machine adds to. So three more are printed (Linux tells): how long
the loop's thread could have run meanwhile and had no core; the lateness without that, which is the worker's own doing:
turns, and threads that hold the interpreter's lock; and the processor time of the loop's longest turn. Where the
machine is a virtual one its host may stop it, which all but the last count: for how long it did is printed too.

Then what a search takes in the app, against its own two requests (words, vectors) sent raw and at once: the same
bodies, encoded before and not decoded; and against these two with the texts of what they find, which a search reads in
a third request for the best few. The vectors of the questions are known on all sides.
"""

import argparse
import asyncio
import gc
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from selectors import DefaultSelector, SelectorKey
from statistics import median, quantiles
from typing import Any, Final, NamedTuple
from uuid import uuid4

import aiohttp
import click
import msgspec

from adapters.document_status import DocumentStatuses
from adapters.elastic import open_elastic
from adapters.embedder import Embedder, Embedders, open_embedders
from adapters.parsers import Parsers, open_parsers
from adapters.passage_index import PassageIndex, _near, _words
from adapters.priority import go_first
from adapters.retriever import Retriever
from bench.machine import described
from config.settings import Settings
from domain.errors import SinkUnavailable
from domain.knowledge import Reader
from domain.retrieval import DEPTH, combined, keywords, queries
from mlops import mtrag
from streams.app import GC_THRESHOLDS, SWITCH_SECONDS
from streams.learning import Learner
from streams.records import Document, DocumentOutcome, document_key, encode

READER: Final = Reader("bench", "bench")
STREAMS: Final = 50
TOKEN_SECONDS: Final = 0.02
TOPIC: Final = "documents"
ID: Final = "bench"
PARTITIONS: Final = 4
FILE_EVERY: Final = 100
LOOK_SECONDS: Final = 0.5
QUESTIONS: Final = 150
NO_TEXT: Final = b'"_source":false'
STAT: Final = Path("/proc/stat")
SCHEDSTAT: Final = Path("/proc/thread-self/schedstat")
TEXT: Final = b'"_source":{"excludes":["vector"]}'


def _stolen() -> float:
    """Return how long the host has not let this machine's cores run since it was started, in ms (Linux)."""
    return int(STAT.read_text(encoding="ascii").split(maxsplit=9)[8]) * 1000 / os.sysconf("SC_CLK_TCK")


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
    """How late a task that wants to run every millisecond does, in ms, and what the loop's own turns take.

    ``coreless``: how long the loop's thread was ready meanwhile and had no core. What is left of the lateness is the
    worker's own, also where another thread holds the interpreter's lock and has no core: the loop waits for the lock.
    """

    turns: Turns
    late: list[float] = field(default_factory=list)
    coreless: list[float] = field(default_factory=list)
    stolen_before: float = field(default_factory=_stolen)

    async def watch(self) -> None:
        """Notice until cancelled."""
        self.turns.took.clear()
        while True:
            before = _coreless()
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            self.late.append((time.perf_counter() - due) * 1000)
            self.coreless.append(_coreless() - before)

    def __str__(self) -> str:
        own = [max(0.0, late - coreless) for late, coreless in zip(self.late, self.coreless, strict=True)]
        return (
            f"late: {_spread(self.late)}; without a core: {_spread(self.coreless)}; late but for that:"
            f" {_spread(own)}; processor time of a turn: {_spread(self.turns.took)};"
            f" all cores together were taken by the machine's host for {_stolen() - self.stolen_before:.0f} ms"
        )


def _coreless() -> float:
    """Return how long this thread has waited for a core since it began, in ms (Linux, sched-stats)."""
    _, waited_ns, _ = SCHEDSTAT.read_bytes().split()
    return int(waited_ns) / 1e6


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
    statuses: DocumentStatuses
    embedders: Embedders
    parsers: Parsers

    @property
    def embedder(self) -> Embedder:
        """Return the model."""
        return self.embedders.of(self.settings.embedding_model)

    async def learn(self, texts: Sequence[mtrag.Text]) -> float:
        """Learn all passages; return the seconds that it took."""
        given = Given(texts)
        learner = Learner(
            given,
            TOPIC,
            index=self.index,
            statuses=self.statuses,
            embedders=self.embedders,
            parsers=self.parsers,
            model=self.settings.embedding_model,
            owned=lambda: set(given.logs),
            set_aside=_refuse,
            tell=_untold,
        )
        began = time.perf_counter()
        learning = asyncio.create_task(learner.run())
        with click.progressbar(length=len(texts), label="Learning", show_pos=True) as bar:
            while bar.pos < len(texts):
                await asyncio.sleep(LOOK_SECONDS)
                bar.update(max(0, await self._learned(given) - bar.pos))
        learning.cancel()
        return time.perf_counter() - began

    async def _learned(self, given: "Given") -> int:
        """Return how many documents are done with."""
        try:
            done = await asyncio.gather(*(self.statuses.progress(f"{TOPIC}@{ID}", each) for each in given.logs))
        except SinkUnavailable:  # for a moment at the beginning, while their index is being made
            return 0
        return sum(done)

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


class Kept(NamedTuple):
    """A record of the log."""

    offset: int
    key: bytes
    value: bytes
    at_ms: int


class Given:
    """The documents' topic: what is measured is learning, and not Kafka."""

    def __init__(self, texts: Sequence[mtrag.Text]) -> None:
        self.logs: dict[int, list[Kept]] = {partition: [] for partition in range(PARTITIONS)}
        for number, text in enumerate(texts):
            log = self.logs[number % PARTITIONS]
            document = Document(
                document_id=text.passage_id,
                tenant=READER.tenant,
                user=READER.user,
                title=text.title,
                text="" if number % FILE_EVERY == 0 else text.text,
                file=text.text.encode() if number % FILE_EVERY == 0 else b"",
            )
            key = document_key(document.tenant, document.document_id)
            log.append(Kept(len(log), key.encode(), encode(document), number))

    async def topic_id(self, topic: str) -> str:
        """Return what tells this topic from another of its name."""
        return ID

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return how many records there are."""
        return {partition: len(self.logs[partition]) for partition in partitions}

    async def batch(
        self, topic: str, partition: int, start: int, stop: int, *, most: int, most_bytes: int
    ) -> Sequence[Kept]:
        """Return records."""
        return self.logs[partition][start : min(stop, start + most)]


async def _refuse(*, error: Exception, **_: object) -> None:
    raise error


async def _untold(_: DocumentOutcome) -> None:
    """Say to nobody what became of a document."""


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
    settings = Settings(index_prefix=f"bench-{uuid4().hex[:8]}-")
    sys.setswitchinterval(SWITCH_SECONDS)  # as a worker, and so is this:
    niceness = settings.niceness if settings.niceness and go_first(settings.niceness) else "as it was started"
    data = mtrag.load()
    texts = data.texts[: arguments.passages]
    print(f"{described()}; niceness: {niceness}")
    async with open_elastic(settings) as elastic:
        began = time.perf_counter()
        async with open_embedders(settings) as embedders, open_parsers(settings.document_bytes) as parsers:
            await parsers.start()  # as a worker does
            prefix = settings.index_prefix
            statuses = DocumentStatuses(elastic, prefix)
            bench = Bench(settings, PassageIndex(elastic, prefix), statuses, embedders, parsers)
            try:
                await bench.embedder.loaded()
                loaded = time.perf_counter() - began
                # As a worker does once it has started (`streams.app`): a full collection takes 80 ms.
                gc.collect()
                gc.freeze()
                gc.set_threshold(*GC_THRESHOLDS)
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
                async with elastic.client() as client:
                    names = f"{prefix}documents-v1,{prefix}documents-v1-progress"
                    await client.indices.delete(index=names, ignore_unavailable=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--passages", type=int, default=1488, help="of those that there are")
    options.add_argument("--rounds", type=int, default=4, help="for each concurrency, in turn")
    selector = Turns()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(main(options.parse_args(), selector))
