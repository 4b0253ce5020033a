"""A document is found once it is learned, as it is now, by who may read it; whatever fails meanwhile fails alone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from adapters import passage_index
from adapters.document_status import DocumentStatuses
from adapters.elastic import Elastic
from adapters.embedder import Embedders
from adapters.kafka_admin import ensure_topics
from adapters.log_reader import LogReader, open_log_reader
from adapters.parsers import open_parsers
from adapters.passage_index import PassageIndex
from adapters.retriever import Retriever
from config.settings import Settings
from domain.errors import SinkUnavailable
from domain.files import DOCX
from domain.knowledge import DocumentStatus, Passage, Reader
from streams import learning
from streams.learn_command import Owner, _learn
from streams.learning import Learner
from streams.records import Document, DocumentOutcome, document_key, encode
from streams.topics import Topics, partition_of
from tests.conftest import Names
from tests.support.document_files import docx, pdf
from tests.support.embedding import WordEmbedder
from tests.support.kafka import produce_all
from tests.support.search import FailingSearch
from tests.support.services import Services

ANN = Reader("acme", "ann")
BOB = Reader("acme", "bob")
EVE = Reader("evil", "eve")
PARTITIONS = 2


class Model(WordEmbedder):
    """An embedding model. ``learned``: the passages that it was given; ``held``: while clear, none comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.learned: list[str] = []
        self.asked_for = asyncio.Event()
        self.held: dict[str, asyncio.Event] = {}

    def of(self, _model: str) -> "Model":
        return self

    async def loaded(self) -> None:
        await asyncio.sleep(0)

    async def documents(self, texts: Sequence[str]) -> list[list[float]]:
        self.asked_for.set()
        for word, held in self.held.items():
            if any(word in text for text in texts):
                await held.wait()
        self.learned += texts
        return await super().documents(texts)


class Knowledge:
    """A worker's learning on real services, and what somebody sees of it."""

    def __init__(self, services: Services, settings: Settings, reader: LogReader, url: str) -> None:
        self.settings = settings
        self.bootstrap = services.bootstrap
        self.topic = Topics.of(settings).documents.name
        self.elastic = Elastic(url)
        self.index = PassageIndex(self.elastic, settings.index_prefix)
        self.statuses = DocumentStatuses(self.elastic, settings.index_prefix)
        self.model = Model()
        self.owned = set(range(PARTITIONS))
        self.looks = 0
        self.set_aside: list[Any] = []
        self._reader = reader
        self._at = 1_790_000_000_000

    @asynccontextmanager
    async def learning(self) -> AsyncIterator[None]:
        """Have a worker learn."""

        async def set_aside(**letter: Any) -> None:
            self.set_aside.append(letter)

        async def tell(outcome: DocumentOutcome) -> None:
            assert outcome.status in {"learned", "failed", "forgotten"}

        async with open_parsers(self.settings.document_bytes) as parsers:
            learner = Learner(
                self._reader,
                self.topic,
                index=self.index,
                statuses=self.statuses,
                embedders=cast("Embedders", self.model),
                parsers=parsers,
                model="words",
                owned=self._owned,
                set_aside=set_aside,
                tell=tell,
            )
            running = asyncio.create_task(learner.run())
            try:
                yield
            finally:
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running

    def _owned(self) -> set[int]:
        self.looks += 1
        return self.owned

    async def give(self, document_id: str, text: str = "", *, tenant: str = "acme", **fields: Any) -> int:
        """Write a document to Kafka as any producer might; return its time."""
        self._at += 1000
        document = Document(document_id=document_id, tenant=tenant, user="ann", text=text, at=self._at, **fields)
        await self.write(document_key(tenant, document_id), encode(document))
        return self._at

    async def write(self, key: str, value: bytes | None) -> None:
        records = [(key.encode(), cast("bytes", value))]
        await asyncio.to_thread(produce_all, self.bootstrap, self.topic, records)

    async def status(self, document_id: str, *, tenant: str = "acme") -> DocumentStatus | None:
        while True:
            try:
                return await self.statuses.read(tenant, document_id)
            except SinkUnavailable:  # the index is being made
                await asyncio.sleep(0.05)

    async def until(self, document_id: str, status: str, passages: int | None = None) -> None:
        """Return once a document has this status, and so many passages."""
        async with asyncio.timeout(20):
            while True:
                known = await self.status(document_id)
                if known is not None and known.status == status and passages in {None, known.passages}:
                    return
                await asyncio.sleep(0.05)

    async def found(self, reader: Reader, words: str) -> set[str]:
        """Return the texts that a search finds now, without waiting for a refresh."""
        return {each.text for each in await self.passages(reader, words)}

    async def passages(self, reader: Reader, words: str) -> list[Passage]:
        """Return the passages that a search finds now."""
        retriever = Retriever(cast("Embedders", self.model), self.index, self.settings)
        found = await retriever.search(reader, [{"role": "user", "content": words}], k=50)
        return [each.passage for each in found]


@pytest.fixture
async def search(services: Services) -> AsyncIterator[FailingSearch]:
    failing = FailingSearch(services.elasticsearch_url)
    async with failing.serving():
        yield failing


@pytest.fixture
async def known(
    services: Services, names: Names, index_prefix: str, search: FailingSearch, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Knowledge]:
    monkeypatch.setattr(learning, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(learning, "LONGEST_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(passage_index, "INDICES_SECONDS", 0.0)
    settings = Settings.model_validate(
        {
            "KAFKA_BOOTSTRAP_SERVERS": services.bootstrap,
            "ELASTICSEARCH_URL": services.elasticsearch_url,
            "topic_prefix": names.topic_prefix,
            "index_prefix": index_prefix,
            "partitions": PARTITIONS,
            "auth": "dev",
        }
    )
    await ensure_topics(services.bootstrap, [Topics.of(settings).documents])
    async with open_log_reader(services.bootstrap) as reader:
        found = Knowledge(services, settings, reader, search.url)
        yield found
        await found.elastic.close()


# -- from Kafka into the index


async def test_a_document_is_found_by_who_may_read_it_once_it_is_learned(known: Knowledge) -> None:
    async with known.learning():
        await known.give("ours", "# Leave\nThirty days of leave.")
        await known.give("anns", "Ann takes leave in May.", readers=["ann"])
        await known.give("ours", "Evil gives no leave.", tenant="evil")
        await known.until("ours", "learned", 1)
        await known.until("anns", "learned", 1)
        assert await known.found(ANN, "leave") == {"Thirty days of leave.", "Ann takes leave in May."}
        assert await known.found(BOB, "leave") == {"Thirty days of leave."}

        status = await known.status("ours")
        assert status is not None
        assert (status.title, status.user, status.error) == ("Leave", "ann", "")


async def test_files_are_learned_and_a_bad_one_fails_alone_and_keeps_what_it_had(known: Knowledge) -> None:
    async with known.learning():
        await known.give("pdf", file=pdf("The wombat is called Gustav."), media_type="application/pdf")
        await known.give("docx", file=docx("The heron is called Ada.", heading="Names"), media_type=DOCX)
        await known.give("html", file=b"<h1>Names</h1><p>The newt is called Max.", media_type="text/html")
        for document_id in ("pdf", "docx", "html"):
            await known.until(document_id, "learned", 1)
        await known.give("pdf", file=b"%PDF-1.7 torn", media_type="application/pdf")
        await known.give("later", "The otter is called Eva.")
        await known.until("pdf", "failed")
        await known.until("later", "learned", 1)

        status = await known.status("pdf")
        assert status is not None
        assert "damaged" in status.error
        assert await known.found(BOB, "called") == {
            "The wombat is called Gustav.",
            "The heron is called Ada.",
            "The newt is called Max.",
            "The otter is called Eva.",
        }


async def test_the_same_document_again_costs_what_changed_and_no_more(known: Knowledge) -> None:
    async with known.learning():
        await known.give("d", "# One\nThe first.\n# Two\nThe second.", title="Book")
        await known.until("d", "learned", 2)
        known.model.learned.clear()

        await known.give(
            "d", "# One\nThe first.\n# Two\nThe changed one.\n# Three\nThe third.", title="Book", url="https://x.y"
        )
        await known.until("d", "learned", 3)

        assert sorted(known.model.learned) == ["Book\nThree\nThe third.", "Book\nTwo\nThe changed one."]
        assert await known.found(ANN, "first second changed third") == {"The first.", "The changed one.", "The third."}
        assert {each.url for each in await known.passages(ANN, "first")} == {"https://x.y"}


async def test_whom_a_document_is_taken_from_finds_no_passage_of_it_any_more(known: Knowledge) -> None:
    async with known.learning():
        await known.give("d", "# Pay\nAnn earns much.\n# Leave\nThirty days.")
        await known.until("d", "learned", 2)
        known.model.held["nobody"] = asyncio.Event()

        await known.give("d", "# Pay\nAnn earns much, nobody knows.\n# Leave\nThirty days.", readers=["ann"])
        async with asyncio.timeout(20):
            while await known.found(BOB, "earns days"):
                await known.index.refresh()

        known.model.held["nobody"].set()
        async with asyncio.timeout(20):
            while await known.found(ANN, "earns days") != {"Ann earns much, nobody knows.", "Thirty days."}:
                await asyncio.sleep(0.02)
        assert not await known.found(BOB, "earns days")


async def test_a_document_that_cannot_be_learned_for_fewer_readers_is_not_left_to_the_others(known: Knowledge) -> None:
    async with known.learning():
        await known.give("plan", "Ann earns much.")
        await known.until("plan", "learned")
        await known.give("plan", file=b"%PDF-1.4 broken", media_type="application/pdf", readers=["ann"])
        await known.until("plan", "failed")

        assert await known.found(BOB, "earns") == set()
        assert await known.found(ANN, "earns") == set()


async def test_a_document_that_is_forgotten_leaves_nothing(known: Knowledge) -> None:
    async with known.learning():
        await known.give("d", "Thirty days.")
        await known.give("e", "Forty days.")
        await known.until("d", "learned", 1)
        await known.until("e", "learned", 1)

        await known.write(document_key("acme", "d"), None)
        async with asyncio.timeout(20):
            while await known.status("d") is not None:
                await asyncio.sleep(0.02)

        assert await known.found(ANN, "days") == {"Forty days."}
        await known.give("d", "Fifty days.")
        await known.until("d", "learned", 1)


async def test_a_worker_that_comes_later_goes_on_where_the_last_one_was(known: Knowledge) -> None:
    async with known.learning():
        await known.give("d", "Thirty days.")
        await known.until("d", "learned", 1)
    known.model.learned.clear()

    async with known.learning():
        await known.give("e", "Forty days.")
        await known.until("e", "learned", 1)

    assert known.model.learned == ["e\nForty days."]


async def test_a_large_document_holds_up_no_other_partition(known: Knowledge) -> None:
    ids = [f"d{number}" for number in range(20)]
    one = next(each for each in ids if partition_of(document_key("acme", each), PARTITIONS) == 0)
    other = next(each for each in ids if partition_of(document_key("acme", each), PARTITIONS) == 1)
    known.model.held["large"] = asyncio.Event()
    async with known.learning():
        await known.give(one, "A large document.")
        await known.model.asked_for.wait()

        await known.give(other, "A small one.")
        await known.until(other, "learned", 1)

        assert (await known.status(one)) is None
        known.model.held["large"].set()
        await known.until(one, "learned", 1)


# -- what fails


async def test_without_elasticsearch_documents_wait_and_then_are_learned(
    known: Knowledge, search: FailingSearch
) -> None:
    search.down = True
    async with known.learning():
        await known.give("d", "Thirty days.")
        assert not known.model.learned
        search.down = False
        await known.until("d", "learned", 1)

    assert not known.set_aside


async def test_a_document_is_not_learned_before_all_of_it_is_there(known: Knowledge, search: FailingSearch) -> None:
    refused: set[str] = set()
    went_on = asyncio.Event()

    def refuse(passage_id: str) -> tuple[int, dict[str, Any]] | None:
        if went_on.is_set() or (refused and passage_id not in refused):
            return None
        refused.add(passage_id)
        return 429, {"type": "es_rejected_execution_exception", "reason": "busy"}

    search.refuse = refuse
    async with known.learning():
        await known.give("d", "# One\nThe first.\n# Two\nThe second.")
        async with asyncio.timeout(20):
            while len(search.bulks) < 3:  # it is tried again
                await asyncio.sleep(0.02)
        assert await known.status("d") is None

        went_on.set()
        await known.until("d", "learned", 2)

    assert len(refused) == 1


async def test_a_passage_that_is_never_taken_fails_its_document_alone(known: Knowledge, search: FailingSearch) -> None:
    first: list[str] = []

    def refuse(passage_id: str) -> tuple[int, dict[str, Any]] | None:
        first.append(passage_id)
        is_first = passage_id == first[0]
        return (400, {"type": "document_parsing_exception", "reason": "immense term"}) if is_first else None

    search.refuse = refuse
    async with known.learning():
        await known.give("d", "Thirty days.")
        await known.until("d", "failed")
        await known.give("e", "Forty days.")
        await known.until("e", "learned", 1)


async def test_what_is_no_document_is_set_aside_and_the_next_is_learned(known: Knowledge) -> None:
    async with known.learning():
        await known.write("acme/torn", b"{")
        await known.write("evil/d", encode(Document(document_id="d", tenant="acme", user="eve", text="x")))
        await known.write("acme/e", encode(Document(document_id="e", tenant="acme", user="", text="x")))
        await known.write(
            "acme/deep", b'{"document_id":"deep","tenant":"acme","user":"a","metadata":' + b'{"a":' * 5000
        )
        await known.give("d", "Thirty days.")
        await known.until("d", "learned", 1)
        async with asyncio.timeout(20):
            while len({letter["key"] for letter in known.set_aside}) < 4:
                await asyncio.sleep(0.02)

    assert {letter["key"]: letter["error"].code for letter in known.set_aside} == {
        b"acme/torn": "bad_record", b"evil/d": "rejected", b"acme/e": "rejected", b"acme/deep": "bad_record",
    }  # fmt: skip


async def test_who_has_lost_a_partition_writes_no_more(known: Knowledge, search: FailingSearch) -> None:
    known.model.held["old"] = asyncio.Event()
    async with known.learning():
        await known.give("d", "The old text.")
        await known.model.asked_for.wait()
        known.owned = set()
        known.model.held["old"].set()
        async with asyncio.timeout(20):
            while not known.model.learned:
                await asyncio.sleep(0.01)
            known.looks = 0
            while known.looks < 10:
                await asyncio.sleep(0.01)
    assert search.bulks == []

    known.owned = set(range(PARTITIONS))
    async with known.learning():
        await known.until("d", "learned", 1)


# -- the command


async def test_a_folder_is_loaded_and_loaded_again(
    known: Knowledge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "handbook"
    (folder / "leave").mkdir(parents=True)
    (folder / "leave" / "days.md").write_text("# Leave\nThirty days.")
    (folder / "names.pdf").write_bytes(pdf("The wombat is called Gustav."))
    (folder / "torn.docx").write_bytes(b"PK\x03\x04 torn")
    (folder / "tool.txt").write_bytes(b"MZ\x00")
    owner = Owner("acme", "ann")

    async def load(*, again: bool = False) -> None:
        await _learn(known.settings, owner, paths=[folder], readers=(), again=again)

    async with known.learning():
        await load()
        said = capsys.readouterr().out
        assert "2 documents learned, 2 passages" in said
        assert "2 failed:\n  handbook/tool.txt: The file is not of the kind" in said
        assert "handbook/torn.docx: The Word document is damaged" in said
        assert await known.found(BOB, "days wombat") == {"Thirty days.", "The wombat is called Gustav."}

        (folder / "leave" / "days.md").write_text("# Leave\nForty days.")
        (folder / "torn.docx").unlink()
        (folder / "tool.txt").unlink()
        known.model.learned.clear()
        await load()
        assert "1 documents learned, 1 passages" in (said := capsys.readouterr().out)
        assert "1 unchanged." in said
        await load(again=True)
        assert "2 documents learned" in capsys.readouterr().out
        assert known.model.learned == ["Leave\nLeave\nForty days."]
        assert await known.found(BOB, "days") == {"Forty days.", "The wombat is called Gustav."}
