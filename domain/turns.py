"""The life of a turn: its statuses, and what its end says."""

from dataclasses import dataclass, field
from typing import Final, Literal

from domain.generation import Usage
from domain.knowledge import Retrieval

Status = Literal["queued", "running", "completed", "stopped", "failed", "handed_over"]
Outcome = Literal["completed", "stopped", "failed", "handed_over"]
Cache = Literal["exact", "hit", "miss"]

# Codes of failures that end a turn before a model was asked (`is_refusal`).
CONVERSATION_BUSY: Final = "conversation_busy"
DUPLICATE_REQUEST: Final = "duplicate_request"
NOT_ANSWERED: Final = frozenset({CONVERSATION_BUSY, DUPLICATE_REQUEST})


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds since the question was accepted, by the answering worker's clock."""

    started_ms: int = 0
    first_token_ms: int = 0
    total_ms: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a turn failed, for a person (``message``) and for a program (``code``)."""

    message: str
    code: str


def is_refusal(error: Failure | None) -> bool:
    """Return whether a turn that ended so was refused before a model was asked, and is in no conversation."""
    return error is not None and error.code in NOT_ANSWERED


@dataclass(frozen=True, slots=True)
class End:
    """The last record of a turn. Written as JSON into the text of a token of kind ``end``.

    ``model`` is the model server's own name of what answered, ``finish`` OpenAI's finish reason. ``retrieval``: what
    the search for passages came to, where there was one. ``cache``: ``exact`` or ``hit`` where the answer is that of
    an earlier question, the same or one that means the same; ``miss`` where there was none. ``gaps``: how many
    milliseconds lay between its tokens, as the bins of a sketch (`domain.sketches`).
    """

    outcome: Outcome
    model: str = ""
    finish: str = "stop"
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    error: Failure | None = None
    retrieval: Retrieval | None = None
    cache: Cache | None = None
    gaps: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """What the claim of a turn says; the first one becomes ``turn.started``. Written as JSON.

    ``model`` is the model as the client named it.
    """

    conversation_id: str
    model: str
