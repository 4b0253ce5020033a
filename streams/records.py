"""Every record on our topics, declared once.

Values are JSON (msgspec-coded, so types are checked on the way in), keys the conversation id. Tokens are the
exception: `domain.tokens.Token`, in frames of many, msgpack-coded by `adapters/frames.py`.
New fields get defaults; a change of meaning gets a new topic version.
"""

from typing import Any, Literal, TypeVar

import msgspec

from domain.errors import BadRecord
from domain.generation import Usage
from domain.knowledge import Citation, Retrieval
from domain.memory import Fact, Kind
from domain.turns import Cache, Failure, Outcome, Timings

OnBusy = Literal["queue", "reject", "replace"]


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records. Unknown fields are ignored, so that a newer worker's records can be read."""


class Question(Wire, frozen=True, kw_only=True):
    """What a user asked, accepted and to be answered. Its Kafka timestamp is the turn id's own time.

    ``tokens_from``: offset in the tokens topic's partition below which this turn cannot have a token.
    ``messages``: the whole context where the client keeps it itself (OpenAI's chat completions); the turn
    then leaves the conversation's session context alone.
    ``beside``: the turn that this one is a new branch of (regenerate, edit). ``parent``: the turn that that one
    follows, where it was known; its conversation may have no room for that one any more.
    ``replay_key``: which request this answers, where its client may repeat it: a hash of tenant, user, route and
    Idempotency-Key. ``fingerprint``: a hash of its body, which a repetition has to share.
    ``experiment``: the arm of an experiment that it belongs to.
    """

    turn_id: str
    conversation_id: str
    tenant: str
    user: str
    input: str
    model: str
    tokens_from: int
    messages: list[dict[str, Any]] = []
    options: dict[str, Any] = {}
    on_busy: OnBusy = "queue"
    beside: str = ""
    parent: str = ""
    metadata: dict[str, Any] = {}
    request_id: str = ""
    replay_key: str = ""
    fingerprint: str = ""
    experiment: str = ""


class Control(Wire, frozen=True, kw_only=True):
    """Something to do at once with a conversation or a running turn; never queued behind an answer.

    ``create`` (title, metadata), ``rename`` (title, metadata) and ``erase`` a conversation; ``stop`` a turn.
    ``fingerprint``: a hash of the body that asked to create it, where its client may repeat that.
    """

    action: Literal["create", "rename", "erase", "stop"]
    conversation_id: str
    tenant: str
    user: str
    at: int
    turn_id: str = ""
    title: str | None = None
    metadata: dict[str, Any] | None = None
    fingerprint: str = ""


class Turn(Wire, frozen=True, kw_only=True):
    """A finished turn. Times are Unix milliseconds. ``replay_key`` and ``fingerprint`` are its question's.

    ``citations``: the passages that the model was given, by the number that the answer names them by. ``retrieval`` and
    ``cache`` and ``gaps`` as in `domain.turns.End`. ``bare``: a model was asked by its own name, without documents and
    memory. ``prompt``: name and version of our instructions, empty where none of them were used.
    """

    turn_id: str
    conversation_id: str
    tenant: str
    user: str
    input: str
    answer: str
    model: str
    outcome: Outcome
    finish: str = "stop"
    usage: Usage = Usage()
    timings: Timings = Timings()
    claims: int = 1
    error: Failure | None = None
    asked_at: int = 0
    ended_at: int = 0
    parent: str = ""
    prompt: str = ""
    stateless: bool = False
    bare: bool = False
    citations: list[Citation] = []
    retrieval: Retrieval | None = None
    cache: Cache | None = None
    gaps: dict[int, int] = {}
    experiment: str = ""
    metadata: dict[str, Any] = {}
    replay_key: str = ""
    fingerprint: str = ""


class Feedback(Wire, frozen=True, kw_only=True):
    """What the user of a turn says of it, at a Unix time in ms; the latest of a turn counts.

    ``correction``: what the answer should have been. ``model`` to ``experiment`` are the turn's own, so that whoever
    counts this need not look for it.
    """

    turn_id: str
    conversation_id: str
    tenant: str
    user: str
    rating: Literal[1, -1]
    at: int
    comment: str = ""
    correction: str = ""
    model: str = ""
    prompt: str = ""
    outcome: Outcome = "completed"
    cache: Cache | None = None
    experiment: str = ""


class Document(Wire, frozen=True, kw_only=True):
    """A document to learn; its key is `document_key`. A record without a value forgets the document of its key.

    It has a ``text`` (Markdown, or plain), or a ``file`` of the ``media_type``. ``name``: that of the file, which is
    the title of a document that has no other. ``readers``: the users of the tenant who may find it; none: all of them.
    ``at``: Unix ms. ``user``: who gave it.
    """

    document_id: str
    tenant: str
    user: str
    title: str = ""
    text: str = ""
    file: bytes = b""
    media_type: str = "text/markdown"
    name: str = ""
    url: str = ""
    readers: list[str] = []
    metadata: dict[str, Any] = {}
    at: int = 0


class DocumentOutcome(Wire, frozen=True, kw_only=True):
    """What became of a document; its key is `document_key`. Of two for one document that of the higher revision counts.

    ``at``: Unix ms of the document's record. What was forgotten has no title and no user any more.
    """

    document_id: str
    tenant: str
    status: Literal["learned", "failed", "forgotten"]
    at: int
    revision: int
    user: str = ""
    title: str = ""
    url: str = ""
    metadata: dict[str, Any] = {}
    error: str = ""
    passages: int = 0


class MemoryChange(Wire, frozen=True, kw_only=True):
    """Something to do with what is known of a user; its key is `memories_key`. The same ``change_id`` counts once.

    ``remember`` a ``text`` of a ``kind`` as the value of its ``slot``: the fact's id is the change's. ``edit`` the text
    of the fact ``memory_id``; ``forget`` that fact, or what is in ``slot``, or what was told in ``turn_id``;
    ``forget_all``; ``switch`` to ``enabled``. ``at``: Unix ms, of a turn that it was asked. ``turn_id`` and
    ``conversation_id`` say where it was told, and are empty where it was entered by hand.
    """

    change_id: str
    action: Literal["remember", "edit", "forget", "forget_all", "switch"]
    tenant: str
    user: str
    at: int
    memory_id: str = ""
    text: str = ""
    slot: str = ""
    kind: Kind = "note"
    turn_id: str = ""
    conversation_id: str = ""
    enabled: bool = True


class UserMemories(Wire, frozen=True, kw_only=True):
    """All that is known of a user, as of ``revision``; its key is `memories_key`. What was erased is not in it."""

    tenant: str
    user: str
    enabled: bool
    facts: list[Fact]
    revision: int


class DeadLetter(Wire, frozen=True, kw_only=True):
    """A record that could not be decoded or handled, with where it stood and why it was set aside.

    ``key`` and ``value`` are the beginning of what a large record had; its own topic has the rest.
    """

    topic: str
    partition: int
    offset: int
    reason: str
    code: str
    key: str = ""
    value: bytes = b""
    at: int = 0


W = TypeVar("W", bound=Wire)


def document_key(tenant: str, document_id: str) -> str:
    """Return the key of a document's records: two tenants may give their documents the same id."""
    return f"{tenant}/{document_id}"


def memories_key(tenant: str, user: str) -> str:
    """Return the key of what is known of a user."""
    return f"{tenant}/{user}"


def encode(record: Wire) -> bytes:
    """Return the record as JSON."""
    return msgspec.json.encode(record)


def decode(value: bytes | None, kind: type[W]) -> W:
    """Return the record of this kind; raises `BadRecord` with the field and what was wrong with it."""
    if value is None:
        raise BadRecord(f"a {kind.__name__} record without a value")
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecord(f"not a {kind.__name__}: {error}") from error
