"""How well passages are found, and how well it is known that there are none: one table, by the code that answers run.

    python -m mlops.evaluate [--keep] [--fit]

Learns the passages of the benchmark (`mlops.mtrag`) into indices of its own, on ELASTICSEARCH_URL or else on the
embedded search server, and asks its questions. Rows differ in one thing each: the last question by words alone, by
vectors alone, by both added up, and with its conversation, as `POST /v1/search` and answers find passages.

``--fit`` fits what tells answerable questions from others anew, which is where the weights in `domain.retrieval` are
from, and says how well that does on conversations that it was fitted without.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from statistics import fmean
from typing import Final, get_args

import click

from adapters.elastic import open_elastic
from adapters.embedder import Embedder, open_embedders
from adapters.parsers import Parsers, open_parsers
from adapters.passage_index import PassageIndex, found_in, keyed, with_vectors
from adapters.retriever import SPARE, Retriever
from config.settings import Settings
from deploy.embedded import Embedded
from domain.errors import SinkUnavailable
from domain.knowledge import Reader
from domain.retrieval import DEPTH, Signs, by_document, confidence, fuse, keywords, queries, signs
from mlops import mtrag
from mlops.mtrag import Answerability, Asked
from mlops.scores import auc, cross_fitted, fitted, ndcg, precision_recall, recall
from streams.learning import passages_of
from streams.records import Document

READER: Final = Reader("evaluation", "evaluation")
JUDGED: Final = frozenset({"answerable", "partial", "unanswerable"})
BATCH: Final = 64
PASSAGES: Final = 5
THRESHOLDS: Final = (0.5, 0.6, 0.7)
WAYS: Final = ("BM25 alone", "vectors alone", "fused", "fused, with the conversation")


@dataclass
class Measured:
    """What came of the questions.

    ``ranked``: documents by way. ``sure``: how sure the answer was to be; ``signs``: of what.
    """

    ranked: dict[str, list[list[str]]] = field(default_factory=lambda: {way: [] for way in WAYS})
    sure: list[float] = field(default_factory=list)
    signs: list[Signs] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured: the search, its index and its model."""

    retriever: Retriever
    index: PassageIndex
    embedder: Embedder

    async def learn(self, texts: Sequence[mtrag.Text], parsers: Parsers) -> float:
        """Learn the benchmark's passages; return how many passages of ours a second."""
        await self.embedder.loaded()
        (index,) = await self.index.prepare(self.embedder.model, self.embedder.dims)
        began, count = time.monotonic(), 0
        with click.progressbar(length=len(texts), label="Learning", file=sys.stderr, show_pos=True) as bar:
            for start in range(0, len(texts), BATCH):
                batch = texts[start : start + BATCH]
                cut = [await passages_of(_document(text), parsers) for text in batch]
                learned = keyed(each for passages in cut for each in passages)
                vectors = await self.embedder.documents([each.spoken for each in learned.values()])
                await self.index.write(index.name, with_vectors(learned, vectors), {}, (), seen=False)
                count += len(learned)
                bar.update(len(batch))
        await self.index.refresh()
        return count / (time.monotonic() - began)

    async def ask(self, questions: Sequence[Asked]) -> Measured:
        """Search for every question in every way."""
        measured = Measured()
        with click.progressbar(questions, label="Asking", file=sys.stderr, show_pos=True) as bar:
            for question in bar:
                for way, ranked in zip(WAYS, await self._ranked(question), strict=True):
                    measured.ranked[way].append(ranked)
                _, evidence = await self.retriever.ranked(READER, question.messages, PASSAGES)
                measured.sure.append(confidence(evidence))
                measured.signs.append(signs(evidence))
        return measured

    async def _ranked(self, question: Asked) -> list[list[str]]:
        """Return the documents that each way finds, best first."""
        # From here on the vectors are known, and no search goes without them on a busy machine.
        vector, *_ = await self.embedder.queries([query.text for query in queries(question.messages)])
        words, near, _ = await self.index.search(READER, keywords(question.messages[-1:]), vector, DEPTH)
        best = [fuse(*rankings)[: PASSAGES * SPARE] for rankings in ((words, {}), ({}, near), (words, near))]
        passages = await self.index.read(READER, list({key for ranked in best for key, _ in ranked}))
        found = [by_document(found_in(passages, ranked)) for ranked in best]
        found.append(await self.retriever.search(READER, question.messages, k=PASSAGES))
        return [list(dict.fromkeys(each.passage.document_id for each in way)) for way in found]


def _document(text: mtrag.Text) -> Document:
    return Document(
        document_id=text.passage_id, tenant=READER.tenant, user=READER.user, title=text.title, text=text.text
    )


def table(questions: Sequence[Asked], measured: Measured, threshold: float) -> str:
    """Return all figures as text."""
    lines = [
        f"{'':30}{'all':^20}{'follow-ups':^20}",
        f"{'':30}{'nDCG@5':>10}{'recall@5':>10}{'nDCG@5':>10}{'recall@5':>10}",
    ]
    places = [place for place, question in enumerate(questions) if question.relevant]
    follow_ups = [place for place in places if questions[place].is_follow_up]
    for way in WAYS:
        cells = ""
        for chosen in (places, follow_ups):
            pairs = [(measured.ranked[way][place], questions[place].relevant) for place in chosen]
            cells += f"{fmean(ndcg(*pair) for pair in pairs):10.3f}{fmean(recall(*pair) for pair in pairs):10.3f}"
        lines.append(f"{way:30}{cells}")
    lines += ["", f"{len(places)} questions with relevant passages, {len(follow_ups)} of them follow-ups.", ""]
    lines += _refusals(questions, measured.sure, threshold)
    return "\n".join(lines)


def _refusals(questions: Sequence[Asked], sure: Sequence[float], threshold: float) -> list[str]:
    by = _by_kind(questions, sure)
    return [
        *_told_apart(by),
        _at(threshold, by),
        f"{len(by['underspecified'])} underspecified ones are left out: passages answer what they may mean.",
    ]


def _by_kind(questions: Sequence[Asked], sure: Sequence[float]) -> dict[str, list[float]]:
    by: dict[str, list[float]] = {kind: [] for kind in get_args(Answerability)}
    for question, each in zip(questions, sure, strict=True):
        by[question.answerability].append(each)
    return by


def _told_apart(by: Mapping[str, Sequence[float]]) -> list[str]:
    refused, full, partial = by["unanswerable"], by["answerable"], by["partial"]
    against, with_partial = auc(full, refused), auc([*full, *partial], refused)
    return [
        f"Telling {len(refused)} unanswerable questions from {len(full)} answerable ones: AUC {against:.3f}.",
        f"With {len(partial)} partly answerable ones among these: AUC {with_partial:.3f}.",
    ]


def _at(threshold: float, by: Mapping[str, Sequence[float]]) -> str:
    refused, full = by["unanswerable"], by["answerable"]
    judged = [(each < threshold, True) for each in refused]
    judged += [(each < threshold, False) for each in (*full, *by["partial"])]
    precision, found = precision_recall([said for said, _ in judged], [true for _, true in judged])
    wrongly = sum(each < threshold for each in full) / len(full)
    return f"At {threshold:g}: precision {precision:.2f}, recall {found:.2f}; {wrongly:.1%} of the answerable refused."


def fit(questions: Sequence[Asked], measured: Measured) -> str:
    """Return what a regression makes of the signs, on all questions and on those that it was fitted without."""
    places = [place for place, each in enumerate(questions) if each.answerability in {"answerable", "unanswerable"}]
    chosen = [questions[place] for place in places]
    true = [each.answerability == "answerable" for each in chosen]
    weights = fitted([measured.signs[place] for place in places], true)
    judged = [place for place, each in enumerate(questions) if each.answerability in JUDGED]
    likely = cross_fitted(
        [measured.signs[place] for place in judged],
        [questions[place].answerability != "unanswerable" for place in judged],
        [questions[place].conversation for place in judged],
        taught=[questions[place].answerability != "partial" for place in judged],
    )
    left_out = _by_kind([questions[place] for place in judged], likely)
    now = _by_kind(questions, measured.sure)
    names = (*Signs._fields, "bias")
    return "\n".join(
        [
            "Fitted anew: " + ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, weights, strict=True)),
            "On the conversations that it was fitted without, a tenth at a time:",
            *(f"  {line}" for line in [*_told_apart(left_out), *(_at(each, left_out) for each in THRESHOLDS)]),
            "With the weights in use, which were fitted on all of them:",
            *(f"  {line}" for line in [*_told_apart(now), *(_at(each, now) for each in THRESHOLDS)]),
        ]
    )


@asynccontextmanager
async def opened(settings: Settings, *, keep: bool) -> AsyncIterator[Bench]:
    """Yield an index of its own, which is deleted in the end."""
    async with open_elastic(settings) as elastic, open_embedders(settings) as embedders:
        index = PassageIndex(elastic, f"evaluation-{token_hex(4)}-")
        try:
            yield Bench(Retriever(embedders, index, settings), index, embedders.of(settings.embedding_model))
        finally:
            if not keep:
                for each in await index.indices():
                    await index.drop(each.name)


async def evaluate(settings: Settings, *, keep: bool, again: bool) -> str:
    """Return the table."""
    benchmark = mtrag.load()
    async with opened(settings, keep=keep) as bench, open_parsers(settings.document_bytes) as parsers:
        speed = await bench.learn(benchmark.texts, parsers)
        measured = await bench.ask(benchmark.questions)
    text = table(benchmark.questions, measured, settings.threshold("headrace"))
    if again:
        text += f"\n\n{fit(benchmark.questions, measured)}"
    return f"{text}\n\nLearned {speed:.0f} passages a second."


def main() -> None:
    """Evaluate, and print."""
    parser = argparse.ArgumentParser(prog="python -m mlops.evaluate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave the index for a look at it")
    parser.add_argument("--fit", action="store_true", help="fit the weights anew, and judge them on what is left out")
    options = parser.parse_args()
    with ExitStack() as stack:
        if not os.environ.get("ELASTICSEARCH_URL"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            os.environ |= stack.enter_context(Embedded(folder, only={"es"})).environ
        try:
            print(asyncio.run(evaluate(Settings(), keep=options.keep, again=options.fit)))
        except SinkUnavailable as error:
            raise SystemExit(f"Elasticsearch does not answer: {error}") from error


if __name__ == "__main__":
    main()
