"""What is noted as learned is learned: each document as its last record has it, and none holds up the others."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from adapters.document_status import DocumentStatuses
from adapters.embedder import Embedders
from adapters.parsers import Parsers, Unreadable
from adapters.parsing_process import Parsed
from adapters.passage_index import Index, Learned, PassageIndex
from domain.errors import BadRecord, EmbedderUnavailable, LogUnavailable, NotOwner, Overtaken, Rejected, SinkUnavailable
from domain.knowledge import DocumentStatus
from streams import learning
from streams.learning import Learner
from streams.records import Document, DocumentOutcome, document_key, encode
from tests.support.model_client import until
from web.shapes import rfc3339

SERVING = Index("passages-1", "words", 2, "serving")
FILLING = Index("passages-2", "other", 3, "filling")


@dataclass
class Kept:
    """A record in the fake log."""

    offset: int
    key: bytes
    value: bytes
    at_ms: int


class FakeReader:
    """A log of two partitions. ``gone``: offsets that compaction has taken."""

    def __init__(self) -> None:
        self.logs: dict[int, list[Kept]] = {0: [], 1: []}
        self.failures = 0

    def add(self, key: str, value: bytes, *, partition: int = 0) -> None:
        kept = self.logs[partition]
        offset = kept[-1].offset + 2 if kept else 0  # compaction leaves gaps
        kept.append(Kept(offset, key.encode(), value, 1000 + offset))

    async def topic_id(self, topic: str) -> str:
        return f"id of {topic}"

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        if self.failures:
            self.failures -= 1
            raise LogUnavailable("no broker")
        return {each: self.logs[each][-1].offset + 1 if self.logs[each] else 0 for each in partitions}

    async def batch(
        self, topic: str, partition: int, start: int, stop: int, *, most: int, most_bytes: int
    ) -> Sequence[Kept]:
        return [each for each in self.logs[partition] if start <= each.offset < stop][:most]


class FakeIndex:
    """Passages in memory, by index and document. ``refuse`` is shown every write."""

    def __init__(self) -> None:
        self.indices = [SERVING]
        self.there: dict[tuple[str, str, str], dict[str, Learned]] = {}
        self.dims: dict[str, int] = {}
        self.refuse: Callable[[str], None] = lambda _: None
        self.before_write: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)

    async def prepare(self, model: str, dims: int) -> tuple[Index, ...]:
        return tuple(self.indices)

    async def refresh(self) -> None:
        await asyncio.sleep(0)

    async def ids(self, index: str, documents: Iterable[tuple[str, str]]) -> dict[tuple[str, str], set[str]]:
        return {each: set(self.there.get((index, *each), {})) for each in documents}

    async def write(
        self,
        index: str,
        new: Mapping[str, tuple[Learned, Sequence[float]]],
        kept: Mapping[str, Learned],
        gone: Iterable[str],
        *,
        seen: bool = True,
    ) -> None:
        await self.before_write()
        for key, learned in [*((key, each) for key, (each, _) in new.items()), *kept.items()]:
            self.refuse(learned.passage.text)
            self.there.setdefault((index, learned.tenant, learned.passage.document_id), {})[key] = learned
        for _, vector in new.values():
            self.dims[index] = len(vector)
        for passages in (each for place, each in self.there.items() if place[0] == index):
            for key in gone:
                passages.pop(key, None)

    async def forget(self, tenant: str, document_id: str) -> None:
        for each in self.indices:
            self.there.pop((each.name, tenant, document_id), None)


class FakeStatuses:
    """Statuses and progress in memory."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], DocumentStatus] = {}
        self.next: dict[tuple[str, int], int] = {}
        self.error: SinkUnavailable | None = None

    async def progress(self, log: str, partition: int) -> int:
        return self.next.get((log, partition), 0)

    async def advance(self, log: str, partition: int, before: int, offset: int) -> None:
        if self.next.get((log, partition), 0) != before:
            raise Overtaken("somebody else was first")
        self.next[log, partition] = offset

    async def many(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], DocumentStatus]:
        return {key: self.known[key] for key in keys if key in self.known}

    async def write(self, *each: tuple[DocumentStatus, int, bool], shown: bool = True) -> None:
        if self.error is not None:
            raise self.error
        for status, at_ms, is_done in each:
            assert is_done
            assert at_ms >= 0  # else Elasticsearch takes it for no version
            assert rfc3339(status.updated_at)
            self.known[status.tenant, status.document_id] = status

    async def remove(self, tenant: str, document_id: str, at_ms: int) -> None:
        self.known.pop((tenant, document_id), None)


class FakeEmbedder:
    """Vectors of nothing. ``embedded``: what was asked for."""

    def __init__(self, dims: int) -> None:
        self.dims = dims
        self.embedded: list[str] = []
        self.fails = 0
        self.meanwhile: Callable[[], None] = lambda: None
        self.paused: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)

    async def loaded(self) -> None:
        await asyncio.sleep(0)

    async def documents(self, texts: Sequence[str]) -> list[list[float]]:
        self.meanwhile()
        await self.paused()
        if self.fails:
            self.fails -= 1
            raise EmbedderUnavailable("its process died")
        self.embedded += texts
        return [[1.0] * self.dims for _ in texts]


class FakeParsers:
    """Files that say themselves, unless they are bad."""

    async def parse(self, data: bytes, media_type: str) -> Parsed:
        if data == b"bad":
            raise Unreadable("The PDF is damaged. Save it anew.")
        if data == b"bug":
            raise KeyError("a fault of ours")
        return Parsed(data.decode(), "What the file\ncalls itself" if data == b"text" else data.decode())


@dataclass
class Setup:
    """A learner, and everything around it."""

    reader: FakeReader = field(default_factory=FakeReader)
    index: FakeIndex = field(default_factory=FakeIndex)
    statuses: FakeStatuses = field(default_factory=FakeStatuses)
    embedders: dict[str, FakeEmbedder] = field(default_factory=lambda: {"words": FakeEmbedder(2)})
    owned: set[int] = field(default_factory=lambda: {0})
    letters: list[tuple[int, int, str]] = field(default_factory=list)
    told: list[DocumentOutcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.learner = Learner(
            self.reader,
            "documents",
            index=cast("PassageIndex", self.index),
            statuses=cast("DocumentStatuses", self.statuses),
            embedders=cast("Embedders", self),
            parsers=cast("Parsers", FakeParsers()),
            model="words",
            owned=lambda: self.owned,
            set_aside=self.set_aside,
            tell=self.tell,
        )

    async def learn(self) -> None:
        """Learn what there is, as far as that goes."""
        await self.learner.look()
        await until(lambda: not self.learner._working)

    def of(self, model: str) -> FakeEmbedder:
        return self.embedders[model]

    @property
    def embedder(self) -> FakeEmbedder:
        return self.embedders["words"]

    async def tell(self, outcome: DocumentOutcome) -> None:
        self.told.append(outcome)

    async def set_aside(
        self, *, topic: str, partition: int, offset: int, error: Exception, key: bytes, value: bytes
    ) -> None:
        assert isinstance(error, Rejected)
        self.letters.append((partition, offset, error.code))

    def give(self, document_id: str, text: str = "", *, partition: int = 0, tenant: str = "acme", **more: Any) -> None:
        document = Document(document_id=document_id, tenant=tenant, user="ann", text=text, **more)
        self.reader.add(document_key(tenant, document_id), encode(document), partition=partition)

    def forget(self, document_id: str) -> None:
        self.reader.add(document_key("acme", document_id), b"")

    def next(self, partition: int = 0) -> int:
        return self.statuses.next.get(("documents@id of documents", partition), 0)

    def status(self, document_id: str) -> tuple[str, str, int]:
        found = self.statuses.known["acme", document_id]
        return found.status, found.error, found.passages

    def texts(self, document_id: str, *, index: str = SERVING.name, tenant: str = "acme") -> list[str]:
        found = self.index.there.get((index, tenant, document_id), {}).values()
        return [each.passage.text for each in sorted(found, key=lambda each: each.passage.position)]


@pytest.fixture
def it(monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr(learning, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(learning, "LONGEST_PAUSE_SECONDS", 0.001)
    return Setup()


async def test_a_document_is_cut_embedded_and_noted(it: Setup) -> None:
    it.give("guide", "# Broker\nIt listens.\n# Worker\nIt asks.", readers=["bob"], url="https://example.invalid", at=7)

    await it.learn()
    assert it.texts("guide") == ["It listens.", "It asks."]
    (one, _) = it.index.there[SERVING.name, "acme", "guide"].values()
    assert (one.readers, one.version, one.passage.path) == (("ann", "bob"), 7, "Broker")
    assert (one.passage.title, one.passage.url) == ("Broker", "https://example.invalid")
    assert it.embedder.embedded[0] == "Broker\nBroker\nIt listens."
    assert it.status("guide") == ("learned", "", 2)
    assert it.next() == 1


async def test_a_file_says_its_title_unless_it_was_given_one(it: Setup) -> None:
    it.give("one", file=b"text", media_type="application/pdf")
    it.give("two", file=b"text", media_type="application/pdf", title="Given")
    it.give("three", text="text", name="three.md")
    await it.learn()

    titles = [it.statuses.known["acme", name].title for name in ("one", "two", "three")]
    assert titles == ["What the file calls itself", "Given", "three.md"]


async def test_what_stays_of_a_document_is_not_embedded_again(it: Setup) -> None:
    it.give("guide", "# A\nfirst\n# B\nsecond", title="Guide")
    await it.learn()
    it.embedder.embedded.clear()
    it.give("guide", "# B\nsecond\n# C\nthird", title="Guide", readers=["bob"])
    await it.learn()

    assert it.texts("guide") == ["second", "third"]
    assert it.embedder.embedded == ["Guide\nC\nthird"]
    passages = it.index.there[SERVING.name, "acme", "guide"].values()
    assert {each.readers for each in passages} == {("ann", "bob")}
    it.give("guide", "# B\nsecond\n# C\nthird", title="Guide", readers=["bob"])
    await it.learn()
    assert it.embedder.embedded == ["Guide\nC\nthird"]


async def test_the_last_record_of_a_document_counts(it: Setup) -> None:
    it.give("guide", "old")
    it.give("other", "other")
    it.give("guide", "new")
    it.forget("other")
    it.forget("third")
    it.give("third", "there again")
    await it.learn()

    assert (it.texts("guide"), it.texts("other"), it.texts("third")) == (["new"], [], ["there again"])
    assert sorted(it.statuses.known) == [("acme", "guide"), ("acme", "third")]
    assert len(it.embedder.embedded) == 2
    assert it.next() == 11


async def test_a_record_without_a_value_forgets(it: Setup) -> None:
    it.give("guide", "text")
    it.give("guide", "of another tenant", tenant="evil")
    await it.learn()
    it.forget("guide")
    await it.learn()

    assert it.texts("guide") == []
    assert it.texts("guide", tenant="evil") == ["of another tenant"]
    assert list(it.statuses.known) == [("evil", "guide")]


async def test_what_became_of_each_document_is_told_before_the_progress_passes_it(it: Setup) -> None:
    it.give("manual", "text", url="https://example.invalid", metadata={"team": "data"})
    it.give("photo", file=b"bad", media_type="application/pdf")
    await it.learn()
    it.forget("manual")
    await it.learn()

    forgotten, learned, failed = sorted(it.told, key=lambda each: (each.document_id, each.status))
    assert (learned.document_id, learned.status, learned.passages, learned.user) == ("manual", "learned", 1, "ann")
    assert (learned.url, learned.metadata) == ("https://example.invalid", {"team": "data"})
    assert (failed.document_id, failed.status, failed.error) == (
        "photo", "failed", "The PDF is damaged. Save it anew.",
    )  # fmt: skip
    assert (forgotten.document_id, forgotten.status, forgotten.user) == ("manual", "forgotten", "")
    assert forgotten.revision >= learned.revision

    def kafka_is_away(outcome: DocumentOutcome) -> None:
        raise LogUnavailable("Kafka is away")

    it.give("other", "text")
    before, it.told = it.next(), cast("list[DocumentOutcome]", SimpleNamespace(append=kafka_is_away))
    await it.learner.look()
    await until(lambda: bool(it.learner._failures))
    assert it.next() == before


async def test_a_bad_record_is_set_aside_and_the_others_are_learned(it: Setup) -> None:
    it.reader.add("acme/odd", b"no record")
    it.reader.add("evil/guide", encode(Document(document_id="guide", tenant="acme", user="eve", text="stolen")))
    it.reader.add("acme/", encode(Document(document_id="", tenant="acme", user="ann", text="nameless")))
    it.reader.add("acme/long", encode(Document(document_id="long", tenant="acme", user="ann" * 999, text="long")))
    it.give("guide", "text")
    await it.learn()

    assert [(partition, offset) for partition, offset, _ in it.letters] == [(0, 0), (0, 2), (0, 4), (0, 6)]
    assert it.letters[0][2] == BadRecord.code
    assert it.texts("guide") == ["text"]
    assert list(it.statuses.known) == [("acme", "guide")]
    assert it.next() == 9


async def test_a_record_without_a_time_or_with_an_odd_one_is_learned(it: Setup) -> None:
    it.give("one", "one")
    it.give("two", "two")
    it.reader.logs[0][0].at_ms, it.reader.logs[0][1].at_ms = -1, (1 << 63) - 1
    await it.learn()

    assert it.status("one")[0] == it.status("two")[0] == "learned"


async def test_a_bad_record_is_set_aside_once_however_often_its_neighbours_are_tried(it: Setup) -> None:
    it.reader.add("acme/odd", b"no record")
    it.give("guide", "text")
    it.statuses.error = SinkUnavailable("down")
    for _ in range(3):
        await it.learn()
        assert it.next() == 0
    it.statuses.error = None
    await it.learn()

    assert len(it.letters) == 1


@pytest.mark.parametrize(
    ("file", "said"), [(b"bad", "The PDF is damaged. Save it anew."), (b"bug", "a fault of Headrace's own"), (b" ", "")]
)
async def test_a_bad_file_fails_alone_and_what_was_known_of_it_stays(it: Setup, file: bytes, said: str) -> None:
    it.give("guide", "old text")
    await it.learn()
    it.give("guide", file=file, media_type="application/pdf")
    it.give("other", "other")
    await it.learn()

    status, error, passages = it.status("guide")
    assert (status, passages) == ("failed", 0)
    assert said in error
    assert error
    assert it.texts("guide") == ["old text"]
    assert it.status("other") == ("learned", "", 1)
    assert not it.letters


async def test_a_document_that_elasticsearch_will_never_take_fails_alone(it: Setup) -> None:
    def refuse(text: str) -> None:
        if text == "odd":
            raise Rejected("Elasticsearch refuses 1 of 1 passages")

    it.index.refuse = refuse
    it.give("odd", "odd")
    it.give("other", "other")
    await it.learn()

    assert it.status("odd") == ("failed", "Elasticsearch refuses 1 of 1 passages", 0)
    assert it.status("other")[0] == "learned"


async def test_documents_of_a_batch_are_written_together(it: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []

    async def count() -> None:
        writes.append(len(it.embedder.embedded))

    it.index.before_write = count
    it.give("guide", "# A\nfirst\n# B\nsecond")
    it.give("note", "note", readers=["bob"])
    it.give("guide", "of another tenant", tenant="evil")
    await it.learn()
    assert writes == [4]
    assert (it.texts("guide"), it.texts("note")) == (["first", "second"], ["note"])
    assert it.texts("guide", tenant="evil") == ["of another tenant"]

    monkeypatch.setattr(learning, "PASSAGES_AT_ONCE", 2)
    writes.clear()
    it.embedder.embedded.clear()
    for name in ("one", "two", "three"):
        it.give(name, name)
    await it.learn()
    assert writes == [2, 3]


async def test_whom_a_document_was_taken_from_does_not_find_it_while_its_batch_is_embedded(it: Setup) -> None:
    it.give("private", "old", readers=["bob"])
    it.give("public", "old")
    await it.learn()
    seen: list[tuple[list[str], list[str]]] = []
    it.embedder.meanwhile = lambda: seen.append((it.texts("private"), it.texts("public")))
    it.give("public", "new")
    it.give("private", "new", readers=["ann"])
    await it.learn()

    assert seen == [([], ["old"])]
    assert (it.texts("private"), it.texts("public")) == (["new"], ["new"])


async def test_nothing_is_noted_before_it_is_learned_and_what_failed_is_learned_again(it: Setup) -> None:
    def refuse(text: str) -> None:
        if text == "two":
            raise SinkUnavailable("busy")

    it.index.refuse = refuse
    for text in ("one", "two", "three"):
        it.give(text, text)
    await it.learn()
    assert (it.next(), it.statuses.known) == (0, {})

    it.index.refuse = lambda _: None
    it.statuses.error = SinkUnavailable("down")
    await it.learn()
    assert it.next() == 0

    it.statuses.error = None
    await it.learn()
    assert (it.next(), len(it.statuses.known)) == (5, 3)
    assert it.embedder.embedded.count("one\none") == 1  # the one that was written before


async def test_whoever_comes_after_goes_on_where_learning_got(it: Setup) -> None:
    it.give("one", "one")
    await it.learn()
    it.embedder.embedded.clear()
    it.give("two", "two")
    successor = Setup(it.reader, it.index, it.statuses, it.embedders)
    await successor.learn()

    assert it.embedder.embedded == ["two\ntwo"]


async def test_partitions_of_others_are_left_alone(it: Setup) -> None:
    it.give("mine", "mine", partition=0)
    it.give("theirs", "theirs", partition=1)
    await it.learn()
    assert (it.texts("mine"), it.texts("theirs")) == (["mine"], [])

    it.owned = {1}
    await it.learn()
    assert it.texts("theirs") == ["theirs"]
    # What somebody else has learned of it meanwhile counts when it comes back.
    it.give("mine", "newer")
    await it.statuses.advance("documents@id of documents", 0, 1, 3)
    it.owned = {0, 1}
    await it.learn()
    assert it.texts("mine") == ["mine"]


async def test_a_partition_that_is_lost_in_the_middle_is_not_written_to_any_more(it: Setup) -> None:
    it.give("guide", "text")
    it.embedder.meanwhile = it.owned.clear
    await it.learn()

    assert (it.texts("guide"), it.statuses.known, it.next()) == ([], {}, 0)


def once(do: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Return what does something the first time that it is called."""
    left = [do]

    async def first() -> None:
        while left:
            await left.pop()()

    return first


async def test_a_worker_that_was_paused_brings_nothing_back_that_was_deleted_meanwhile(it: Setup) -> None:
    async def deleted() -> None:
        it.forget("guide")
        await Setup(it.reader, it.index, it.statuses).learn()  # our successor: we still believe that we own it

    it.give("guide", "text")
    it.embedder.paused = once(deleted)
    await it.learn()

    assert (it.texts("guide"), it.statuses.known, it.next()) == ([], {}, 3)


@pytest.mark.parametrize("at_write", [1, 2])
async def test_what_a_worker_wrote_that_was_paused_just_before_is_mended(
    it: Setup, at_write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "PASSAGES_AT_ONCE", 1)  # so that each document is written by itself

    async def changed() -> None:
        it.index.before_write = lambda: asyncio.sleep(0)
        it.give("guide", "# A\nstays\n# B\nnew", title="Guide", readers=["bob"])
        it.give("other", "other")
        it.forget("gone")
        await Setup(it.reader, it.index, it.statuses).learn()

    it.give("guide", "# A\nstays\n# B\nold", title="Guide")
    it.give("gone", "gone")
    it.index.before_write = once(changed) if at_write == 1 else skip_one(once(changed))
    await it.learn()

    assert (it.texts("guide"), it.texts("gone"), it.texts("other")) == (["stays", "new"], [], ["other"])
    passages = it.index.there[SERVING.name, "acme", "guide"].values()
    assert {each.readers for each in passages} == {("ann", "bob")}
    assert sorted(it.statuses.known) == [("acme", "guide"), ("acme", "other")]
    assert it.next() == 9


def skip_one(do: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Return what does something from the second time on that it is called."""
    called = 0

    async def from_second() -> None:
        nonlocal called
        called += 1
        if called > 1:
            await do()

    return from_second


async def test_what_was_written_late_is_mended_however_often_that_fails(it: Setup) -> None:
    async def deleted() -> None:
        it.index.before_write = lambda: asyncio.sleep(0)
        it.forget("guide")
        await Setup(it.reader, it.index, it.statuses).learn()
        it.reader.failures = 3

    it.give("guide", "text")
    it.index.before_write = once(deleted)
    await it.learn()

    assert (it.reader.failures, it.texts("guide"), it.statuses.known) == (0, [], {})


async def test_what_the_embedding_process_dies_of_is_tried_with_the_next_one(it: Setup) -> None:
    it.give("guide", "text")
    it.embedder.fails = 2
    await it.learn()

    assert it.status("guide")[0] == "learned"


async def test_every_index_is_written_with_the_vectors_of_its_own_model(it: Setup) -> None:
    it.index.indices = [SERVING, FILLING]
    it.embedders["other"] = FakeEmbedder(3)
    it.give("guide", "text")
    await it.learn()

    assert it.texts("guide") == it.texts("guide", index=FILLING.name) == ["text"]
    assert it.index.dims == {SERVING.name: 2, FILLING.name: 3}


async def test_what_takes_long_of_a_document_is_done_beside_the_loop(
    it: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, bool]] = []

    def watch(name: str) -> None:
        original = getattr(learning, name)

        def watched(*given: Any) -> Any:
            done.append((name, threading.current_thread() is threading.main_thread()))
            return original(*given)

        monkeypatch.setattr(learning, name, watched)

    for name in ("decode", "split", "keyed"):
        watch(name)
    it.give("guide", "text")
    await it.learn()

    assert it.texts("guide") == ["text"]
    assert done == [("decode", False), ("split", False), ("keyed", False)]


async def test_more_records_than_one_batch_are_learned_in_their_order(it: Setup) -> None:
    for number in range(learning.AT_ONCE + 5):
        it.give(f"d{number % 7}", f"text {number}")
    await it.learn()

    last = learning.AT_ONCE + 4
    assert it.texts(f"d{last % 7}") == [f"text {last}"]
    assert it.next() == 2 * last + 1


async def test_learning_goes_on_after_whatever_happens(it: Setup) -> None:
    errors: list[Exception] = [SinkUnavailable("down"), KeyError("a fault of ours"), NotOwner("rebalance")]

    def refuse(_: str) -> None:
        if errors:
            raise errors.pop()

    it.index.refuse = refuse
    it.give("guide", "text")
    running = asyncio.create_task(it.learner.run())
    await until(lambda: ("acme", "guide") in it.statuses.known)
    running.cancel()

    assert (it.texts("guide"), it.next()) == (["text"], 1)


async def test_what_is_too_long_for_a_title_or_a_heading_is_text(it: Setup) -> None:
    long = "word " * 20_000
    it.give("guide", f"# {long}\n\nshort\n\n{long}\n===\n\nmore", title="")
    it.give("file", file=f"text\n\n{long}".encode(), media_type="application/pdf")
    await it.learn()

    assert it.status("guide")[0] == "learned"
    for passages in it.index.there.values():
        assert all(len(each.spoken) < 5_000 for each in passages.values())
