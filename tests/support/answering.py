"""One question answered by a worker that consists of little more than `agents.generate.Answer`.

Its log is a list and takes every record at once, unless the test holds it back; its model servers are real
connections to scripted ones. The pauses between its attempts are short, unless a server asks for longer ones.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
import pytest

from adapters.model_group import open_model_group
from agents import generate, ground, recall
from agents.generate import Answer
from config.settings import Settings
from domain.answer_cache import Asked, Cached, Kept, Place, Sharing, Source, may_be_kept, place_of, served
from domain.generation import Usage
from domain.ids import new_turn_id
from domain.knowledge import Reader, Retrieved
from domain.tokens import Kind, Token
from domain.turns import End
from streams.records import Question
from streams.turn_runner import Job
from tables import conversations
from tables.conversations import Conversation, KeptTurn
from tests.support.fakes import FakeLoggedTurn
from tests.support.runner_fakes import FakeEvent, FakeMessage, question

TURN = new_turn_id(1_700_000_000_000, 0, 7)


class ListLog:
    """A token log of one partition, read a moment after it is written.

    ``open`` is cleared to hold back what is put. ``overtaking``: what another worker writes right before our next
    record of a kind.
    """

    def __init__(self) -> None:
        self.turn = FakeLoggedTurn()
        self.open = asyncio.Event()
        self.open.set()
        self.records: list[Token] = []
        self.overtaking: dict[Kind, list[Token]] = {}
        self._read = 0

    def append(self, _: int, token: Token) -> None:
        self.records += [*self.overtaking.pop(token.kind, ()), token]
        asyncio.get_running_loop().call_later(0.001, self.read)

    async def put(self, partition: int, token: Token) -> int:
        await self.open.wait()
        self.append(partition, token)
        return len(self.records) - 1

    async def until(self, _partition: int, offset: int) -> None:
        while self._read <= offset:
            await asyncio.sleep(0)

    def room(self, _: int) -> Awaitable[None]:
        return asyncio.sleep(0)

    def read(self) -> None:
        """Read to the end, as a worker's tail does."""
        for token in self.records[self._read :]:
            self.turn.feed(token)
        self._read = len(self.records)


class FakeRetriever:
    """Finds what the test says, whoever asks; ``asked`` is by whom and for what it was asked, with which thresholds.

    ``meanwhile``: what happens while it searches.
    """

    meanwhile: Callable[[], Awaitable[object]] | None = None

    def __init__(self, *retrieved: Retrieved) -> None:
        self.asked: list[tuple[Reader, list[Mapping[str, Any]]]] = []
        self.thresholds: list[float] = []
        self._retrieved = list(retrieved)

    async def find(
        self, reader: Reader, messages: Sequence[Mapping[str, Any]], *, k: int, tokens: int, threshold: float
    ) -> Retrieved:
        self.thresholds.append(threshold)
        assert k > 0
        assert tokens > 0
        self.asked.append((reader, list(messages)))
        if self.meanwhile is not None:
            await self.meanwhile()
        return self._retrieved.pop(0)


class FakeAnswerCache:
    """Keeps answers under their place, shared as the settings say."""

    def __init__(self, sharing: Sharing) -> None:
        self.kept: dict[str, Kept] = {}
        self._sharing = sharing

    def place(self, asked: Asked) -> Place | None:
        return place_of(asked, self._sharing)

    async def find(self, place: Place, retrieved: Retrieved) -> Cached | None:
        kept = self.kept.get(place.key)
        return served(kept, place, retrieved) if kept else None

    def keep(
        self,
        place: Place,
        retrieved: Retrieved,
        source: Source,
        answer: str,
        *,
        outcome: str,
        finish: str,
        usage: Usage,
    ) -> None:
        if may_be_kept(retrieved, answer, outcome=outcome, finish=finish):
            ids = tuple(each.passage_id for each in retrieved.passages)
            self.kept[place.key] = Kept(place.question, answer, ids, usage, source.turn_id)


class Answering:
    """The question, the log, and what came of it. ``worker``: what is the app here."""

    worker: Any

    def __init__(self, asked: Question, retriever: FakeRetriever) -> None:
        self.log = ListLog()
        self.retriever = retriever
        self.cache = FakeAnswerCache("off")
        self.job = Job(FakeEvent(b"c", b"", FakeMessage(0, 0, 1)), asked)

    def have(self, *texts: str, claims: int = 1, kind: Kind = "token") -> None:
        """Let workers before this one have claimed the turn and written this."""
        for epoch in range(1, claims + 1):
            self.log.append(0, Token(TURN, epoch, 0, "claim", "{}"))
        self.log.read()
        for text in texts:
            self.log.append(0, Token(TURN, claims, self.log.turn.fold.next, kind, text))
            self.log.read()

    async def run(self) -> End:
        """Answer to the end; return what it says."""
        async with asyncio.timeout(30):
            await Answer(self.job, self.log.turn).until_ended()
        return self.end

    @property
    def end(self) -> End:
        """The turn's end in the log."""
        return msgspec.json.decode(self.log.turn.pieces[-1].text, type=End)

    @property
    def text(self) -> str:
        """The answer in the log."""
        return self.log.turn.text

    @property
    def kinds(self) -> list[str]:
        """The kinds of all records, whether they count or not."""
        return [token.kind for token in self.log.records]

    @property
    def claims(self) -> int:
        """How often the turn was taken up."""
        return self.log.turn.fold.claims


@asynccontextmanager
async def answering(
    monkeypatch: pytest.MonkeyPatch,
    servers: Sequence[str],
    text: str,
    *,
    options: dict[str, Any] | None = None,
    retrieved: Sequence[Retrieved] = (),
    cache: FakeAnswerCache | None = None,
    before: Sequence[dict[str, Any]] = (),
    row: Sequence[KeptTurn] | None = None,
    **set_to: Any,
) -> AsyncIterator[Answering]:
    """Prepare an answer from these model servers, with these settings, and with passages if there are ``retrieved``.

    ``before``: the client's own messages before the question. ``row``: the turns that its conversation keeps, if it is
    not the client's; then, and after other messages, the text is also what the turn was asked.
    """
    retrieval: Literal["on", "off"] = "on" if retrieved else "off"
    usual: dict[str, Any] = {"model": "scripted", "retrieval": retrieval, "memory": "off"}
    settings = Settings(**{"model_servers": ",".join(servers), **usual, **set_to})
    async with open_model_group(settings) as model:
        messages = [*before, {"role": "user", "content": text}] if row is None else []
        asked = question(TURN, options=options or {}, messages=messages)
        if before or row is not None:
            asked = msgspec.structs.replace(asked, input=text)
        found = Answering(asked, FakeRetriever(*retrieved))
        found.cache = cache or FakeAnswerCache(settings.answer_cache)
        services = SimpleNamespace(
            token_log=found.log, model=model, retriever=found.retriever, answer_cache=found.cache
        )
        worker = found.worker = SimpleNamespace(services=services, settings=settings, generation=1, settled=_settled)
        kept = Conversation(
            conversation_id="c", tenant="t", user="u", title="", created_at=0, updated_at=0, turns=list(row or ())
        )
        monkeypatch.setattr(conversations, "_read", lambda _: kept)
        monkeypatch.setattr(generate, "app", worker)
        monkeypatch.setattr(ground, "app", worker)
        monkeypatch.setattr(recall, "app", worker)
        monkeypatch.setattr(generate, "pause", lambda _attempt: 0.01)
        yield found


async def _settled() -> None:
    """Return at once: this worker has no tables."""
