"""On real questions each part of the search is worth having: words, vectors, both, and the conversation before them."""

from collections import defaultdict
from collections.abc import AsyncIterator
from statistics import fmean
from typing import cast

import pytest

from adapters.elastic import Elastic
from adapters.embedder import Embedder, Embedders
from adapters.passage_index import PassageIndex, keyed, with_vectors
from adapters.retriever import Retriever
from config.settings import Settings
from mlops.evaluate import WAYS, Bench, table
from mlops.mtrag import Benchmark
from mlops.scores import auc, ndcg
from tests.support.mtrag import KnownEmbedder, part, passages
from tests.support.services import Services


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return part()


@pytest.fixture
async def bench(services: Services, index_prefix: str, benchmark: Benchmark) -> AsyncIterator[Bench]:
    elastic, embedder = Elastic(services.elasticsearch_url), KnownEmbedder()
    index = PassageIndex(elastic, index_prefix)
    learned = keyed(passages(benchmark))
    vectors = await embedder.documents([each.spoken for each in learned.values()])
    (one,) = await index.prepare(embedder.model, embedder.dims)
    await index.write(one.name, with_vectors(learned, vectors), {}, (), seen=False)
    await index.refresh()
    retriever = Retriever(cast("Embedders", embedder), index, Settings(index_prefix=index_prefix, retrieval_seconds=30))
    yield Bench(retriever, index, cast("Embedder", embedder))
    await elastic.close()


async def test_each_part_of_a_search_is_worth_having(bench: Bench, benchmark: Benchmark) -> None:
    relevants = [question.relevant for question in benchmark.questions]

    measured = await bench.ask(benchmark.questions)

    words, vectors, both, conversation = (
        fmean(
            ndcg(ranked, relevant) for ranked, relevant in zip(measured.ranked[way], relevants, strict=True) if relevant
        )
        for way in WAYS
    )
    assert words < both
    assert vectors < both
    assert both < conversation
    sure = defaultdict[str, list[float]](list)
    for question, each in zip(benchmark.questions, measured.sure, strict=True):
        sure[question.answerability].append(each)
    assert auc(sure["answerable"], sure["unanswerable"]) > 0.75
    assert all(way in table(benchmark.questions, measured, 0.6) for way in WAYS)
