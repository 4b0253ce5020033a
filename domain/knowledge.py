"""What the assistant knows from documents: passages, who may read them, and what was found for a question.

A document belongs to a tenant. It is cut into passages, which are what is searched, given to the model and cited.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

EVERYONE = "*"  # in a list of readers: every user of the tenant

Retrieval = Literal["found", "weak", "empty", "unavailable"]


class Reader(NamedTuple):
    """Whose search it is. Nothing that this user of this tenant may not read is ever found."""

    tenant: str
    user: str


@dataclass(frozen=True, slots=True)
class DocumentStatus:
    """What is known of a document, without its text. Times are Unix ms. ``readers``: none means all of the tenant."""

    document_id: str
    tenant: str
    user: str
    title: str = ""
    url: str = ""
    media_type: str = ""
    readers: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    status: Literal["queued", "learned", "failed"] = "queued"
    error: str = ""
    passages: int = 0
    created_at: int = 0
    updated_at: int = 0

    def may_be_read_by(self, reader: Reader) -> bool:
        """Return whether somebody may know of it."""
        return self.tenant == reader.tenant and (not self.readers or reader.user in {self.user, *self.readers})


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document. ``path``: the headings that lead to it, outermost first, joined by " > ".

    ``version``: the document's, which is another whenever that was learned from another record.
    """

    document_id: str
    title: str
    path: str
    text: str
    url: str = ""
    position: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that was found. ``score`` orders those of one search and compares with no other search's.

    ``is_public``: every user of the tenant may read it.
    """

    passage_id: str
    passage: Passage
    score: float
    is_public: bool = True


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What a search came to.

    ``outcome``: ``found``; ``weak``: passages, but none that is likely to answer; ``empty``: the user may read no
    document at all; ``unavailable``: the documents were out of reach or took too long. ``confidence``: how likely
    it is that the passages answer the question, 0 to 1.
    """

    outcome: Retrieval
    passages: tuple[Found, ...] = ()
    confidence: float = 0.0


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that was given to the model as number ``n``: what ``[n]`` in an answer means."""

    n: int
    document_id: str
    title: str
    url: str
    text: str
