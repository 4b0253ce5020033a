"""The bodies of the native routes, as API.md has them. Times are UTC, ids are strings that clients do not parse."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from domain.generation import Usage
from domain.turns import Failure, Outcome, Status, Timings
from streams.records import OnBusy

Title = Annotated[str, Meta(max_length=200)]
ModelName = Annotated[str, Meta(max_length=200)]
Stops = Annotated[list[str], Meta(max_length=4)]


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


class ShownTurn(Struct, frozen=True, kw_only=True):
    """A turn, as far as every route shows it. ``last_event_id`` is the event up to which ``answer`` goes."""

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
    last_event_id: int | None = None


class TurnView(ShownTurn, frozen=True, kw_only=True):
    """A turn. ``last_event_id`` is the event up to which ``answer`` goes: read on with ``?starting_after=``."""

    conversation_id: str
    citations: list[dict[str, Any]] = []
    claims: int = 0
    metadata: dict[str, Any] = {}


class TurnInConversation(ShownTurn, frozen=True, kw_only=True):
    """A turn as its conversation shows it. ``parent``: the turn that it follows, or none."""

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


class Me(Struct, frozen=True, kw_only=True):
    """Who is asking, as the server sees it."""

    tenant: str
    user: str
    roles: list[str]
    object: Literal["user"] = "user"


class Health(Struct, frozen=True, kw_only=True):
    """How the worker is. ``partitions``: those whose conversations it owns, where it is ready."""

    status: Literal["alive", "ready"]
    partitions: list[int] = []
