"""What the web layer needs of the rest of Headrace, and no more: the plugs that `streams.app` fits and tests fake."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from yarl import URL

from config.settings import Settings
from domain.hearing import Hear
from domain.history import Owner, StoredConversation, StoredFeedback, StoredTurn
from domain.knowledge import DocumentStatus, Found, Reader
from domain.memory import Memories
from domain.tokens import Token, TurnInLog
from streams.records import Question, Wire
from streams.topics import Topics, TopicSpec

if TYPE_CHECKING:
    # The tables belong to the app, and a fake has neither.
    from tables.conversations import Conversation, Listed
    from tables.replays import Replay

T = TypeVar("T")


class LoggedTurn(TurnInLog, Protocol):
    """A turn as far as this worker has read it."""

    @property
    def expired(self) -> bool:
        """Return whether the log had already deleted what stood before its first piece."""
        ...

    async def changed(self, seen: int) -> None:
        """Wait until there are more than ``seen`` pieces, the turn has another owner, or it has ended."""
        ...


class TokenLog(Protocol):
    """The tokens topic, read turn by turn."""

    def attach(self, turn_id: str, partition: int, since: int) -> AbstractAsyncContextManager[LoggedTurn]:
        """Follow one turn: complete from offset ``since`` on, and live after."""
        ...

    async def end_offset(self, partition: int) -> int:
        """Return an offset below which tokens that are not written yet cannot come."""
        ...

    async def follow(self, turn_id: str, partition: int, since: int, after: int, hear: Hear[Token]) -> None:
        """Have ``hear`` take the pieces with ``seq > after`` in batches; return after the end."""
        ...


class Record(Protocol):
    """A record of a topic."""

    def key(self) -> bytes | None:
        """Return its key."""
        ...

    def value(self) -> bytes | None:
        """Return its value."""
        ...


class LogReader(Protocol):
    """Records that are looked up by when they were written, or where they stand."""

    async def find(
        self, topic: str, partition: int, at_ms: int, match: Callable[[bytes], T | None], *, within_ms: int = ...
    ) -> T | None:
        """Return the first match among a partition's records from this time on, for so long."""
        ...

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Return for each partition the offset that its next record will have."""
        ...

    async def scan(self, topic: str, partition: int, start: int, stop: int, visit: Callable[[Record], bool]) -> None:
        """Show the records of [start, stop) until ``visit`` says that it has seen enough; in another thread."""
        ...


class Model(Protocol):
    """The model server."""

    async def models(self) -> list[str]:
        """Return the names of its models; empty if it does not say."""
        ...


class History(Protocol):
    """What the archive has of a user's past. Every method raises `SinkUnavailable`, within a second."""

    async def conversations(
        self, owner: Owner, *, before: tuple[datetime, str] | None = None, known: Iterable[str] = (), limit: int
    ) -> list[StoredConversation]:
        """Return those that stand before a place, the latest active first, without those that are known."""
        ...

    async def conversation(self, owner: Owner, conversation_id: str) -> StoredConversation | None:
        """Return a conversation of this user's."""
        ...

    async def turns(
        self, owner: Owner, conversation_id: str, *, before: str = "", known: Iterable[str] = (), limit: int
    ) -> list[StoredTurn]:
        """Return a conversation's turns that were asked before one, the latest first, without those that are known."""
        ...

    async def turn(self, owner: Owner, turn_id: str) -> StoredTurn | None:
        """Return a turn of this user's."""
        ...

    async def feedback(self, owner: Owner, turn_ids: Sequence[str]) -> list[StoredFeedback]:
        """Return what this user said of turns."""
        ...


class MemoryStore(Protocol):
    """What is known of users, readable on every worker."""

    async def of(self, tenant: str, user: str) -> Memories:
        """Return what is known of a user. Raises `SinkUnavailable`."""
        ...


class Retriever(Protocol):
    """The passages of documents."""

    async def search(self, reader: Reader, messages: Sequence[Mapping[str, Any]], *, k: int) -> list[Found]:
        """Return the best passages for the last message. Raises `SinkUnavailable`."""
        ...


class Embedder(Protocol):
    """An embedding model."""

    async def documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the vectors of texts. Raises `EmbedderUnavailable`."""
        ...


class Embedders(Protocol):
    """The embedding models."""

    def of(self, model: str) -> Embedder:
        """Return a model by its name."""
        ...


class Documents(Protocol):
    """What has become of each document. Every method raises `SinkUnavailable`."""

    async def of(self, reader: Reader, *, limit: int, after: str = "") -> list[DocumentStatus]:
        """Return what a reader may know of, the newest first."""
        ...

    async def read(self, tenant: str, document_id: str) -> DocumentStatus | None:
        """Return what is known of a document."""
        ...

    async def write(self, *each: tuple[DocumentStatus, int, bool], shown: bool = True) -> None:
        """Write statuses, each with the time of its record and whether that is done with."""
        ...


class Services(Protocol):
    """Whom the web layer talks to."""

    @property
    def retriever(self) -> Retriever:
        """Return the search for passages."""
        ...

    @property
    def embedders(self) -> Embedders:
        """Return the embedding models."""
        ...

    @property
    def documents(self) -> Documents:
        """Return what has become of documents."""
        ...

    @property
    def token_log(self) -> TokenLog:
        """Return the tokens topic."""
        ...

    @property
    def log_reader(self) -> LogReader:
        """Return the reader of other topics."""
        ...

    @property
    def model(self) -> Model:
        """Return the model server."""
        ...

    @property
    def history(self) -> History:
        """Return what the archive has."""
        ...

    @property
    def memories(self) -> MemoryStore:
        """Return what is known of users."""
        ...


class Runner(Protocol):
    """What this worker is answering."""

    def in_work(self, conversation_id: str) -> list[Question]:
        """Return a conversation's questions that are running or queued here, in order."""
        ...

    def position(self, partition: int) -> int:
        """Return the offset below which every question of a partition is in work here, or finished."""
        ...

    def by_key(self, conversation_id: str, replay_key: str) -> Question | None:
        """Return the first question in work here that was asked under this key."""
        ...


class Chat(Protocol):
    """The worker behind the routes."""

    @property
    def settings(self) -> Settings:
        """Return the settings."""
        ...

    @property
    def services(self) -> Services:
        """Return whom we talk to."""
        ...

    @property
    def topics_of(self) -> Topics:
        """Return the topics of this installation."""
        ...

    @property
    def runner(self) -> Runner:
        """Return what is in work here."""
        ...

    async def publish(self, spec: TopicSpec, key: str, record: Wire | None, *, at_ms: int | None = None) -> int:
        """Write a record, or that there is none any more; return once Kafka has it. Raises `LogUnavailable`."""
        ...

    def owner_url(self, partition: int) -> URL | None:
        """Return where the partition's owner listens, None for this worker; raises `NotOwner`."""
        ...

    def workers(self) -> list[URL]:
        """Return where the other workers listen that own partitions."""
        ...

    def owned(self) -> set[int]:
        """Return the partitions that this worker owns."""
        ...

    def ready(self) -> str:
        """Return "" if this worker can take questions, else what it waits for."""
        ...


class Conversations(Protocol):
    """The table of conversations, as far as this worker owns it."""

    def read(self, conversation_id: str) -> "Conversation | None":
        """Return a conversation; raises `NotOwner`."""
        ...

    def is_erased(self, conversation_id: str) -> bool:
        """Return whether there was a conversation, and it was erased; raises `NotOwner`."""
        ...

    def of_user(self, tenant: str, user: str) -> "list[Listed]":
        """Return a user's conversations in this worker's partitions, and what is left of erased ones."""
        ...


class Replays(Protocol):
    """The table of keys that finished turns were asked under, as far as this worker owns it."""

    def find(self, conversation_id: str, replay_key: str, now: int) -> "Replay | None":
        """Return the turn that has a key at this time; raises `NotOwner`."""
        ...
