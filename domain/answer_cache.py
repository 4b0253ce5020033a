"""Which answer may stand for another question's: the same question, of someone who was given the same passages.

An answer rests on its question, the passages that its model was given, the instructions and the model. So it is kept
under all four and found only by who has all four in hand again (`place_of`). That alone keeps what nobody may get: the
lookup comes after a search with the asker's own rights, and whoever was given a passage may read it. A document that
was changed, deleted, made private or newly learned gives other passages, or has another version, and so another place.
Nothing has to be told.

Two questions are the same if their words are. Else their vectors have to be near each other, and `meant` alike: vectors
alone put "how do I enable it" next to "how do I disable it", and an answer to another question is worse than none.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from json import dumps
from typing import Any, Final, Literal, NamedTuple

from domain.generation import Usage
from domain.grounding import citations_of, cited
from domain.knowledge import Found, Reader, Retrieved

Sharing = Literal["off", "user", "tenant", "public"]

WORDS_A_PIECE: Final = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """What decides about a question whether an answer may be shared.

    ``prompt``: the name of our instructions, or the client's own in full. ``model``: the name of what answers.
    ``follows``: what was said before may make it another question. ``is_again``: a user wants another answer
    (regenerate, edit). ``is_personal``: it tells something of the user, or what is known of the user goes into the
    prompt. ``options``: the client's.
    """

    reader: Reader
    question: str
    retrieved: Retrieved
    prompt: str
    model: str
    follows: bool = False
    is_again: bool = False
    is_personal: bool = False
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the answer to a question is kept. Answers of one ``shelf`` differ in their questions alone.

    ``question``: in the form that questions are compared in. ``asked``: as it was asked, which is what the search for
    its passages has had a vector of. ``is_exact``: only for the very same question. ``model``: what else would answer.
    """

    shelf: str
    question: str
    asked: str = field(compare=False)
    is_exact: bool = False
    model: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """Return what no other question has, nor this one elsewhere."""
        return _digest(self.shelf, self.question)


class Source(NamedTuple):
    """The turn that an answer comes from."""

    tenant: str
    user: str
    conversation_id: str
    turn_id: str


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer as it is kept. ``passage_ids``: as the marks in it number them. ``usage``: what it cost."""

    question: str
    answer: str
    passage_ids: tuple[str, ...]
    usage: Usage
    turn_id: str


@dataclass(frozen=True, slots=True)
class Cached:
    """An answer that was found. ``passages``: those of the present search, as the marks in it number them."""

    kind: Literal["exact", "hit"]
    answer: str
    passages: tuple[Found, ...]
    saved: Usage
    turn_id: str


def place_of(asked: Asked, sharing: Sharing) -> Place | None:
    """Return where the question's answer is looked for and kept; None if it may be neither."""
    question = _said(asked.question)
    owner = _owner(asked.reader, asked.retrieved, sharing)
    if owner is None or not question or asked.follows or asked.is_again or asked.is_personal or asked.options:
        return None
    shelf = _digest(owner, _versions(asked.retrieved.passages), asked.prompt, asked.model)
    return Place(shelf, question, asked.question, is_exact=not asked.retrieved.passages, model=asked.model)


def _owner(reader: Reader, retrieved: Retrieved, sharing: Sharing) -> list[str] | None:
    """Return who shares the answer; None if nobody does.

    Every document is a tenant's, so answers that rest on documents stay in it. `public` shares besides what rests on no
    document at all, and that for the very same words only: whoever reads it has then said all that is in it.
    """
    own = ["user", *reader]
    match sharing, retrieved.outcome:
        case "user", "found":
            return own
        case "tenant" | "public", "found":
            is_public = all(found.is_public for found in retrieved.passages)
            return ["tenant", reader.tenant] if is_public else own
        case "public", "empty":
            return ["public"]
    return None


def may_be_kept(retrieved: Retrieved, answer: str, *, outcome: str, finish: str) -> bool:
    """Return whether an answer is whole, and names a passage where it was given some."""
    if outcome != "completed" or finish != "stop" or not answer.strip():
        return False
    return not retrieved.passages or bool(cited(answer, citations_of(retrieved.passages)))


def served(kept: Kept, place: Place, retrieved: Retrieved) -> Cached | None:
    """Return a kept answer as the one to this question, if it is."""
    found = {each.passage_id: each for each in retrieved.passages}
    if found.keys() != set(kept.passage_ids):
        return None
    if kept.question != place.question and (place.is_exact or not _same(kept.question, place.question, retrieved)):
        return None
    kind: Literal["exact", "hit"] = "exact" if kept.question == place.question else "hit"
    passages = tuple(found[passage_id] for passage_id in kept.passage_ids)
    return Cached(kind, kept.answer, passages, kept.usage, kept.turn_id)


def _same(one: str, other: str, retrieved: Retrieved) -> bool:
    known = vocabulary(each.passage.text for each in retrieved.passages)
    words = meant(one, known)
    return bool(words) and words == meant(other, known)


# -- what a question means, as far as its words say


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Two questions may differ in these, though passages are full of them.
GLUE: Final = _listed(
    "a an the this that these those there please hi hello hey thanks thank so well just also actually really exactly"
    " i you we us it its is are am be been being do does can could would might want wanted like know wonder wondering"
    " tell explain describe show me about of in on at for to with as and what which if whether some any"
)
# These turn a question into another one, whether or not a passage has them.
TURNING: Final = _listed(
    "not no never none nothing nobody neither nor without except but only before after until since during from into by"
    " than more less most least fewer over under above below up down out off all every each both either first last next"
    " previous new old minimum maximum min max best worst highest lowest higher lower largest smallest always usually"
    " often was were did had has have will must should need may how who whom whose when where why my mine your yours"
    " our ours his her hers he she they them their"
    " instead versus vs or again still yet now today tomorrow yesterday enable disable allow forbid start stop add"
    " remove increase decrease open close buy sell long short high low big small fast slow many much early late"
    " one two three four five six seven eight nine ten"
)
CONTRACTIONS: Final = ((re.compile(r"\bcan'?not\b|\bcan't\b"), "can not"), (re.compile(r"\bwon't\b"), "will not"),
                       (re.compile(r"n't\b"), " not"), (re.compile(r"'(?:s|re|m|d|ve|ll)\b"), ""))  # fmt: skip
WORD: Final = re.compile(r"[^\s,;:!?\"()\[\]{}<>…]+")


def meant(question: str, known: Collection[str]) -> tuple[str, ...]:
    """Return the words of a question that decide what it asks, in their order.

    These are what turns it (negations, times, directions, persons), what is written in an odd way (numbers, names,
    codes), and what stands in the passages, whose words are ``known``: what the passages tell apart has to be the same.
    """
    return tuple(word for word, is_odd in _words(question) if is_odd or word in TURNING or word in known)


def vocabulary(texts: Iterable[str]) -> frozenset[str]:
    """Return the words of passages that may decide a question."""
    return frozenset(word for text in texts for word, _ in _words(text)) - GLUE


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each word in its plain form, and whether it is more than letters or has capitals where none belong."""
    text = text.replace("’", "'")
    for contraction, plain in CONTRACTIONS:
        text = contraction.sub(plain, text)
    for place, match in enumerate(WORD.finditer(text)):
        word = match[0].rstrip(".'").lstrip(".'")
        if word in {"I", "i", "a"} or (word == "A" and place == 0):
            yield word.lower(), False
        elif word.isalpha() and (word[1:].islower() or _may_be_lowered(word)):
            yield _singular(word.lower()), place > 0 and word[0].isupper()
        elif word:
            yield word, True


def _may_be_lowered(word: str) -> bool:
    """Return whether an abbreviation is no other word in small letters, as US, IT and WHO are."""
    return len(word) > 1 and word.isupper() and word.lower() not in GLUE | TURNING


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] not in "siu" else word


def _said(question: str) -> str:
    """Return a question without what nobody would hear. Capitals stay: of options and codes they are half the name."""
    return " ".join(unicodedata.normalize("NFC", question).split()).rstrip("?.! ")


# -- replaying


def pieces(answer: str) -> Iterator[str]:
    """Yield an answer in pieces of a few words, as a quick model would write it. Together they are the answer."""
    words = re.findall(r"\s*\S+|\s+\Z", answer)
    for start in range(0, len(words), WORDS_A_PIECE):
        yield "".join(words[start : start + WORDS_A_PIECE])


def _versions(passages: Sequence[Found]) -> list[tuple[str, str, int]]:
    """Return which passages of which versions of documents these are, in whatever order they were found."""
    return sorted((found.passage_id, found.passage.document_id, found.passage.version) for found in passages)


def _digest(*parts: object) -> str:
    """Return a name for parts that no other parts have. JSON tells them apart, whatever is in them."""
    return blake2b(dumps(parts).encode(), digest_size=20).hexdigest()
