"""A part of the benchmark whose vectors are known: what a search makes of real texts, without the model and in seconds.

    python -m tests.support.mtrag

writes the vectors anew, with the built-in model: needed where `domain.retrieval.queries` says its questions otherwise.
"""

import asyncio
import gzip
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from adapters.embedder import BUILT_IN, open_embedders
from adapters.passage_index import Learned
from config.settings import Settings
from domain.knowledge import Passage
from domain.retrieval import combined, queries
from mlops.evaluate import READER
from mlops.mtrag import Benchmark, load

VECTORS: Final = Path(__file__).resolve().parents[1] / "data/mtrag-vectors.json.gz"
WORDS: Final = 150
"""Of a text, which is one passage here: its vector does not depend on how documents are cut."""


def part() -> Benchmark:
    """Return about every tenth question, with what answers them among every twelfth passage."""
    benchmark = load()
    clear = {"answerable", "unanswerable"}
    questions = tuple(question for question in benchmark.questions[::8] if question.answerability in clear)
    wanted = {passage_id for question in questions for passage_id in question.relevant}
    texts = [text for number, text in enumerate(benchmark.texts) if text.passage_id in wanted or number % 12 == 0]
    return Benchmark(tuple(texts), questions)


def passages(benchmark: Benchmark) -> list[Learned]:
    """Return the texts, each as one passage of a document of its own."""
    return [
        Learned(READER.tenant, Passage(text.passage_id, text.title.strip(), "", " ".join(text.text.split()[:WORDS])))
        for text in benchmark.texts
    ]


class KnownEmbedder:
    """The built-in model, for texts of the part. Raises KeyError for others."""

    model = BUILT_IN
    dims = 384
    ready = True

    def __init__(self) -> None:
        known = msgspec.json.decode(gzip.decompress(VECTORS.read_bytes()), type=dict[str, bytes])
        # Of numbers from -127 to 127, which is as near as Elasticsearch keeps them.
        self._known = {digest: combined([array("b", vector)], [1.0]) for digest, vector in known.items()}

    def of(self, _model: str) -> "KnownEmbedder":
        return self

    async def queries(self, texts: Sequence[str]) -> list[list[float]]:
        return [self._known[_digest(text)] for text in texts]

    async def documents(self, texts: Sequence[str]) -> list[list[float]]:
        return await self.queries(texts)


async def write() -> None:
    """Write the vectors."""
    benchmark = part()
    texts = [each.spoken for each in passages(benchmark)]
    texts += [query.text for question in benchmark.questions for query in queries(question.messages)]
    async with open_embedders(Settings(embedding_model=BUILT_IN, embedding_url="")) as embedders:
        embedder = embedders.of(BUILT_IN)
        await embedder.loaded()
        vectors = await embedder.documents(texts)
    known = {_digest(text): _small(vector) for text, vector in zip(texts, vectors, strict=True)}
    VECTORS.write_bytes(gzip.compress(msgspec.json.encode(known, order="sorted"), mtime=0))


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _small(vector: Sequence[float]) -> bytes:
    largest = max(map(abs, vector))
    return array("b", [round(127 * number / largest) for number in vector]).tobytes()


if __name__ == "__main__":
    asyncio.run(write())
