"""A search uses what it has: vectors and a cross-encoder where they are there and in time, and says what is missing."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
import structlog

from adapters import retriever
from adapters.embedder import Embedders
from adapters.passage_index import Hits, Index, PassageIndex
from adapters.retriever import Retriever
from config.settings import Settings
from domain.errors import EmbedderUnavailable, Rejected, SinkUnavailable
from domain.knowledge import Passage, Reader
from tests.support.embedding import DIMS, WordEmbedders

ANN = Reader("acme", "ann")
TEXTS = {"p1": "one bird", "p2": "two fishes", "p3": "three cats"}


class FakeIndex:
    """Finds all passages in one order. ``down``: how often nobody answers first."""

    def __init__(self) -> None:
        self.serving = Index("passages-000001", "words", DIMS, "serving")
        self.down = 0
        self.documents = {"p1": "d1", "p2": "d1", "p3": "d2"}
        self.vectors: list[Sequence[float] | None] = []
        self.ranking = {"p1": 3.0, "p2": 2.0, "p3": 1.0}
        self.looked = 0
        self.is_empty = False

    async def indices(self) -> tuple[Index, ...]:
        if self.down:
            self.down -= 1
            raise SinkUnavailable("Elasticsearch is not there")
        return (self.serving,)

    async def search(
        self, _reader: Reader, _said: object, vector: Sequence[float] | None, _depth: int, *, of: str
    ) -> Hits:
        assert of == self.serving.name
        self.vectors.append(vector)
        if self.is_empty:
            return Hits({}, {}, {})
        near = {"p1": 0.9, "p2": 0.8, "p3": 0.1} if vector and len(self.ranking) == 3 else {}
        return Hits(self.ranking, near, {})

    async def read(self, _reader: Reader, ids: Sequence[str], _stamps: object) -> dict[str, tuple[Passage, bool]]:
        return {key: (Passage(self.documents[key], "", "", TEXTS.get(key, "")), True) for key in ids}

    async def has_any(self, _reader: Reader) -> bool:
        self.looked += 1
        return False


class FakeRanker:
    """Likes the last passage best. ``error``: what whoever asks hears; ``stuck``: nothing comes.

    ``asked``: the questions, and of how many passages.
    """

    ready = True

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.stuck = False
        self.asked: list[tuple[str, int]] = []

    async def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        self.asked.append((question, len(texts)))
        if self.error is not None:
            raise self.error
        if self.stuck:
            await asyncio.sleep(60)
        return [float(place) for place, _ in enumerate(texts)]


class Setup:
    """A search among fakes."""

    def __init__(self, ranker: FakeRanker | None = None, **settings: Any) -> None:
        self.index = FakeIndex()
        self.embedders = WordEmbedders("lost")
        self.retriever = Retriever(
            cast("Embedders", self.embedders), cast("PassageIndex", self.index), Settings(**settings), ranker=ranker
        )

    async def order(self) -> list[str]:
        """Return the texts that are found, best first; their scores never say otherwise."""
        found = await self.retriever.search(ANN, [{"role": "user", "content": "which bird?"}], k=3)
        scores = [each.score for each in found]
        assert scores == sorted(scores, reverse=True)
        return [each.passage.text for each in found]

    async def outcome(self) -> str:
        found = await self.retriever.find(
            ANN, [{"role": "user", "content": "which bird?"}], k=3, tokens=100, threshold=0.0
        )
        return found.outcome


async def test_of_each_document_one_passage_comes_first() -> None:
    assert await Setup().order() == ["one bird", "three cats", "two fishes"]


async def test_a_cross_encoder_has_the_last_word() -> None:
    it = Setup(FakeRanker())
    it.index.documents = {key: key for key in TEXTS}

    assert await it.order() == ["three cats", "two fishes", "one bird"]


@pytest.mark.parametrize("k", [1, 5])
async def test_a_cross_encoder_looks_at_sixteen_passages_however_few_are_wanted(k: int) -> None:
    ranker = FakeRanker()
    it = Setup(ranker)
    it.index.documents = {f"p{number}": f"d{number}" for number in range(30)}
    it.index.ranking = {key: 30.0 - place for place, key in enumerate(it.index.documents)}

    found = await it.retriever.search(ANN, [{"role": "user", "content": "which bird?"}], k=k)

    assert ranker.asked == [("which bird?", 16)]
    assert found[0].passage.document_id == "d15"
    assert len(found) == k


async def test_a_cross_encoder_reads_a_follow_up_behind_what_it_is_about() -> None:
    ranker = FakeRanker()
    said = [("user", "Tell me about otters"), ("assistant", "They swim."), ("user", "how old do they get?")]

    await Setup(ranker).retriever.search(ANN, [{"role": role, "content": text} for role, text in said], k=3)

    assert [question for question, _ in ranker.asked] == ["Tell me about otters how old do they get?"]


@pytest.mark.parametrize("trouble", ["loading", "refused", "stuck", "not ready"])
async def test_without_the_cross_encoder_the_order_stays(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retriever, "RERANK_SECONDS", 0.01)
    ranker = FakeRanker()
    ranker.error = {"loading": EmbedderUnavailable("ended"), "refused": Rejected("bad text")}.get(trouble)
    ranker.stuck = trouble == "stuck"
    ranker.ready = trouble != "not ready"
    it = Setup(ranker)
    it.index.documents = {key: key for key in TEXTS}

    assert await it.order() == ["one bird", "two fishes", "three cats"]


async def test_a_search_does_not_wait_long_for_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retriever, "VECTOR_SECONDS", 0.01)
    it = Setup()
    it.embedders.one.stuck = True

    assert await it.outcome() == "found"
    assert it.index.vectors == [None]


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (Index("i", "words", DIMS, "serving", "dynamic is true"), "dynamic is true"),
        (Index("i", "words", DIMS * 2, "serving"), f"vectors of {DIMS} numbers, it has {DIMS * 2}"),
        (Index("i", "lost", DIMS, "serving"), "does not have its model"),
    ],
)
async def test_what_is_wrong_with_an_index_is_said_once_and_words_find(index: Index, said: str) -> None:
    it = Setup()
    it.index.serving = index
    with structlog.testing.capture_logs() as logs:
        assert await it.outcome() == "found"
        assert await it.outcome() == "found"

    assert it.index.vectors == [None, None]
    (error,) = [each for each in logs if each["log_level"] == "error"]
    assert said in error["reason"]
    assert "faust -A streams.app reindex --model" in error["reason"]


async def test_what_is_wrong_is_found_at_the_start_as_soon_as_elasticsearch_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retriever, "LOOK_SECONDS", 0.001)
    it = Setup()
    it.index.serving = Index("i", "words", DIMS, "serving", "dynamic is true")
    it.index.down = 3
    with structlog.testing.capture_logs() as logs:
        await it.retriever.look()

    assert [each["event"] for each in logs] == ["documents are searched by words alone"]


async def test_an_answer_is_told_that_documents_are_out_of_reach() -> None:
    it = Setup()
    it.index.down = 1

    assert await it.outcome() == "unavailable"
    assert await it.outcome() == "found"


async def test_no_error_of_ours_takes_an_answer_along() -> None:
    it = Setup()
    it.index.documents.clear()  # so that a passage cannot be read: KeyError

    assert await it.outcome() == "unavailable"


async def test_who_may_read_nothing_is_not_looked_for_again_at_once() -> None:
    it = Setup()
    it.index.is_empty = True

    assert [await it.outcome() for _ in range(3)] == ["empty"] * 3
    assert it.index.looked == 1
