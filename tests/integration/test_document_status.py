"""What became of a document is told as its latest record has it, to those who may know, and page by page."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from elasticsearch import Elasticsearch

from adapters.document_status import DocumentStatuses, open_document_statuses
from adapters.elastic import Elastic
from domain.errors import Overtaken, SinkUnavailable
from domain.knowledge import DocumentStatus, Reader
from tests.support.search import FailingSearch
from tests.support.services import Services

ANN, BOB, EVE = Reader("acme", "ann"), Reader("acme", "bob"), Reader("evil", "ann")
MANUAL = DocumentStatus("manual", "acme", "ann", title="Manual", metadata={"team": {"name": "data"}}, created_at=5)
LEARNED = replace(MANUAL, status="learned", passages=3)


@pytest.fixture
async def statuses(services: Services, index_prefix: str) -> AsyncIterator[DocumentStatuses]:
    elastic = Elastic(services.elasticsearch_url)
    async with open_document_statuses(elastic, index_prefix) as opened:
        yield opened
    await elastic.close()


async def test_a_status_is_read_as_it_was_written(statuses: DocumentStatuses) -> None:
    assert await statuses.read("acme", "manual") is None
    private = replace(MANUAL, readers=["bob", "u:x", "*"], url="https://example.invalid", error="odd", updated_at=9)
    await statuses.write((private, 5, False))

    found = await statuses.read("acme", "manual")
    assert found == replace(private, readers=["ann", "bob", "u:x", "*"])
    assert await statuses.many([("acme", "manual"), ("evil", "manual")]) == {("acme", "manual"): found}


async def test_what_comes_late_never_overwrites_what_is_newer(statuses: DocumentStatuses) -> None:
    await statuses.write((LEARNED, 5, True))
    await statuses.write((MANUAL, 5, False))  # by the view that took it, late
    await statuses.write((replace(MANUAL, status="failed"), 4, True))  # by a worker that had it before
    assert await statuses.read("acme", "manual") == LEARNED

    await statuses.write((replace(MANUAL, title="Other"), 6, False))
    assert (await statuses.read("acme", "manual") or MANUAL).title == "Other"
    await statuses.write((LEARNED, 6, True))
    await statuses.write((LEARNED, 6, True))  # learned again after a restart
    assert await statuses.read("acme", "manual") == LEARNED


async def test_of_several_statuses_a_late_one_does_not_keep_the_others(statuses: DocumentStatuses) -> None:
    await statuses.write((LEARNED, 5, True))
    other = replace(MANUAL, document_id="other")
    await statuses.write((MANUAL, 5, False), (other, 5, False))

    assert await statuses.of(ANN, limit=9) == [LEARNED, other]


async def test_what_is_forgotten_is_gone_unless_it_was_given_again(statuses: DocumentStatuses) -> None:
    await statuses.remove("acme", "manual", 5)  # before there is anything
    await statuses.write((LEARNED, 5, True))
    await statuses.remove("acme", "manual", 4)
    assert await statuses.read("acme", "manual") == LEARNED

    await statuses.remove("acme", "manual", 6)
    assert await statuses.read("acme", "manual") is None
    assert await statuses.of(ANN, limit=9) == []
    await statuses.write((LEARNED, 7, True))
    assert await statuses.of(ANN, limit=9) == [LEARNED]


async def test_the_list_has_what_its_reader_may_know_of(statuses: DocumentStatuses) -> None:
    private = replace(MANUAL, document_id="private", readers=["ann"], created_at=6)
    for_star = replace(MANUAL, document_id="star", user="*", readers=["*"], created_at=7)
    await statuses.write((MANUAL, 5, False), (private, 6, False), (for_star, 7, False))

    async def listed(reader: Reader, after: str = "") -> list[str]:
        return [each.document_id for each in await statuses.of(reader, limit=9, after=after)]

    assert await listed(ANN) == ["private", "manual"]
    assert await listed(BOB) == await listed(Reader("acme", "ANN")) == ["manual"]
    assert await listed(Reader("acme", "*")) == ["star", "manual"]
    assert await listed(EVE) == await listed(Reader("*", "ann")) == []
    # Nor does a place in the list tell of a document that one may not know of.
    assert await listed(BOB, after="private") == await listed(EVE, after="manual") == await listed(ANN, "none") == []


async def test_the_list_goes_on_after_each_page_and_shows_each_once(statuses: DocumentStatuses) -> None:
    each = [replace(MANUAL, document_id=f"d{n}", created_at=n // 3) for n in range(10)]  # three at the same time
    await statuses.write(*((status, 5, False) for status in each))

    seen: list[str] = []
    while page := await statuses.of(BOB, limit=4, after=seen[-1] if seen else ""):
        seen += [status.document_id for status in page]
    assert seen == ["d9", "d6", "d7", "d8", "d3", "d4", "d5", "d0", "d1", "d2"]


async def test_an_index_that_is_deleted_under_a_worker_is_made_anew_as_it_was(
    statuses: DocumentStatuses, services: Services, index_prefix: str
) -> None:
    index = f"{index_prefix}documents-v1"
    await statuses.write((LEARNED, 5, True))
    with Elasticsearch(services.elasticsearch_url) as client:
        before = client.indices.get_mapping(index=index).body
        client.indices.delete(index=index)
        await statuses.remove("acme", "other", 5)
        await statuses.write((replace(LEARNED, readers=["ann"]), 5, True))

        assert client.indices.get_mapping(index=index).body == before
    assert await statuses.of(BOB, limit=9) == []


async def test_of_many_workers_that_begin_one_makes_the_index(statuses: DocumentStatuses) -> None:
    each = [replace(MANUAL, document_id=f"d{n}") for n in range(8)]
    await asyncio.gather(*(statuses.write((status, 5, False)) for status in each))

    assert len(await statuses.of(ANN, limit=9)) == 8


async def test_the_progress_is_where_it_was_left_of_each_partition_and_log(statuses: DocumentStatuses) -> None:
    assert await statuses.progress("documents@1", 0) == 0
    await statuses.advance("documents@1", 0, 0, 7)
    await statuses.advance("documents@1", 0, 7, 9)

    assert await statuses.progress("documents@1", 0) == 9
    assert await statuses.progress("documents@1", 1) == await statuses.progress("documents@2", 0) == 0


async def test_of_two_that_move_the_progress_one_is_first(statuses: DocumentStatuses) -> None:
    async def moved(before: int, offset: int) -> bool:
        try:
            await statuses.advance("documents@1", 0, before, offset)
        except Overtaken:
            return False
        return True

    assert sum(await asyncio.gather(*(moved(0, 5) for _ in range(8)))) == 1
    assert sum(await asyncio.gather(*(moved(5, 7) for _ in range(8)))) == 1
    assert not await moved(5, 6)
    assert await statuses.progress("documents@1", 0) == 7


async def test_a_status_that_is_not_taken_is_said_and_taken_later(
    statuses: DocumentStatuses, services: Services, index_prefix: str
) -> None:
    proxy = FailingSearch(services.elasticsearch_url)
    async with proxy.serving():
        elastic = Elastic(proxy.url)
        through = DocumentStatuses(elastic, index_prefix)
        proxy.refuse = lambda _: (429, {"type": "es_rejected_execution_exception", "reason": "busy"})
        with pytest.raises(SinkUnavailable, match="status of a document: es_rejected_execution"):
            await through.write((LEARNED, 5, True))
        proxy.refuse = lambda _: None
        await through.write((LEARNED, 5, True))
        proxy.down = True
        with pytest.raises(SinkUnavailable):
            await through.read("acme", "manual")
        await elastic.close()

    assert await statuses.read("acme", "manual") == LEARNED


async def test_a_status_is_known_while_it_is_written_and_written_though_nobody_waits_any_more(
    statuses: DocumentStatuses, services: Services, index_prefix: str
) -> None:
    proxy, let_through = FailingSearch(services.elasticsearch_url), asyncio.Event()
    proxy.before_bulk = let_through.wait
    await statuses.write((replace(LEARNED, updated_at=5), 5, True))
    queued, first = replace(MANUAL, updated_at=6), replace(MANUAL, document_id="first")
    async with proxy.serving():
        elastic = Elastic(proxy.url)
        async with open_document_statuses(elastic, index_prefix) as through:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await through.write((queued, 6, False), (first, 6, False))

            assert await through.read("acme", "manual") == queued
            assert await through.read("acme", "first") == first
            assert await through.read("evil", "first") is None
            assert (await statuses.read("acme", "manual") or MANUAL).status == "learned"
            await statuses.write((replace(LEARNED, updated_at=7), 7, True))
            assert (await through.read("acme", "manual") or MANUAL).updated_at == 7  # what is newer is there already

            let_through.set()
            while through._writing:
                await asyncio.gather(*through._writing)
            assert await statuses.read("acme", "first") == first
            assert (await statuses.read("acme", "manual") or MANUAL).updated_at == 7
        await elastic.close()


async def test_what_is_still_being_written_ends_when_the_worker_does(services: Services, index_prefix: str) -> None:
    proxy, goes_on = FailingSearch(services.elasticsearch_url), asyncio.Event()
    proxy.before_bulk = goes_on.wait
    async with proxy.serving():
        elastic = Elastic(proxy.url)
        async with open_document_statuses(elastic, index_prefix) as through:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await through.write((MANUAL, 5, False))
            assert through._writing

        assert not through._writing
        goes_on.set()  # or the proxy waits a minute for its end
        await elastic.close()
