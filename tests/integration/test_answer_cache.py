"""Answers that Elasticsearch keeps are given to whom they belong, for as long as what they rest on is as it was."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import pytest
from elasticsearch import Elasticsearch
from prometheus_client import REGISTRY

from adapters import answer_cache
from adapters.answer_cache import AnswerCache
from adapters.elastic import Elastic
from adapters.embedder import Embedder, open_embedders
from adapters.passage_index import PassageIndex
from adapters.search_index import Erasure, SearchIndex
from config.settings import Settings
from domain.answer_cache import Asked, Cached, Source
from domain.errors import EmbedderUnavailable
from domain.generation import Usage
from domain.knowledge import Found, Passage, Reader, Retrieved
from domain.spans import Span
from tests.support.search import FailingSearch, documents
from tests.support.services import Services

DAY = 86_400
ANN, BEN, EVE = Reader("acme", "ann"), Reader("acme", "ben"), Reader("evil", "ann")
PERIOD = "How long is the notice period?"
CONVERSATION = str(UUID(int=7))
COST = Usage(900, 40)

NEAR, FAR = [1.0, 0.05, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0]
VECTORS = {
    "How long is the notice period": [1.0, 0.0, 0.0, 0.0],
    "Tell me how long the notice period is, please": NEAR,
    "How long is the notice period of contractors": NEAR,
    "Roughly, how long is the notice period": FAR,
}


def total(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"headrace_answer_cache_{name}_total", labels) or 0.0


class FakeEmbedder:
    """Knows some questions; of the others' vectors none is near another's."""

    model = "tiny"
    dims = 4

    def __init__(self) -> None:
        self.is_away = False

    async def query(self, text: str) -> list[float]:
        if self.is_away:
            raise EmbedderUnavailable("away")
        return VECTORS.get(text.rstrip("?"), [0.0, 0.0, 0.0, 1.0])


class Setup:
    """A cache that is shared within tenants, its clock, and its Elasticsearch."""

    def __init__(self, url: str, prefix: str, **settings: object) -> None:
        self.url, self.prefix = url, prefix
        self.now = 1_790_000_000.0
        self.embedder: FakeEmbedder | Embedder | None = FakeEmbedder()
        self.elastic = Elastic(url)
        chosen = Settings.model_validate(
            {"index_prefix": prefix, "answer_cache": "tenant", "input_price": "2,m2=7"} | settings
        )
        self.cache = AnswerCache(self.elastic, chosen, self._embedder, clock=lambda: self.now)

    async def _embedder(self) -> FakeEmbedder | Embedder | None:
        return self.embedder

    async def keep(self, asked: Asked, answer: str = "Three months [1].", conversation_id: str = CONVERSATION) -> None:
        place = self.cache.place(asked)
        assert place is not None
        source = Source(*asked.reader, conversation_id, "turn-1")
        self.cache.keep(place, asked.retrieved, source, answer, outcome="completed", finish="stop", usage=COST)
        await self.cache.kept()
        self.refresh()

    async def find(self, asked: Asked) -> Cached | None:
        place = self.cache.place(asked)
        assert place is not None
        return await self.cache.find(place, asked.retrieved)

    async def kind(self, asked: Asked) -> str | None:
        cached = await self.find(asked)
        return cached.kind if cached else None

    def refresh(self) -> None:
        with Elasticsearch(self.url) as client:
            client.indices.refresh(index=f"{self.prefix}answers-*")

    def stored(self) -> set[str]:
        return {each["question"] for each in documents(self.url, f"{self.prefix}answers-*").values()}


def passages(*ids: str, public: bool = True) -> Retrieved:
    text = "Employees give notice; the period is three months, of contractors two weeks."
    return Retrieved("found", tuple(Found(each, Passage(f"doc-{each}", "", "", text), 1.0, public) for each in ids))


ASKED = Asked(ANN, PERIOD, passages("p1", "p2"), "grounded.v1", "small")


@pytest.fixture
async def it(services: Services, index_prefix: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setup]:
    # A machine that is busy with other tests may take longer to search than a person is to wait for a cache.
    monkeypatch.setattr(answer_cache, "FIND_SECONDS", 10.0)
    setup = Setup(services.elasticsearch_url, index_prefix)
    yield setup
    await setup.cache.close()
    await setup.elastic.close()


async def test_the_same_question_of_another_user_is_answered_from_the_cache_and_the_saving_is_counted(
    it: Setup,
) -> None:
    before = _saved()
    assert await it.find(ASKED) is None
    await it.keep(ASKED)

    cached = await it.find(replace(ASKED, reader=BEN, retrieved=passages("p2", "p1")))

    assert cached is not None
    assert (cached.kind, cached.answer, cached.turn_id, cached.saved) == ("exact", "Three months [1].", "turn-1", COST)
    assert [each.passage_id for each in cached.passages] == ["p1", "p2"]
    assert [now - then for now, then in zip(_saved(), before, strict=True)] == pytest.approx([900, 40, 0.0018])


def _saved() -> list[float]:
    tokens = [total("saved_model_tokens", kind=kind) for kind in ("input", "output")]
    return [*tokens, total("saved_cost")]


async def test_a_question_that_means_the_same_is_a_hit_and_one_that_only_looks_like_it_is_not(it: Setup) -> None:
    await it.keep(ASKED)

    assert await it.kind(replace(ASKED, question="Tell me how long the notice period is, please")) == "hit"
    assert await it.kind(replace(ASKED, question="How long is the notice period of contractors?")) is None
    assert await it.kind(replace(ASKED, question="Roughly, how long is the notice period?")) is None
    assert await it.kind(replace(ASKED, question="Is it raining?")) is None


async def test_the_built_in_model_tells_the_same_question_in_other_words_from_another_one(it: Setup) -> None:
    async with open_embedders(Settings()) as embedders:
        it.embedder = embedders.of(Settings().embedding_model)
        await it.embedder.loaded()
        text = "A consumer group shares the partitions of a topic. Create topics first. A file's maximum size is 1 MB."
        asked = replace(ASKED, retrieved=Retrieved("found", (Found("p", Passage("doc", "", "", text), 1.0),)))
        for question in ("How do I create a topic?", "What is a consumer group?", "What is the maximum file size?"):
            await it.keep(replace(asked, question=question))

        for same in ("How can I create a topic?", "How to create a topic", "Explain what a consumer group is"):
            assert await it.kind(replace(asked, question=same)) == "hit", same
        for other in ("How do I delete a topic?", "What is a consumer?", "What is the minimum file size?"):
            assert await it.kind(replace(asked, question=other)) is None, other


async def test_what_others_have_asked_many_times_does_not_stand_in_the_way(it: Setup) -> None:
    for number in range(10):
        await it.keep(replace(ASKED, reader=Reader(f"tenant-{number}", "ann")))

    await it.keep(ASKED)

    assert await it.kind(replace(ASKED, question="Tell me how long the notice period is, please")) == "hit"


@pytest.mark.parametrize(
    "other",
    [
        replace(ASKED, reader=EVE),
        replace(ASKED, reader=Reader("acme\0", "ann")),
        replace(ASKED, reader=Reader("*", "*")),
        replace(ASKED, reader=EVE, prompt='grounded.v1","small'),
        replace(ASKED, reader=EVE, question="Tell me how long the notice period is, please"),
        replace(ASKED, reader=EVE, question='"}}]}},{"term":{"tenant":"acme"}}'),
        replace(ASKED, model="other"),
        replace(ASKED, prompt="grounded.v2"),
    ],
)
async def test_nobody_of_another_tenant_gets_at_an_answer_whatever_they_call_themselves_or_ask(
    it: Setup, other: Asked
) -> None:
    await it.keep(ASKED)

    assert await it.find(other) is None


async def test_an_answer_from_what_not_everyone_may_read_is_given_to_its_asker_alone(it: Setup) -> None:
    private = replace(ASKED, retrieved=passages("p1", public=False))
    await it.keep(private)

    assert await it.kind(private) == "exact"
    assert await it.find(replace(private, reader=BEN)) is None
    assert await it.find(replace(ASKED, reader=BEN, retrieved=passages("p1"))) is None


@pytest.mark.parametrize("now", [passages("p1"), passages("p1", "p3"), passages("p1", "p2", "p3")])
async def test_once_a_document_has_changed_gone_or_come_the_answer_is_not_given_any_more(
    it: Setup, now: Retrieved
) -> None:
    await it.keep(ASKED)

    assert await it.find(replace(ASKED, retrieved=now)) is None
    changed = replace(ASKED, question="Tell me how long the notice period is, please", retrieved=now)
    assert await it.find(changed) is None


async def test_an_answer_expires_and_is_deleted_some_time_later(it: Setup) -> None:
    await it.keep(ASKED)

    it.now += DAY - 1
    assert await it.kind(ASKED) == "exact"
    it.now += 2
    assert await it.find(ASKED) is None
    assert await it.find(replace(ASKED, question="Tell me how long the notice period is, please")) is None

    await it.keep(replace(ASKED, question="How short?"))
    assert it.stored() == {"How short"}


async def test_an_answer_that_is_kept_again_takes_the_older_ones_place(it: Setup) -> None:
    await it.keep(ASKED)
    it.now += DAY + 1
    await it.keep(ASKED, "Four months [2].")

    cached = await it.find(ASKED)

    assert cached is not None
    assert cached.answer == "Four months [2]."


async def test_what_is_shared_by_all_needs_no_vectors(services: Services, index_prefix: str) -> None:
    setup = Setup(services.elasticsearch_url, index_prefix, answer_cache="public")
    setup.embedder = None
    asked = replace(ASKED, retrieved=Retrieved("empty"), prompt="assistant.v1")
    await setup.keep(asked, "A while.")

    assert await setup.kind(replace(asked, reader=EVE)) == "exact"
    assert await setup.find(replace(asked, reader=EVE, question="How long is a notice period?")) is None
    assert await setup.find(replace(ASKED, reader=EVE, prompt="assistant.v1")) is None
    await setup.elastic.close()


async def test_while_there_are_no_vectors_the_same_words_are_found(it: Setup) -> None:
    await it.keep(ASKED)
    assert isinstance(it.embedder, FakeEmbedder)
    it.embedder.is_away = True

    assert await it.kind(ASKED) == "exact"
    assert await it.find(replace(ASKED, question="Tell me how long the notice period is, please")) is None


# -- erasing


async def test_forgetting_a_user_a_conversation_or_a_document_deletes_what_came_of_it_and_nothing_else(
    it: Setup,
) -> None:
    other = str(UUID(int=8))
    await it.keep(ASKED)
    await it.keep(replace(ASKED, question="A?", reader=BEN), conversation_id=other)
    await it.keep(replace(ASKED, question="B?", retrieved=passages("p3")))
    await it.keep(replace(ASKED, question="C?", reader=EVE))

    await it.cache.forget("acme", document_id="doc-p3")
    assert it.stored() == {PERIOD.rstrip("?"), "A", "C"}
    await it.cache.forget("acme", user="ben", conversation_id=other)
    assert it.stored() == {PERIOD.rstrip("?"), "C"}
    await it.cache.forget("acme", user="ann")
    assert it.stored() == {"C"}


async def test_the_archive_erases_the_answers_of_a_conversation_and_none_comes_back_afterwards(it: Setup) -> None:
    archive = SearchIndex(it.elastic, it.prefix)
    await archive.prepare()
    await it.keep(ASKED)
    await it.keep(replace(ASKED, question="Of another?"), conversation_id=str(UUID(int=8)))

    await archive.erase(Span("controls@1", 0, 0, 1), [Erasure("acme", "ann", UUID(CONVERSATION))])
    assert it.stored() == {"Of another"}

    await it.keep(ASKED)
    assert it.stored() == {"Of another"}


async def test_a_document_that_is_forgotten_takes_the_answers_with_it_that_were_made_from_it(it: Setup) -> None:
    await it.keep(ASKED)
    await it.keep(replace(ASKED, question="Of another?", retrieved=passages("p3")))
    await it.keep(replace(ASKED, question="Elsewhere?", reader=EVE))

    await PassageIndex(it.elastic, it.prefix).forget("acme", "doc-p2")

    assert it.stored() == {"Of another", "Elsewhere"}


# -- when Elasticsearch fails


async def test_nothing_waits_for_an_elasticsearch_that_is_away_and_nothing_fails(
    services: Services, index_prefix: str
) -> None:
    search = FailingSearch(services.elasticsearch_url)
    async with search.serving():
        setup = Setup(search.url, index_prefix)
        search.down = True
        before = total("lookups", result="unavailable")

        assert await setup.find(ASKED) is None
        place = setup.cache.place(ASKED)
        assert place is not None
        setup.cache.keep(
            place,
            ASKED.retrieved,
            Source(*ANN, CONVERSATION, "t"),
            "So [1].",
            outcome="completed",
            finish="stop",
            usage=COST,
        )
        await setup.cache.kept()

        assert total("lookups", result="unavailable") == before + 1
        await setup.elastic.close()


async def test_of_very_many_answers_at_once_some_are_not_kept_and_the_rest_is_given_up_at_the_end(it: Setup) -> None:
    place = it.cache.place(ASKED)
    assert place is not None
    source = Source(*ANN, CONVERSATION, "t")
    for _ in range(100):
        it.cache.keep(place, ASKED.retrieved, source, "So [1].", outcome="completed", finish="stop", usage=COST)

    tasks = [task for task in asyncio.all_tasks() if "AnswerCache._keep" in repr(task)]
    await it.cache.close()

    assert len(tasks) == 32
    assert all(task.done() for task in tasks)
