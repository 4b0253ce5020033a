"""The bodies of the native routes, as API.md has them. Times are UTC, ids are strings that clients do not parse."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from domain.generation import Usage
from domain.knowledge import Citation, Retrieval
from domain.memory import TEXT_LENGTH, Kind
from domain.turns import Cache, Failure, Outcome, Status, Timings
from streams.records import OnBusy

Title = Annotated[str, Meta(max_length=200)]
ModelName = Annotated[str, Meta(max_length=200)]
Stops = Annotated[list[str], Meta(max_length=4)]

COMMENT_LENGTH: Final = 2_000
CORRECTION_LENGTH: Final = 20_000

MemoryText = Annotated[str, Meta(min_length=1, max_length=TEXT_LENGTH)]


def rfc3339(milliseconds: int) -> datetime:
    """Return a Unix time in ms as what JSON shows as RFC 3339 in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


# -- what clients send


class NewConversation(Struct, frozen=True, kw_only=True):
    """A conversation to begin."""

    title: Title | None = None
    metadata: dict[str, Any] | None = None


class ChangedConversation(Struct, frozen=True, kw_only=True):
    """What to change of a conversation; what is left out stays."""

    title: Title | None = None
    metadata: dict[str, Any] | None = None


class Options(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the model is to write, in OpenAI's names and ranges."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    seed: int | None = None
    stop: str | Stops | None = None


class NewTurn(Struct, frozen=True, kw_only=True):
    """A question. ``on_busy`` says what becomes of it while another is being answered."""

    input: str
    model: ModelName = ""
    on_busy: OnBusy = "queue"
    metadata: dict[str, Any] | None = None
    options: Options | None = None


class EditedTurn(Struct, frozen=True, kw_only=True):
    """A question that takes the place of an earlier one, beside it."""

    input: str
    model: ModelName = ""
    metadata: dict[str, Any] | None = None
    options: Options | None = None


class RegeneratedTurn(Struct, frozen=True, kw_only=True):
    """What is to differ when a question is answered again."""

    model: ModelName = ""
    options: Options | None = None


class NewFeedback(Struct, frozen=True, kw_only=True):
    """What a turn was like: 1 for good, -1 for bad. ``correction``: what the answer should have been."""

    rating: Annotated[int, Meta(extra_json_schema={"enum": [1, -1]})]
    comment: Annotated[str, Meta(max_length=COMMENT_LENGTH)] | None = None
    correction: Annotated[str, Meta(max_length=CORRECTION_LENGTH)] | None = None


class NewMemory(Struct, frozen=True, kw_only=True):
    """Something to remember of who sends it, as a sentence."""

    text: MemoryText


class ChangedMemory(Struct, frozen=True, kw_only=True):
    """What something that is remembered is to say instead."""

    text: MemoryText


class MemorySwitch(Struct, frozen=True, kw_only=True):
    """Whether to remember what the sender says, and to use it."""

    enabled: bool


# -- what they get


class AcceptedTurn(Struct, frozen=True, kw_only=True):
    """A question that Kafka has taken: it will be answered."""

    turn_id: str
    conversation_id: str
    status: Status
    events_url: str


class StoppedTurn(Struct, frozen=True, kw_only=True):
    """A turn that was asked to stop, and where it stood."""

    turn_id: str
    status: Status


class FeedbackView(Struct, frozen=True, kw_only=True):
    """What was last said of a turn."""

    turn_id: str
    rating: int
    given_at: datetime
    object: Literal["feedback"] = "feedback"
    comment: str | None = None
    correction: str | None = None


class ShownTurn(Struct, frozen=True, kw_only=True):
    """A turn, as far as every route shows it. ``last_event_id`` is the event up to which ``answer`` goes.

    ``citations``: the passages that the model was given, by the number that the answer names them by. ``retrieval``:
    what the search for them came to. ``cache``: whether the answer is an earlier one. ``feedback``: what you last said
    of it, a window after you did; none while the archive does not answer.
    """

    turn_id: str
    input: str
    model: str
    status: Status
    answer: str
    created_at: datetime
    object: Literal["turn"] = "turn"
    beside: str | None = None
    outcome: Outcome | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: Failure | None = None
    citations: list[Citation] = []
    retrieval: Retrieval | None = None
    cache: Cache | None = None
    feedback: FeedbackView | None = None
    last_event_id: int | None = None


class TurnView(ShownTurn, frozen=True, kw_only=True):
    """A turn. ``last_event_id`` is the event up to which ``answer`` goes: read on with ``?starting_after=``."""

    conversation_id: str
    claims: int = 0
    metadata: dict[str, Any] = {}


class TurnInConversation(ShownTurn, frozen=True, kw_only=True):
    """A turn as its conversation shows it. ``parent``: the turn that it follows, or none.

    The ``citations`` have no texts here, as they would make most of the page: ``GET /v1/turns/{turn_id}`` has them.
    """

    parent: str | None = None


class ConversationView(Struct, frozen=True, kw_only=True):
    """A conversation."""

    id: str
    title: str
    created_at: datetime
    updated_at: datetime
    object: Literal["conversation"] = "conversation"
    metadata: dict[str, Any] = {}


class WholeConversation(ConversationView, frozen=True, kw_only=True):
    """A conversation with its latest turns in the order asked, also those in work.

    ``has_more``: there are turns before them: read on with ``?before=`` the first one's id. ``older_unavailable``:
    whether there are cannot be told now, because the archive does not answer; ask again later.
    """

    turns: list[TurnInConversation] = []
    has_more: bool = False
    older_unavailable: bool = False


class ConversationList(Struct, frozen=True, kw_only=True):
    """Conversations, the latest active first.

    ``next``: what to give as ``after`` for those that follow. It keeps its place when a conversation moves, an id not.
    ``older_unavailable``: older ones may be missing, because the archive does not answer now; ask again later.
    """

    data: list[ConversationView]
    has_more: bool = False
    next: str | None = None
    older_unavailable: bool = False
    object: Literal["list"] = "list"


class NewDocument(Struct, frozen=True, kw_only=True):
    """A document to learn. The same ``id`` again replaces it. ``readers``: who may find it; none: everyone."""

    title: str
    text: str
    id: str | None = None
    url: str | None = None
    readers: list[str] | None = None
    metadata: dict[str, Any] | None = None


class DocumentView(Struct, frozen=True, kw_only=True):
    """What has become of a document: queued, learned (with how many passages), or failed (with why)."""

    document_id: str
    title: str
    status: Literal["queued", "learned", "failed"]
    created_at: datetime
    updated_at: datetime
    object: Literal["document"] = "document"
    error: str | None = None
    url: str | None = None
    passages: int = 0
    readers: list[str] = []
    metadata: dict[str, Any] = {}


class DocumentList(Struct, frozen=True, kw_only=True):
    """Documents, the newest first."""

    data: list[DocumentView]
    has_more: bool = False
    object: Literal["list"] = "list"


class WantedSearch(Struct, frozen=True, kw_only=True):
    """A search. ``messages``: the conversation before the query, in OpenAI's form, so that it can be understood."""

    query: str
    k: Annotated[int, Meta(ge=1, le=50)] = 10
    messages: list[dict[str, Any]] = []


class SearchHit(Struct, frozen=True, kw_only=True):
    """A passage. ``path``: the headings that lead to it. ``score`` orders the hits of one search, and says no more."""

    document_id: str
    title: str
    text: str
    score: float
    path: str = ""
    url: str | None = None


class SearchResults(Struct, frozen=True, kw_only=True):
    """Passages, best first; of each document its best one before the others."""

    data: list[SearchHit]
    has_more: bool = False
    object: Literal["list"] = "list"


class WantedEmbeddings(Struct, frozen=True, kw_only=True):
    """Texts to turn into vectors, in OpenAI's form."""

    input: str | list[str]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class Embedding(Struct, frozen=True, kw_only=True):
    """A vector, as numbers or as base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(Struct, frozen=True, kw_only=True):
    """About how many model tokens were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct, frozen=True, kw_only=True):
    """Vectors, in the order of the texts."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class Me(Struct, frozen=True, kw_only=True):
    """Who is asking, as the server sees it."""

    tenant: str
    user: str
    roles: list[str]
    object: Literal["user"] = "user"


class MemorySource(Struct, frozen=True, kw_only=True):
    """The turn whose question told it. The conversation may be erased by now."""

    conversation_id: str
    turn_id: str


class MemoryView(Struct, frozen=True, kw_only=True):
    """Something that is remembered of a user. ``source``: none, where it was entered by hand."""

    id: str
    text: str
    kind: Kind
    created_at: datetime
    valid_from: datetime
    source: MemorySource | None = None
    object: Literal["memory"] = "memory"


class MemoryList(Struct, frozen=True, kw_only=True):
    """All that is remembered of a user, the latest first.

    ``enabled``: whether it is used, and added to. ``switchable``: whether that is the user's to say; the operator may
    have switched it off for everyone.
    """

    data: list[MemoryView]
    enabled: bool
    switchable: bool
    has_more: bool = False
    object: Literal["list"] = "list"


class Health(Struct, frozen=True, kw_only=True):
    """How the worker is. ``partitions``: those whose conversations it owns, where it is ready."""

    status: Literal["alive", "ready"]
    partitions: list[int] = []
