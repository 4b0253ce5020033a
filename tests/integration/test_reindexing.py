"""Documents are searched by another embedding model from one moment to the next, and never not at all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import pytest

from adapters import passage_index
from adapters.elastic import Elastic
from adapters.embedder import Embedders
from adapters.kafka_admin import ensure_topics
from adapters.passage_index import Index, Learned, PassageIndex, keyed, with_vectors
from adapters.retriever import Retriever
from config.settings import Settings
from domain.errors import Rejected, SinkUnavailable
from domain.knowledge import Passage, Reader
from streams import reindex_command, reindexing
from streams.records import Document, document_key, encode
from streams.reindex_command import Refused, Tools, drop, reindex, rollback, status
from streams.topics import Topics
from tests.conftest import Names
from tests.support.kafka import produce_all
from tests.support.search import documents
from tests.support.services import Services

ANN = Reader("acme", "ann")
ANIMALS = (
    "otters",
    "badgers",
    "herons",
    "salmon",
    "foxes",
    "weasels",
    "adders",
    "newts",
    "voles",
    "owls",
    "bats",
    "hares",
)
BEGINNING = [(f"d{number}", f"{name.title()} at home") for number, name in enumerate(ANIMALS)]


class BrokenOffError(Exception):
    """As if the process had ended."""


class FakeEmbedder:
    """Vectors of words. A ``blind`` model gives each text one that has nothing to do with any other's."""

    ready = True

    def __init__(self, model: str, dims: int) -> None:
        self.model = model
        self.dims = dims
        self.embedded: list[str] = []
        self.asked: list[str] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None  # runs while texts are embedded for the first time
        self.fails_after = 1_000_000
        self.refuses = ""  # texts with this in them

    async def loaded(self) -> None:
        await asyncio.sleep(0)

    async def query(self, text: str) -> list[float]:
        if self.refuses and self.refuses in text:
            raise Rejected("the embedding server refuses a text")
        return self._vector(text)

    async def queries(self, texts: Sequence[str]) -> list[list[float]]:
        self.asked += texts
        return [self._vector(text) for text in texts]

    async def documents(self, texts: Sequence[str]) -> list[list[float]]:
        await asyncio.sleep(0.005)
        if len(self.embedded) + len(texts) > self.fails_after:
            raise BrokenOffError
        if self.refuses and any(self.refuses in text for text in texts):
            raise Rejected("the embedding server refuses a text")
        self.embedded += texts
        if self.embedded and self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        vector = [0.01] * self.dims
        for word in [text] if self.model == "blind" else text.lower().split():
            vector[int.from_bytes(blake2b(word.strip(".:?").encode(), digest_size=4).digest()) % self.dims] += 1.0
        return vector


class FakeEmbedders:
    """Some models, by name."""

    def __init__(self) -> None:
        self._of = {name: FakeEmbedder(name, dims) for name, dims in (("old", 192), ("new", 256), ("blind", 64))}

    def of(self, model: str) -> FakeEmbedder:
        return self._of[model]


async def cut(document: Document) -> list[Learned]:
    """A passage for each line of a document."""
    lines = document.text.splitlines()
    return [
        Learned(
            document.tenant,
            Passage(document.document_id, document.title, document.title, line, "", place),
            tuple(document.readers),
        )
        for place, line in enumerate(lines)
    ]


@dataclass
class Setup:
    """The command's tools, and a worker that does what `agents.learn` does, simply."""

    tools: Tools
    index: PassageIndex  # the worker's own, which knows for a moment only what it knew
    bootstrap: str
    topic: str
    embedders: FakeEmbedders

    async def publish(
        self, document_id: str, title: str, text: str = "", *, tenant: str = "acme", readers: Sequence[str] = ()
    ) -> Document:
        text = text or f"{title} is what this says.\nIt ends here, {document_id}."
        document = Document(
            document_id=document_id, tenant=tenant, user="ann", title=title, text=text, readers=list(readers)
        )
        key = document_key(tenant, document_id).encode()
        await asyncio.to_thread(produce_all, self.bootstrap, self.topic, [(key, encode(document))])
        return document

    async def learn(self, document_id: str, title: str, text: str = "") -> None:
        document = await self.publish(document_id, title, text)
        passages = keyed(await cut(document))
        for each in await self.index.prepare("old", 192):
            vectors = await self.embedders.of(each.model).documents([each.spoken for each in passages.values()])
            there = await self.ids(each.name, document_id)
            new = with_vectors(passages, vectors)
            await self.index.write(each.name, new, {}, there - new.keys(), seen=False)
        await self.index.refresh()

    async def ids(self, index: str, document_id: str) -> set[str]:
        return (await self.index.ids(index, [("acme", document_id)]))["acme", document_id]

    async def tombstone(self, document_id: str) -> None:
        key = document_key("acme", document_id).encode()
        await asyncio.to_thread(produce_all, self.bootstrap, self.topic, [(key, cast("bytes", None))])

    async def forget(self, document_id: str) -> None:
        await self.tombstone(document_id)
        await self.index.forget("acme", document_id)

    async def found(self, query: str) -> set[str]:
        retriever = Retriever(self.tools.embedders, self.index, self.tools.settings)
        return {each.passage.text for each in await retriever.search(ANN, [{"role": "user", "content": query}], k=3)}

    async def passages(self, index: str) -> set[str]:
        """Return the ids of all passages of an index."""
        found = await asyncio.to_thread(documents, self.tools.settings.elasticsearch_url, index)
        return set(found)

    async def serving(self) -> Index:
        found = await self.tools.index.serving()
        assert found is not None
        return found


@pytest.fixture
async def it(
    services: Services, names: Names, index_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Setup]:
    monkeypatch.setattr(reindex_command, "INDICES_SECONDS", 0.2)
    monkeypatch.setattr(passage_index, "INDICES_SECONDS", 0.2)
    settings = Settings.model_validate(
        {
            "KAFKA_BOOTSTRAP_SERVERS": services.bootstrap,
            "ELASTICSEARCH_URL": services.elasticsearch_url,
            "topic_prefix": names.topic_prefix,
            "index_prefix": index_prefix,
            "partitions": 2,
            "passages": 3,
        }
    )
    topic = Topics.of(settings).documents
    await ensure_topics(services.bootstrap, [topic])
    elastic, embedders = Elastic(services.elasticsearch_url), FakeEmbedders()
    index = PassageIndex(elastic, index_prefix)
    tools = Tools(settings, elastic, PassageIndex(elastic, index_prefix), cast("Embedders", embedders), cut)
    setup = Setup(tools, index, services.bootstrap, topic.name, embedders)
    for document_id, title in BEGINNING:
        await setup.learn(document_id, title)
    yield setup
    await elastic.close()


async def test_while_an_index_is_filled_every_search_is_answered_and_what_is_learned_is_in_both(it: Setup) -> None:
    before = await it.serving()
    running = asyncio.create_task(reindex(it.tools, "new", None, 0.02))
    searches = 0

    async def search() -> None:
        nonlocal searches
        while not running.done():
            await asyncio.sleep(0)
            assert "Foxes at home is what this says." in await it.found("Where do foxes live?")
            searches += 1

    searching = asyncio.create_task(search())
    for number in range(20, 28):
        await it.learn(f"d{number}", f"Later {number}")
    await it.learn("d0", "Otters abroad")
    await it.forget("d1")
    await running
    await searching

    after = await it.serving()
    assert (before.model, after.model) == ("old", "new")
    assert searches > 3
    assert await it.passages(after.name) == await it.passages(before.name)
    assert await it.found("otters") >= {"Otters abroad is what this says."}
    assert not any("Badgers" in text for text in await it.found("badgers"))


async def test_a_worker_that_has_not_heard_of_the_switch_yet_finds_what_it_found_before(
    it: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    await it.found("otters")
    monkeypatch.setattr(passage_index, "INDICES_SECONDS", 1000.0)
    await reindex(it.tools, "new", None, 0.02)

    assert (await it.serving()).model == "new"
    embedder = it.embedders.of("new")
    embedder.asked.clear()
    assert "Otters at home is what this says." in await it.found("otters")
    assert not embedder.asked

    await drop(it.tools)
    assert "Otters at home is what this says." in await it.found("otters")


async def test_after_a_switch_both_are_written_and_a_rollback_loses_nothing(
    it: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    before = await it.serving()
    await reindex(it.tools, "new", None, 0.02)
    await it.learn("d30", "Kingfishers")

    await rollback(it.tools)

    assert await it.serving() == before
    assert "Kingfishers is what this says." in await it.found("kingfishers")
    await status(it.tools)
    said = capsys.readouterr().out
    assert f"{before.name}  serving         26 passages  192 dims  old" in said
    assert "retired         26 passages  256 dims  new" in said

    await rollback(it.tools)
    assert (await it.serving()).model == "new"
    await drop(it.tools)
    assert [each.model for each in await it.tools.index.indices()] == ["new"]
    with pytest.raises(Refused, match="no index to go back to"):
        await rollback(it.tools)


async def test_a_model_that_finds_less_is_not_switched_to_unless_that_is_tolerated(
    it: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Refused, match="finds less"):
        await reindex(it.tools, "blind", None, 0.02)

    assert (await it.serving()).model == "old"
    assert "Recall@3 of 12 questions" in capsys.readouterr().out
    with pytest.raises(Refused, match="another model is being filled"):
        await reindex(it.tools, "new", None, 0.02)

    await reindex(it.tools, "blind", None, 1.0)
    assert (await it.serving()).model == "blind"


async def test_a_filling_that_was_broken_off_goes_on_and_embeds_nothing_twice(
    it: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reindexing, "AT_ONCE", 2)
    embedder = it.embedders.of("new")
    embedder.fails_after = 10
    with pytest.raises(BrokenOffError):
        await reindex(it.tools, "new", None, 0.02)
    assert (await it.serving()).model == "old"
    assert embedder.embedded

    embedder.fails_after = 1_000_000
    await reindex(it.tools, "new", None, 0.02)

    assert (await it.serving()).model == "new"
    assert len(embedder.embedded) == len(set(embedder.embedded)) == 24


async def test_what_changes_or_goes_while_its_older_version_is_written_ends_as_the_log_says(it: Setup) -> None:
    async def change() -> None:
        await it.publish("d0", "Otters abroad", "Otters abroad say this.")
        await it.tombstone("d1")

    it.embedders.of("new").meanwhile = change
    await reindex(it.tools, "new", None, 1.0)

    name = (await it.serving()).name
    assert len(await it.ids(name, "d0")) == 1
    assert await it.ids(name, "d1") == set()
    assert len(await it.ids(name, "d2")) == 2


async def test_a_write_that_fails_is_tried_again_and_one_that_goes_on_failing_ends_it_without_a_switch(
    it: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reindexing, "pause", lambda _: 0.0)
    left = 3

    async def write(self: PassageIndex, index: str, *arguments: Any, **options: Any) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise SinkUnavailable("busy")
        await written(self, index, *arguments, **options)

    written = PassageIndex.write
    monkeypatch.setattr(PassageIndex, "write", write)
    await reindex(it.tools, "new", None, 0.02)
    assert (await it.serving()).model == "new"

    await rollback(it.tools)
    left = 1000
    with pytest.raises(SinkUnavailable, match="busy"):
        await reindex(it.tools, "new", None, 0.02)
    assert (await it.serving()).model == "old"


async def test_a_record_that_cannot_be_learned_is_left_out_and_said(
    it: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        (b"acme/bad", b"{"),
        (b"evil/d1", encode(Document(document_id="d1", tenant="acme", user="eve", text="x"))),
    ]
    await asyncio.to_thread(produce_all, it.bootstrap, it.topic, records)

    await reindex(it.tools, "new", None, 0.02)

    said = capsys.readouterr()
    assert "has 24 passages of 12 documents" in said.out
    assert "2 documents could not be brought in" in said.err


async def test_a_document_that_the_new_model_refuses_is_left_out_alone_and_counts_against_it(
    it: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    new = it.embedders.of("new")
    new.refuses = "Badgers at home is"

    with pytest.raises(Refused, match="finds less"):
        await reindex(it.tools, "new", None, 0.02)
    await reindex(it.tools, "new", None, 0.2)

    said = capsys.readouterr()
    assert "has 22 passages of 11 documents" in said.out
    assert "1 documents could not be brought in" in said.err
    name = (await it.serving()).name
    assert await it.ids(name, "d1") == set()
    assert len(await it.ids(name, "d2")) == 2


async def test_a_passage_that_elasticsearch_refuses_costs_its_own_document_alone(
    it: Setup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def write(self: PassageIndex, index: str, new: Mapping[str, Any], *arguments: Any, **options: Any) -> None:
        if any("Badgers" in learned.passage.text for learned, _ in new.values()):
            raise Rejected("Elasticsearch refuses 1 of 2 passages")
        await written(self, index, new, *arguments, **options)

    written = PassageIndex.write
    monkeypatch.setattr(PassageIndex, "write", write)
    await reindex(it.tools, "new", None, 1.0)

    said = capsys.readouterr()
    assert "has 22 passages of 11 documents" in said.out
    assert "1 documents could not be brought in" in said.err
    assert (await it.serving()).model == "new"


async def test_what_was_for_everyone_and_is_refused_for_some_is_found_by_nobody(it: Setup) -> None:
    async def change() -> None:
        await it.publish("d1", "Badgers", "\N{SKULL}", readers=["ben"])

    it.embedders.of("new").meanwhile = change
    it.embedders.of("new").refuses = "\N{SKULL}"
    await reindex(it.tools, "new", None, 1.0)

    assert await it.ids((await it.serving()).name, "d1") == set()


async def test_what_learning_sets_aside_is_not_let_in_and_an_unforeseen_error_costs_one_document(
    it: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fragile(document: Document) -> list[Learned]:
        if document.document_id == "d3":
            raise RuntimeError("not foreseen")
        return await cut(document)

    await it.publish("d40", "T" * 5000)
    await it.publish("d41", "Crowd", readers=[f"u{n}" for n in range(1001)])
    await reindex(replace(it.tools, cut=fragile), "new", None, 1.0)

    said = capsys.readouterr()
    assert "has 22 passages of 11 documents" in said.out
    assert "3 documents could not be brought in" in said.err


async def test_a_question_that_a_model_refuses_is_asked_of_neither(
    it: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    it.embedders.of("old").refuses = "Owls"
    await reindex(it.tools, "new", None, 0.02)

    assert (await it.serving()).model == "new"


async def test_a_file_of_questions_is_what_is_measured(
    it: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        '{"query": "who lives with foxes", "document_ids": ["d4"]}\n'
        '{"query": "owls", "document_ids": ["d9"], "tenant": "acme"}\n'
        '{"query": "gone", "document_ids": ["nowhere"]}\n'
    )

    await reindex(it.tools, "new", questions, 0.02)

    said = capsys.readouterr()
    assert "Recall@3 of 2 questions" in said.out
    assert "1 questions are about documents that are not there" in said.err
    assert (await it.serving()).model == "new"


async def test_a_wrong_line_among_the_questions_stops_it_before_anything_is_done(it: Setup, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"query": "owls", "document_ids": ["d9"]}\n{"query": "owls"}\n')

    with pytest.raises(Refused, match=r"line 2: .*document_ids"):
        await reindex(it.tools, "new", questions, 0.02)

    assert len(await it.tools.index.indices()) == 1
