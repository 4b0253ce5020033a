"""A worker without Kafka, Faust or a model, for the web layer: its log, its tables and its agents are a few dicts.

`FakeKafka` is what several `FakeWorker`s share. Questions are answered by the test itself, step by step, with
`FakeKafka.claim`, `say` and `end`; or by a script, where ``worker.script`` is set.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import msgspec
from aiohttp import web
from yarl import URL

from config.settings import Settings
from domain.errors import Expired, LogUnavailable, ModelBusy, NotOwner, SinkUnavailable
from domain.generation import Usage
from domain.hearing import Hear, heard
from domain.history import Owner, StoredConversation, StoredFeedback, StoredTurn
from domain.ids import place_of
from domain.memory import Memories
from domain.tokens import Fold, Token, text_of
from domain.turns import End, Failure, Outcome, Start
from streams.records import Control, Feedback, MemoryChange, Question, Turn, Wire, encode
from streams.topics import Topics, TopicSpec, partition_of
from tables.conversations import Conversation, KeptTurn, Listed
from tables.replays import HOLDS_MS, Replay
from tests.support.knowledge import FakeDocuments, FakeEmbedder, FakeRetriever

T = TypeVar("T")

ALICE = "alice-key-0123456789"
BOB = "bob-key-0123456789ab"
PARTITIONS = 4
TURNS = "chat.turns.v1"


def settings_for_tests(**changes: Any) -> Settings:
    """Return settings with two users, and short times."""
    return Settings(
        **{
            "auth": "required",
            "api_keys": f"acme/alice:{ALICE},acme/bob:{BOB}",
            "partitions": PARTITIONS,
            "ping_seconds": 5.0,
            "write_seconds": 5.0,
            **changes,
        }
    )


class FakeLoggedTurn:
    """One turn of the fake token log."""

    def __init__(self) -> None:
        self.fold = Fold()
        self.pieces: list[Token] = []
        self.expired = False
        self.cut = False
        self._changed = asyncio.Event()

    @property
    def text(self) -> str:
        return text_of(self.pieces)

    def feed(self, token: Token) -> None:
        if self.fold.feed(token) is not None:
            self.pieces.append(token)
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, seen: int) -> None:
        epoch = self.fold.epoch
        while len(self.pieces) <= seen and self.fold.epoch == epoch and not self.fold.ended:
            await self._changed.wait()


class Record(NamedTuple):
    """A record of the fake Kafka."""

    partition: int
    at_ms: int
    content: bytes
    of: str = ""

    def key(self) -> bytes:
        return self.of.encode()

    def value(self) -> bytes:
        return self.content


class FakeKafka:
    """What the workers share: records, tokens, rows. ``underway``: questions that no runner has taken yet."""

    def __init__(self) -> None:
        self.records: dict[str, list[Record]] = {}
        self.turns: dict[str, FakeLoggedTurn] = {}
        self.rows: dict[str, Conversation] = {}
        self.replays: dict[str, Replay] = {}
        self.erased: set[str] = set()
        self.memories: dict[tuple[str, str], Memories] = {}
        self.working: dict[str, list[Question]] = {}
        self.underway: dict[int, list[int]] = {}
        self.published: list[Wire] = []
        self.readers = 0

    def logged(self, turn_id: str) -> FakeLoggedTurn:
        return self.turns.setdefault(turn_id, FakeLoggedTurn())

    def questions(self) -> list[Question]:
        return [record for record in self.published if isinstance(record, Question)]

    def controls(self) -> list[Control]:
        return [record for record in self.published if isinstance(record, Control)]

    # -- what the agents would do

    def claim(self, turn_id: str, model: str = "test-model", epoch: int = 1) -> None:
        conversation_id = next((one.conversation_id for one in self.questions() if one.turn_id == turn_id), "")
        start = msgspec.json.encode(Start(conversation_id, model)).decode()
        self.logged(turn_id).feed(Token(turn_id, epoch, 0, "claim", start))

    def say(self, turn_id: str, *texts: str, kind: Any = "token") -> None:
        logged = self.logged(turn_id)
        for text in texts:
            logged.feed(Token(turn_id, logged.fold.epoch, logged.fold.next, kind, text))

    def end(
        self, turn_id: str, outcome: Outcome = "completed", *, finish: str = "stop", error: Failure | None = None
    ) -> None:
        end = End(outcome, "test-model", finish, Usage(7, 3), error=error)
        self.say(turn_id, msgspec.json.encode(end).decode(), kind="end")
        for question in self.questions():
            if question.turn_id == turn_id:
                self._close(question, end)

    def publish_turn(self, turn_id: str, **fields: Any) -> None:
        """Put the finished turn of a question into its topic, where most tests need none."""
        question = next(one for one in self.questions() if one.turn_id == turn_id)
        turn = msgspec.structs.replace(finished_turn(question, self.logged(turn_id).text), **fields)
        place = place_of(turn_id)
        assert place is not None
        self.records.setdefault(TURNS, []).append(Record(place.partition, place.milliseconds + 900, encode(turn)))

    def _close(self, question: Question, end: End) -> None:
        """Do what the agents do when a turn has ended."""
        working = self.working.get(question.conversation_id, [])
        self.working[question.conversation_id] = [one for one in working if one.turn_id != question.turn_id]
        place = place_of(question.turn_id)
        assert place is not None
        if question.replay_key:
            replay = Replay(turn_id=question.turn_id, fingerprint=question.fingerprint, at=place.milliseconds)
            self.replays.setdefault(question.replay_key, replay)
        row = self.rows.get(question.conversation_id)
        if row is None or question.messages:
            return
        kept = KeptTurn(
            turn_id=question.turn_id,
            parent=row.turns[-1].turn_id if row.turns else "",
            input=question.input,
            answer=self.logged(question.turn_id).text,
            outcome=end.outcome,
            model="test-model",
            asked_at=place.milliseconds,
        )
        self.rows[row.conversation_id] = msgspec.structs.replace(row, turns=[*row.turns, kept])

    def carry_out(self, control: Control) -> None:
        row = self.rows.get(control.conversation_id)
        match control.action:
            case "create":
                self.rows[control.conversation_id] = Conversation(
                    conversation_id=control.conversation_id,
                    tenant=control.tenant,
                    user=control.user,
                    title=control.title or "",
                    created_at=control.at,
                    updated_at=control.at,
                    metadata=control.metadata or {},
                    fingerprint=control.fingerprint,
                )
            case "rename" if row is not None:
                self.rows[control.conversation_id] = msgspec.structs.replace(
                    row,
                    title=row.title if control.title is None else control.title,
                    metadata=row.metadata if control.metadata is None else control.metadata,
                    updated_at=control.at,
                )
            case "erase":
                self.rows.pop(control.conversation_id, None)
                self.erased.add(control.conversation_id)
            case "stop" if not self.logged(control.turn_id).fold.ended and self.logged(control.turn_id).pieces:
                self.end(control.turn_id, "stopped")
            case _:
                pass


class FakeTokenLog:
    """The token log of one worker, on the shared tokens."""

    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka

    @asynccontextmanager
    async def attach(self, turn_id: str, partition: int, since: int) -> AsyncIterator[FakeLoggedTurn]:
        self._kafka.readers += 1
        try:
            yield self._kafka.logged(turn_id)
        finally:
            self._kafka.readers -= 1

    async def end_offset(self, partition: int) -> int:
        return 42

    async def follow(self, turn_id: str, partition: int, since: int, after: int, hear: Hear[Token]) -> None:
        seen = after + 1
        async with self.attach(turn_id, partition, since) as turn:
            if turn.expired and not turn.pieces:
                raise Expired("the log has no tokens of the turn any more")
            while not turn.fold.ended or len(turn.pieces) > seen:
                if len(turn.pieces) > seen:
                    pieces = turn.pieces[seen:]
                    seen += len(pieces)
                    await heard(hear, pieces)
                else:
                    await turn.changed(seen)


class FakeLogReader:
    """Finds records by their time."""

    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka
        self.searches = 0
        self.down = False

    async def find(
        self, topic: str, partition: int, at_ms: int, match: Callable[[bytes], T | None], *, within_ms: int = 60_000
    ) -> T | None:
        self.searches += 1
        for record in self._kafka.records.get(topic, ()):
            if record.partition == partition and at_ms <= record.at_ms <= at_ms + within_ms:
                found = match(record.content)
                if found is not None:
                    return found
        return None

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        if self.down:
            raise LogUnavailable("Kafka does not answer")
        return {partition: len(self._of(topic, partition)) for partition in partitions}

    async def scan(self, topic: str, partition: int, start: int, stop: int, visit: Callable[[Record], bool]) -> None:
        for record in self._of(topic, partition)[start:stop]:
            if visit(record):
                return

    def _of(self, topic: str, partition: int) -> list[Record]:
        return [record for record in self._kafka.records.get(topic, ()) if record.partition == partition]


class FakeModel:
    """A model server that has these models; ``down`` makes it unreachable."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.down = False

    async def models(self) -> list[str]:
        if self.down:
            raise ModelBusy("the model server cannot be reached")
        return self.names


class FakeHistory:
    """What is in the archive, each with its owner; ``down`` makes it unreachable.

    ``asked``: how often for conversations and turns.
    """

    def __init__(self) -> None:
        self.kept_conversations: dict[str, tuple[Owner, StoredConversation]] = {}
        self.kept_turns: dict[str, tuple[Owner, StoredTurn]] = {}
        self.kept_feedback: dict[str, tuple[Owner, StoredFeedback]] = {}
        self.down = False
        self.asked = 0

    async def conversations(
        self, owner: Owner, *, before: tuple[datetime, str] | None = None, known: Iterable[str] = (), limit: int
    ) -> list[StoredConversation]:
        self._ask()
        at, last = before or (datetime.max.replace(tzinfo=UTC), "g")
        places = [
            (one.updated_at, one.conversation_id)
            for whose, one in self.kept_conversations.values()
            if whose == owner and one.conversation_id not in set(known)
        ]
        return [
            self.kept_conversations[its_id][1]
            for when, its_id in sorted(places, reverse=True)
            if (datetime.fromtimestamp(when / 1000, UTC), its_id) < (at, last)
        ][:limit]

    async def conversation(self, owner: Owner, conversation_id: str) -> StoredConversation | None:
        self._ask()
        whose, found = self.kept_conversations.get(conversation_id, (None, None))
        return found if whose == owner else None

    async def turns(
        self, owner: Owner, conversation_id: str, *, before: str = "", known: Iterable[str] = (), limit: int
    ) -> list[StoredTurn]:
        self._ask()
        found = [
            turn
            for whose, turn in self.kept_turns.values()
            if whose == owner
            and (turn.conversation_id, turn.in_conversation) == (conversation_id, True)
            and turn.turn_id < (before or "g")
            and turn.turn_id not in set(known)
        ]
        return sorted(found, key=lambda turn: turn.turn_id, reverse=True)[:limit]

    async def turn(self, owner: Owner, turn_id: str) -> StoredTurn | None:
        self._ask()
        whose, found = self.kept_turns.get(turn_id, (None, None))
        return found if whose == owner else None

    async def feedback(self, owner: Owner, turn_ids: Sequence[str]) -> list[StoredFeedback]:
        self._check()
        kept = [self.kept_feedback[turn_id] for turn_id in turn_ids if turn_id in self.kept_feedback]
        return [found for whose, found in kept if whose == owner]

    def note(self, said: Feedback) -> None:
        kept = StoredFeedback(said.turn_id, said.rating, said.comment, said.correction, said.at)
        self.kept_feedback[said.turn_id] = Owner(said.tenant, said.user), kept

    def _ask(self) -> None:
        self.asked += 1
        self._check()

    def _check(self) -> None:
        if self.down:
            raise SinkUnavailable("Postgres is not there")


class FakeMemories:
    """What is known of users, as the agents have it: a change shows as soon as it is published, or not at all.

    ``down`` makes it unreachable. ``stuck``: what is published does not show.
    """

    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka
        self.down = False
        self.stuck = False

    async def of(self, tenant: str, user: str) -> Memories:
        if self.down:
            raise SinkUnavailable("Elasticsearch is not there")
        return self._kafka.memories.get((tenant, user), Memories(tenant, user))

    async def carry_out(self, change: MemoryChange) -> None:
        from tables.memories import changed  # noqa: PLC0415 - as in `application_of`

        if not self.stuck:
            owner = (change.tenant, change.user)
            self._kafka.memories[owner] = changed(await self.of(*owner), change, most=10)


class FakeServices:
    """Whom the fake worker talks to."""

    def __init__(self, kafka: FakeKafka, model: FakeModel) -> None:
        self.history = FakeHistory()
        self.token_log = FakeTokenLog(kafka)
        self.log_reader = FakeLogReader(kafka)
        self.memories = FakeMemories(kafka)
        self.documents = FakeDocuments()
        self.retriever = FakeRetriever()
        self.embedders = FakeEmbedder()
        self.model = model


class FakeRunner:
    """What is in work, for all workers alike."""

    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka
        self.is_handed_over = False

    def in_work(self, conversation_id: str) -> list[Question]:
        return self._kafka.working.get(conversation_id, [])

    def position(self, partition: int) -> int:
        return -1 if self.is_handed_over else min(self._kafka.underway.get(partition) or [sys.maxsize])

    def by_key(self, conversation_id: str, replay_key: str) -> Question | None:
        return next((one for one in self.in_work(conversation_id) if one.replay_key == replay_key), None)


class FakeWorker:
    """What `streams.app` is to the web layer.

    ``owners``: where the owner of a partition listens; a partition that is not in it is this worker's own.
    ``rebalancing``, ``kafka_down``, ``loses_acknowledgements``, ``late`` (Kafka takes a record, but not yet) and
    ``why_not_ready`` are the troubles it can have.
    ``lag``: so many reads of the table do not see a control yet. ``reaches_runner``: whether questions do.
    ``script``: how every question is answered, at once.
    """

    def __init__(self, kafka: FakeKafka, settings: Settings) -> None:
        self.kafka = kafka
        self.settings = settings
        self.topics_of = Topics.of(settings)
        self.services = FakeServices(kafka, FakeModel("test-model", "other-model"))
        self.runner = FakeRunner(kafka)
        self.owners: dict[int, URL] = {}
        self.rebalancing = False
        self.kafka_down = False
        self.loses_acknowledgements = False
        self.late = False
        self.still_to_come: list[Wire] = []
        self.why_not_ready = ""
        self.script: Callable[[FakeKafka, Question], Any] | None = None
        self.reaches_runner = True
        self.lag = 0
        self.delayed: list[tuple[int, Control]] = []
        self.table_reads = 0

    async def publish(self, spec: TopicSpec, key: str, record: Wire | None, *, at_ms: int | None = None) -> int:
        if self.kafka_down:
            raise LogUnavailable("Kafka did not take a record")
        if self.late and record is not None:
            self.still_to_come.append(record)
            raise LogUnavailable("Kafka has not acknowledged a record yet")
        await asyncio.sleep(0)
        records = self.kafka.records.setdefault(spec.name, [])
        partition = partition_of(key, spec.partitions)
        offset = sum(other.partition == partition for other in records)
        records.append(Record(partition, at_ms or 0, b"" if record is None else encode(record), key))
        if record is None:
            self.services.documents.forget(*key.split("/", 1))
        else:
            self.kafka.published.append(record)
            await self._take(record, partition, offset)
        if self.loses_acknowledgements:
            raise LogUnavailable("Kafka did not acknowledge a record")
        return offset

    async def _take(self, record: Wire, partition: int, offset: int) -> None:
        """Do what the agents do with a record."""
        match record:
            case Control():
                if self.lag:
                    self.delayed.append((self.table_reads + self.lag, record))
                else:
                    self.kafka.carry_out(record)
            case Question():
                if self.reaches_runner:
                    self.kafka.working.setdefault(record.conversation_id, []).append(record)
                else:
                    self.kafka.underway.setdefault(partition, []).append(offset)
                if self.script is not None:
                    self.script(self.kafka, record)
            case MemoryChange():
                await self.services.memories.carry_out(record)
            case Feedback():
                self.services.history.note(record)
            case _:
                pass

    def owner_url(self, partition: int) -> URL | None:
        if self.rebalancing:
            raise NotOwner("a rebalance is going on", retry_after=1)
        return self.owners.get(partition)

    def workers(self) -> list[URL]:
        return list(set(self.owners.values()))

    def owned(self) -> set[int]:
        return {0, 1}

    def ready(self) -> str:
        return self.why_not_ready

    def look(self) -> None:
        """Count a read of the table, and let it see the controls whose time has come."""
        due = [control for reads, control in self.delayed if reads <= self.table_reads]
        self.delayed = [(reads, control) for reads, control in self.delayed if reads > self.table_reads]
        for control in due:
            self.kafka.carry_out(control)
        self.table_reads += 1

    def owns(self, conversation_id: str) -> bool:
        return partition_of(conversation_id, self.settings.partitions) not in self.owners


class FakeConversations:
    """The table of conversations, as far as the worker owns them."""

    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    def read(self, conversation_id: str) -> Conversation | None:
        if self._worker.rebalancing or not self._worker.owns(conversation_id):
            raise NotOwner("another worker's")
        self._worker.look()
        return self._worker.kafka.rows.get(conversation_id)

    def is_erased(self, conversation_id: str) -> bool:
        return conversation_id in self._worker.kafka.erased

    def of_user(self, tenant: str, user: str) -> list[Listed]:
        return [
            Listed(
                conversation_id=row.conversation_id,
                title=row.title,
                created_at=row.created_at,
                updated_at=row.updated_at,
                metadata=row.metadata,
            )
            for row in self._worker.kafka.rows.values()
            if (row.tenant, row.user) == (tenant, user) and self._worker.owns(row.conversation_id)
        ] + [
            Listed(conversation_id=erased, title="", created_at=0, updated_at=0, erased=True)
            for erased in self._worker.kafka.erased
            if self._worker.owns(erased)
        ]


class FakeReplays:
    """The table of keys, as far as the worker owns them."""

    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    def find(self, conversation_id: str, replay_key: str, now: int) -> Replay | None:
        if self._worker.rebalancing or not self._worker.owns(conversation_id):
            raise NotOwner("another worker's")
        found = self._worker.kafka.replays.get(replay_key)
        return found if found and now - found.at <= HOLDS_MS else None


def application_of(worker: FakeWorker) -> web.Application:
    """Return the web application of a fake worker, with all routes."""
    from web.routes import set_up  # noqa: PLC0415 - imports the Faust app, which some users of these fakes do not need

    application = web.Application()
    set_up(application, worker, FakeConversations(worker), FakeReplays(worker))
    return application


def answering(texts: Iterable[str]) -> Callable[[FakeKafka, Question], None]:
    """Return a script that answers every question with these texts."""
    said = list(texts)

    def answer(kafka: FakeKafka, question: Question) -> None:
        kafka.claim(question.turn_id)
        kafka.say(question.turn_id, *said)
        kafka.end(question.turn_id)

    return answer


def finished_turn(question: Question, answer: str) -> Turn:
    """Return the finished record of a question."""
    place = place_of(question.turn_id)
    assert place is not None
    return Turn(
        turn_id=question.turn_id,
        conversation_id=question.conversation_id,
        tenant=question.tenant,
        user=question.user,
        input=question.input,
        answer=answer,
        model="test-model",
        outcome="completed",
        asked_at=place.milliseconds,
    )
