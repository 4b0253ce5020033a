"""Elasticsearch has every turn of the log once, whoever writes it and however often, and forgets what was erased."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from elasticsearch import Elasticsearch

from adapters import search_index
from adapters.elastic import Elastic
from adapters.search_index import SearchIndex
from domain.errors import Overtaken, SinkRefused, SinkUnavailable
from domain.generation import Usage
from domain.knowledge import Citation
from domain.prices import FREE, Prices
from streams.search_sink import SearchSink
from tests.integration.test_turn_store import CONTROLS, T0, TURNS, control, conversation_id, span, turn, turn_id
from tests.support.search import FailingSearch, documents
from tests.support.services import Services

REFUSED = (400, {"type": "document_parsing_exception", "reason": "odd. Preview of field's value: 'a secret'"})
BUSY = (429, {"type": "es_rejected_execution_exception", "reason": "queue is full"})


class Setup:
    """A sink, and what its Elasticsearch has past it."""

    def __init__(self, url: str, prefix: str, elastic: Elastic, prices: Prices) -> None:
        self.url = url
        self.prefix = prefix
        self.sink = SearchSink(SearchIndex(elastic, prefix), prices)

    async def keep(self, start: int, *turns: object, again: bool = False) -> None:
        await self.sink.keep(span(start, start + len(turns)), dict(enumerate(turns, start)), again=again)  # type: ignore[arg-type]

    async def erase(self, start: int, *conversations: int, user: str = "ann", again: bool = False) -> None:
        controls = {
            at: control("erase", conversation=which, user=user) for at, which in enumerate(conversations, start)
        }
        await self.sink.obey(span(start, start + len(controls), log=CONTROLS), controls, TURNS, again=again)

    async def next(self, log: str = TURNS) -> int:
        return (await self.sink.progress(log, [0]))[0]

    def answers(self) -> dict[str, str]:
        return {key: each["answer"] for key, each in documents(self.url, f"{self.prefix}turns").items()}

    def found(self, **query: object) -> set[str]:
        return set(documents(self.url, f"{self.prefix}turns", {key: dict([value]) for key, value in query.items()}))  # type: ignore[list-item]


@asynccontextmanager
async def opened(url: str, prefix: str, *, by: str = "", prices: Prices = FREE) -> AsyncIterator[Setup]:
    elastic = Elastic(by or url)
    try:
        yield Setup(url, prefix, elastic, prices)
    finally:
        await elastic.close()


@pytest.fixture
async def it(services: Services, index_prefix: str) -> AsyncIterator[Setup]:
    async with opened(services.elasticsearch_url, index_prefix) as setup:
        await setup.sink.prepare()
        yield setup


@pytest.fixture
async def failing(services: Services, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FailingSearch]:
    monkeypatch.setattr(search_index, "FIRST_PAUSE_SECONDS", 0.0)
    search = FailingSearch(services.elasticsearch_url)
    async with search.serving():
        yield search


@pytest.fixture
async def behind(services: Services, failing: FailingSearch, index_prefix: str) -> AsyncIterator[Setup]:
    """The same behind a server that fails as it is told to."""
    async with opened(services.elasticsearch_url, index_prefix, by=failing.url) as setup:
        await setup.sink.prepare()
        yield setup


# -- each turn once


async def test_a_batch_is_there_and_its_progress_behind_it(it: Setup) -> None:
    await it.keep(0, turn(1), turn(2))

    assert set(it.answers()) == {turn_id(1), turn_id(2)}
    assert await it.sink.progress(TURNS, [0, 1]) == {0: 2, 1: 0}


async def test_a_batch_that_is_written_again_changes_nothing(it: Setup) -> None:
    await it.keep(0, turn(1), turn(2))

    with pytest.raises(Overtaken):
        await it.keep(0, turn(1), turn(2), turn(3))

    assert set(it.answers()) == {turn_id(1), turn_id(2)}
    assert await it.next() == 2


async def test_of_two_owners_that_write_the_same_batch_at_once_one_moves_the_progress(it: Setup) -> None:
    batch = [turn(number) for number in range(50)]

    outcomes = await asyncio.gather(*(it.keep(0, *batch) for _ in range(4)), return_exceptions=True)

    assert sorted(str(type(outcome)) for outcome in outcomes) == sorted(map(str, [Overtaken] * 3 + [type(None)]))
    assert len(it.answers()) == 50
    assert await it.next() == 50


async def test_a_turn_that_was_published_twice_is_there_once(it: Setup) -> None:
    await it.keep(0, turn(1), turn(2))
    await it.keep(2, turn(2), turn(3), turn(3))

    assert set(it.answers()) == {turn_id(1), turn_id(2), turn_id(3)}


async def test_after_a_rewind_what_is_there_is_written_over(it: Setup) -> None:
    await it.keep(0, turn(1, answer="old"), turn(2))

    await it.sink.rewind(TURNS, {0: 0})
    await it.keep(0, turn(1, answer="new"), turn(2))

    assert it.answers() == {turn_id(1): "new", turn_id(2): "It is so."}


async def test_a_span_without_turns_moves_the_progress(it: Setup) -> None:
    await it.sink.keep(span(0, 7), {})

    assert await it.next() == 7


async def test_what_is_written_again_leaves_the_progress_alone(it: Setup) -> None:
    await it.keep(0, turn(1, answer="old"))

    await it.keep(0, turn(1, answer="new"), turn(2), again=True)

    assert it.answers() == {turn_id(1): "new", turn_id(2): "It is so."}
    assert await it.next() == 1


# -- what is found


async def test_a_turn_is_found_by_the_stems_of_its_words_and_by_its_fields(it: Setup) -> None:
    await it.keep(0, turn(1, answer="The wheels are turning"), turn(2, conversation=1, outcome="failed"))

    assert it.found(match=("answer", "wheel turns")) == {turn_id(1)}
    assert it.found(term=("conversation_id", conversation_id(1))) == {turn_id(2)}
    assert it.found(term=("outcome", "failed")) == {turn_id(2)}
    assert it.found(range=("ended_at", {"gte": T0 + 502})) == {turn_id(2)}


async def test_a_turn_is_found_by_what_became_of_it_and_what_it_was_given(
    services: Services, index_prefix: str
) -> None:
    said = msgspec.structs.replace(
        turn(1), retrieval="found", cache="miss", experiment="b", bare=True, usage=Usage(1000, 7),
        citations=[Citation(n, document, "", "", "") for n, document in enumerate(("d1", "d2", "d1"), 1)],
    )  # fmt: skip
    async with opened(services.elasticsearch_url, index_prefix, prices=Prices({"small": 2.5})) as it:
        await it.sink.prepare()
        await it.keep(0, said, turn(2))

        for field, value in {
            "retrieval": "found", "cache": "miss", "experiment": "b", "bare": True, "document_ids": "d2",
        }.items():  # fmt: skip
            assert it.found(term=(field, value)) == {turn_id(1)}, field
        assert it.found(range=("cost", {"gt": 0.002, "lt": 0.003})) == {turn_id(1)}
        found = documents(it.url, f"{it.prefix}turns")[turn_id(1)]
        assert (found["cost"], found["document_ids"]) == (0.0025, ["d1", "d2"])


async def test_the_months_of_an_older_version_get_its_new_fields(it: Setup) -> None:
    new = {"retrieval", "cache", "experiment", "bare", "cost", "document_ids"}
    with Elasticsearch(it.url) as client:
        body = client.indices.get_index_template(name=f"{it.prefix}turns")["index_templates"][0]["index_template"]
        template = body["template"]
        fields = template["mappings"]["properties"]
        older = {**template, "mappings": {"dynamic": False, "properties": {k: fields[k] for k in fields.keys() - new}}}
        client.indices.put_index_template(
            name=f"{it.prefix}turns", version=1, index_patterns=[f"{it.prefix}turns-*"], priority=300, template=older
        )
    await it.keep(0, turn(1))

    await it.sink.prepare()
    await it.keep(1, msgspec.structs.replace(turn(2), experiment="b"))

    assert it.found(term=("experiment", "b")) == {turn_id(2)}
    with Elasticsearch(it.url) as client:
        month = client.indices.get_mapping(index=f"{it.prefix}turns-2026.09")[f"{it.prefix}turns-2026.09"]
    assert new <= month["mappings"]["properties"].keys()


async def test_a_turn_is_in_the_index_of_the_month_of_its_end(it: Setup) -> None:
    october = msgspec.structs.replace(turn(2), ended_at=T0 + 30 * 86_400_000)
    await it.keep(0, turn(1), october)

    months = {month: set(documents(it.url, f"{it.prefix}turns-{month}")) for month in ("2026.09", "2026.10")}
    assert months == {"2026.09": {turn_id(1)}, "2026.10": {turn_id(2)}}


async def test_metadata_of_any_shape_costs_no_turn_its_place(it: Setup) -> None:
    deep: dict[str, object] = {"bottom": 1}
    for _ in range(40):
        deep = {"a": [deep]}
    odd = [{"k": "text"}, {"k": 7}, {"k": {"k": [1, {"k": None}]}}, {"k\0": "\0"}, {"": ""}, deep, {"k": "é" * 8000}]
    turns = [msgspec.structs.replace(turn(number), metadata=each) for number, each in enumerate(odd)]
    await it.keep(0, *turns)

    assert len(it.answers()) == len(odd)
    assert it.found(term=("metadata.k", "text")) == {turn_id(0)}
    assert it.found(term=("metadata.k", "7")) == {turn_id(1)}


def test_metadata_that_is_nested_more_deeply_than_a_field_may_be_ends_in_its_text() -> None:
    deep: object = "bottom"
    for _ in range(40):
        deep = {"a": [deep]}

    flat, levels = search_index.shallow(deep), 0
    while not isinstance(flat, str):
        flat, levels = (flat["a"] if isinstance(flat, dict) else flat[0]), levels + 1

    assert levels == search_index.METADATA_DEPTH
    assert "bottom" in flat


async def test_turns_that_can_be_no_documents_are_named(it: Setup) -> None:
    foreign = [
        msgspec.structs.replace(turn(2), turn_id="not a uuid"),
        msgspec.structs.replace(turn(3), ended_at=10**18),
    ]

    with pytest.raises(SinkRefused) as refused:
        await it.keep(0, turn(1), *foreign)

    assert set(refused.value.reasons) == {1, 2}
    assert await it.next() == 0


async def test_turns_that_an_index_of_another_mapping_refuses_are_named_and_the_others_written(it: Setup) -> None:
    with Elasticsearch(it.url) as client:
        client.indices.create(
            index=f"{it.prefix}turns-2026.09",
            settings={"mapping.ignore_malformed": False},
            mappings={"properties": {"answer": {"type": "integer"}}},
        )

    with pytest.raises(SinkRefused) as refused:
        await it.keep(0, turn(1, answer="7"), turn(2, answer="no number"), turn(3, answer="8"))

    assert list(refused.value.reasons) == [1]
    assert "answer" in refused.value.reasons[1]
    assert "no number" not in refused.value.reasons[1]
    await it.sink.keep(span(0, 3), {0: turn(1, answer="7"), 2: turn(3, answer="8")})
    assert set(it.answers()) == {turn_id(1), turn_id(3)}


async def test_a_newer_workers_template_is_left_alone(it: Setup) -> None:
    with Elasticsearch(it.url) as client:
        client.indices.put_index_template(
            name=f"{it.prefix}turns",
            version=search_index.VERSION + 1,
            index_patterns=[f"{it.prefix}turns-*"],
            template={"aliases": {f"{it.prefix}newer": {}}},
        )

    await it.sink.prepare()
    await it.keep(0, turn(1))

    assert set(documents(it.url, f"{it.prefix}newer")) == {turn_id(1)}


async def test_many_workers_make_the_indices_at_once(services: Services, index_prefix: str) -> None:
    async with opened(services.elasticsearch_url, index_prefix) as setup:
        await asyncio.gather(*(setup.sink.prepare() for _ in range(4)))

        assert await setup.next() == 0


# -- a bulk request that fails in part


async def test_documents_that_come_at_a_busy_moment_are_tried_again_alone(
    behind: Setup, failing: FailingSearch
) -> None:
    busy = {turn_id(2): [BUSY, (503, BUSY[1])], turn_id(4): [BUSY]}
    failing.refuse = lambda key: busy[key].pop(0) if busy.get(key) else None

    await behind.keep(0, *(turn(number) for number in range(5)))

    assert failing.bulks == [[turn_id(number) for number in range(5)], [turn_id(2), turn_id(4)], [turn_id(2)]]
    assert len(behind.answers()) == 5
    assert await behind.next() == 5


async def test_documents_that_stay_refused_for_now_are_an_outage_and_set_nothing_aside(
    behind: Setup, failing: FailingSearch
) -> None:
    failing.refuse = lambda key: BUSY if key == turn_id(1) else None

    with pytest.raises(SinkUnavailable, match="queue is full"):
        await behind.keep(0, turn(1), turn(2))

    assert await behind.next() == 0


@pytest.mark.parametrize(
    "state",
    [
        (403, {"type": "security_exception", "reason": "may not"}),
        (404, {"type": "index_not_found_exception", "reason": "none"}),
        (400, {"type": "validation_exception", "reason": "maximum shards open"}),
    ],
    ids=lambda state: state[1]["type"],
)
async def test_what_an_index_or_a_right_is_to_blame_for_is_no_documents_fault(
    behind: Setup, failing: FailingSearch, state: tuple[int, dict[str, str]]
) -> None:
    failing.refuse = lambda _: state

    with pytest.raises(SinkUnavailable, match=state[1]["reason"]):
        await behind.keep(0, turn(1))


async def test_refused_and_busy_documents_of_a_batch_are_told_apart(behind: Setup, failing: FailingSearch) -> None:
    busy = [BUSY]
    failing.refuse = lambda key: REFUSED if key == turn_id(1) else busy.pop() if key == turn_id(2) and busy else None

    with pytest.raises(SinkRefused) as refused:
        await behind.keep(0, turn(1), turn(2), turn(3))

    assert refused.value.reasons == {0: "it can be no document: document_parsing_exception: odd."}
    assert set(behind.answers()) == {turn_id(2), turn_id(3)}


async def test_a_batch_is_sent_in_requests_of_bounded_size(
    behind: Setup, failing: FailingSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index, "BULK_BYTES", 5000)

    await behind.keep(0, *(turn(number, answer="word " * 300) for number in range(15)))

    assert sorted(map(len, failing.bulks)) == [1] + [2] * 7
    assert len(behind.answers()) == 15


async def test_a_proxy_that_allows_less_gets_smaller_requests(behind: Setup, failing: FailingSearch) -> None:
    failing.largest = 10_000

    await behind.keep(0, *(turn(number, answer="word " * 300) for number in range(15)))

    assert len(failing.bulks) > 1
    assert len(behind.answers()) == 15


async def test_a_turn_that_is_too_large_for_a_proxy_is_refused_alone(behind: Setup, failing: FailingSearch) -> None:
    failing.largest = 50_000

    with pytest.raises(SinkRefused) as refused:
        await behind.keep(0, turn(1), turn(2, answer="word " * 20_000), turn(3))

    assert list(refused.value.reasons) == [1]
    assert set(behind.answers()) == {turn_id(1), turn_id(3)}


# -- erasures


async def test_what_was_erased_is_gone_and_a_turn_that_ends_late_does_not_bring_it_back(it: Setup) -> None:
    await it.keep(0, turn(1), turn(2, conversation=1))
    await it.erase(0, 0)
    await it.keep(2, turn(3), turn(4, conversation=1))

    assert set(it.answers()) == {turn_id(2), turn_id(4)}
    assert await it.next(CONTROLS) == 1


async def test_an_erasure_that_comes_before_the_first_turn_holds(it: Setup) -> None:
    await it.erase(0, 0)
    await it.keep(0, turn(1))

    assert it.answers() == {}


async def test_nobody_else_erases_a_conversation(it: Setup) -> None:
    await it.keep(0, turn(1))
    await it.erase(0, 0, user="bob")
    await it.keep(1, turn(2))

    assert set(it.answers()) == {turn_id(1), turn_id(2)}


async def test_an_erasure_in_the_middle_of_a_batch_leaves_nothing_of_it(
    behind: Setup, failing: FailingSearch, it: Setup
) -> None:
    async def erase_first() -> None:
        failing.before_bulk = None
        await it.erase(0, 0)

    failing.before_bulk = erase_first
    await behind.keep(0, turn(1), turn(2, conversation=1))

    assert set(it.answers()) == {turn_id(2)}


async def test_what_was_erased_stays_so_when_an_older_or_a_newer_one_is_erased_too(it: Setup) -> None:
    await it.erase(0, 4)
    await it.erase(1, 6)
    await it.erase(2, 2)
    await it.keep(0, *(turn(number, conversation=number) for number in range(1, 8)))

    assert set(it.answers()) == {turn_id(number) for number in (1, 3, 5, 7)}


async def test_erasures_of_several_workers_at_once_all_hold(it: Setup) -> None:
    await asyncio.gather(*(it.erase(0, number, again=True) for number in range(8, 0, -1)))
    await it.keep(0, *(turn(number, conversation=number) for number in range(1, 10)))

    assert set(it.answers()) == {turn_id(9)}


async def test_erasures_hold_that_a_worker_wrote_who_knew_of_no_newest(it: Setup) -> None:
    await it.erase(0, 2)
    with Elasticsearch(it.url) as client:
        client.index(index=f"{it.prefix}erased", id=search_index.MARK, document={})
    await it.erase(1, 1)
    await it.keep(0, turn(1, conversation=1), turn(2, conversation=2), turn(3, conversation=3))

    assert set(it.answers()) == {turn_id(3)}


async def test_what_was_erased_stays_so_when_turns_are_written_again(it: Setup) -> None:
    await it.keep(0, turn(1), turn(2, conversation=1))
    await it.erase(0, 0)

    await it.erase(0, 0, again=True)
    await it.keep(0, turn(1), turn(2, conversation=1), again=True)

    assert set(it.answers()) == {turn_id(2)}
    assert (await it.next(), await it.next(CONTROLS)) == (2, 1)


# -- Elasticsearch itself


async def test_what_a_batch_lacks_while_elasticsearch_is_away_it_has_when_it_is_back(
    behind: Setup, failing: FailingSearch
) -> None:
    failing.down = True
    with pytest.raises(SinkUnavailable, match="503 unavailable: down"):
        await behind.keep(0, turn(1))

    failing.down = False
    await behind.keep(0, turn(1))

    assert set(behind.answers()) == {turn_id(1)}


async def test_while_elasticsearch_is_away_nobody_waits_for_it_and_no_message_has_its_password() -> None:
    clock = iter(range(1000))
    elastic = Elastic("http://elastic:hunter2hunter2@127.0.0.1:1", clock=lambda: next(clock) * 1e-6)
    sink = SearchSink(SearchIndex(elastic, "any-"))
    said = []
    for _ in range(6):
        with pytest.raises(SinkUnavailable) as raised:
            await sink.prepare()
        said.append(str(raised.value))
    await elastic.close()

    assert "left alone" in said[-1]
    assert not [text for text in said if "hunter2" in text]


async def test_a_progress_that_somebody_deleted_begins_anew_once_it_is_prepared(it: Setup) -> None:
    await it.keep(0, turn(1))
    with Elasticsearch(it.url) as client:
        client.indices.delete(index=f"{it.prefix}progress")

    with pytest.raises(SinkUnavailable, match="progress"):
        await it.next()
    await it.sink.prepare()
    assert await it.next() == 0
