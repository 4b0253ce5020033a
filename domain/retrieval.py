"""Which passages answer a question: what is searched for, how two rankings become one, and how sure that makes us.

Words are searched for with the last question, and with little weight with the one before it: more of a conversation
drowns what is asked. Vectors are the place for the conversation, because they can be added: the question's own counts
most, beside that of the question after what the assistant said last, and after what the conversation began with. Then
the scores of the two rankings are brought to mean 0 and variance 1 and added. docs/knowledge.md has what each part is
worth.
"""

import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from math import exp, sqrt
from statistics import fmean
from typing import Any, Final, NamedTuple

from domain.conversation import tokens_in
from domain.grounding import NOT_ANSWERED, WITHOUT_DOCUMENTS
from domain.knowledge import Found

Ranking = dict[str, float]  # passage -> score, higher is better; best first
Messages = Sequence[Mapping[str, Any]]

DEPTH: Final = 100
"""Passages of each ranking. The mean and spread of fewer say less: with 30 the sum ranks worse than vectors alone."""

WORDS_OF_QUESTION: Final = 200
WORDS_OF_ANSWER: Final = 80
QUESTION_WEIGHT: Final = 2.0
EARLIER_WEIGHT: Final = 0.3
NEAR_SHARE: Final = 0.6
ALIKE: Final = 0.8
"""Share of words from which two passages say the same."""

BEST: Final = 5


class Query(NamedTuple):
    """A way to say what is searched for. ``weight``: how much its vector, or its words, count."""

    text: str
    weight: float


def queries(messages: Messages) -> list[Query]:
    """Return what the last question of a conversation is searched for by; the question itself is the first."""
    if not (asked := _asked(messages)):
        return []
    question = _cut(asked[-1], WORDS_OF_QUESTION)
    if len(asked) == 1:
        return [Query(question, QUESTION_WEIGHT)]
    said = [text for message in messages if message.get("role") == "assistant" and (text := _text(message))]
    # Of what it was about, our own notes say nothing. The question does that they were the answer to.
    last = said[-1].removeprefix(WITHOUT_DOCUMENTS.strip()).strip() if said else ""
    if said and last in {"", NOT_ANSWERED}:
        last = asked[-2]
    return [
        Query(question, QUESTION_WEIGHT),
        Query(f"{_cut(last, WORDS_OF_ANSWER)} {question}".strip(), 1.0),
        Query(f"{_cut(asked[0], WORDS_OF_QUESTION)} {question}", 1.0),
    ]


def keywords(messages: Messages) -> list[Query]:
    """Return what the last question of a conversation is searched for by in words."""
    asked = _asked(messages)[-2:][::-1]
    return [
        Query(_telling(_cut(text, WORDS_OF_QUESTION)), weight)
        for text, weight in zip(asked, (1.0, EARLIER_WEIGHT), strict=False)
    ]


def in_one(messages: Messages) -> str:
    """Return what the last question of a conversation asks as one text, for who reads it beside a passage.

    A question that leans on the conversation stands behind the one before it.
    """
    asked = _asked(messages)
    needed = asked[-1:] if stands_alone(messages) else asked[-2:]
    return " ".join(_cut(text, WORDS_OF_QUESTION) for text in needed)


def stands_alone(messages: Messages) -> bool:
    """Return whether the last question of a conversation asks the same without what came before it. In doubt not.

    That is a whole question with three words that say something, none that points at something said (it, the other
    one) or at who said it (my), and no "the" that leaves open of what ("the price", not so "the price of oil").
    """
    *before, question = _asked(messages) or [""]
    if not before:
        return bool(question)
    plain = OPENING.sub("", question)
    is_whole = bool(ASKING.match(plain)) and plain == question and len(set(words_in(question))) >= 3
    return is_whole and not POINTING.search(question)


def _asked(messages: Messages) -> list[str]:
    """Return what the user of a conversation said, without greetings and thanks on the way to the last question."""
    texts = [text for message in messages if message.get("role") == "user" and (text := _text(message))]
    return [text for text in texts[:-1] if words_in(text)] + texts[-1:]


def _telling(text: str) -> str:
    """Return a text without the words that every text has; all of it where it has no others."""
    # What stands together stays together: "chat.tokens.v1" is one word to Elasticsearch.
    return " ".join(word for word in text.split() if _tells(word.strip(PUNCTUATION))) or text


def combined(vectors: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Return the weighted sum of vectors, of length 1."""
    added = [0.0] * len(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        added = [sum_ + weight * number for sum_, number in zip(added, vector, strict=True)]
    length = sqrt(sum(x * x for x in added)) or 1.0
    return [x / length for x in added]


def fuse(words: Ranking, near: Ranking) -> list[tuple[str, float]]:
    """Return all passages of two rankings, best first, each with the sum of what it is worth in them.

    What stands in one ranking alone is worth in the other as much as the last one there.
    """
    parts = [(1 - NEAR_SHARE, _standard(words)), (NEAR_SHARE, _standard(near))]
    floors = [min(ranking.values(), default=0.0) for _, ranking in parts]
    totals = {
        key: sum(share * ranking.get(key, floor) for (share, ranking), floor in zip(parts, floors, strict=True))
        for key in words | near
    }
    return sorted(totals.items(), key=lambda each: (-each[1], each[0]))


def _standard(ranking: Ranking) -> Ranking:
    """Return scores with mean 0 and variance 1; all 0 where they are all the same."""
    if not ranking:
        return {}
    mean = fmean(ranking.values())
    spread = sqrt(fmean((score - mean) ** 2 for score in ranking.values()))
    return {key: (score - mean) / spread if spread > 1e-9 else 0.0 for key, score in ranking.items()}


def distinct(found: Iterable[Found]) -> Iterator[Found]:
    """Yield what was found without that which says again what stands before it."""
    kept: list[frozenset[str]] = []
    for each in found:
        said = _said(each.passage.text)
        # Shared words, as a share of all words of both, which are those of each without the shared ones once.
        if all((1 + ALIKE) * len(said & other) <= ALIKE * (len(said) + len(other)) for other in kept):
            kept.append(said)
            yield each


def by_document(found: Sequence[Found]) -> list[Found]:
    """Return the best passage of each document, and then the others."""
    seen: set[str] = set()
    firsts: list[Found] = []
    others: list[Found] = []
    for each in found:
        (others if each.passage.document_id in seen else firsts).append(each)
        seen.add(each.passage.document_id)
    return firsts + others


def within(found: Iterable[Found], *, count: int, tokens: int) -> list[Found]:
    """Return the first ``count`` that have about so many model tokens together; the first in any case."""
    kept: list[Found] = []
    for each in found:
        tokens -= tokens_in(each.passage.text)
        if len(kept) == count or (kept and tokens < 0):
            break
        kept.append(each)
    return kept


# -- how sure we are

# Logistic regression over what the best passages are like, on the questions of tests/data/mtrag that can and that
# cannot be answered from its passages (`python -m mlops.evaluate --fit`).
NEARNESS_WEIGHT: Final = 4.0
LEAD_WEIGHT: Final = 7.0
COVERAGE_WEIGHT: Final = 1.2
BIAS: Final = -3.4
USUAL_LEAD: Final = 0.2
"""How much nearer the best passage is than the last of ``DEPTH``: where there are fewer, these do not tell."""


class Evidence(NamedTuple):
    """What a search brought: the ranking by vectors, and the best passages in their order."""

    question: str
    near: Ranking
    found: Sequence[Found]


class Signs(NamedTuple):
    """What tells whether passages answer a question."""

    nearness: float
    lead: float
    coverage: float


def signs(evidence: Evidence) -> Signs:
    """Return what the vectors and words of the best passages tell; there have to be some."""
    best = evidence.found[:BEST]
    last = min(evidence.near.values(), default=0.0)
    nearness = evidence.near.get(best[0].passage_id, last)
    lead = nearness - last if len(evidence.near) >= DEPTH else USUAL_LEAD
    return Signs(nearness, lead, _coverage(evidence.question, best))


def confidence(evidence: Evidence) -> float:
    """Return how likely it is that the passages answer the question, from 0 to 1."""
    if not evidence.found:
        return 0.0
    told = signs(evidence)
    if not evidence.near:  # words alone have to tell
        return told.coverage
    speaks = NEARNESS_WEIGHT * told.nearness + LEAD_WEIGHT * told.lead + COVERAGE_WEIGHT * told.coverage + BIAS
    return 1 / (1 + exp(-speaks))


def _coverage(question: str, best: Sequence[Found]) -> float:
    """Return the largest share of the question's words that one passage has."""
    asked = frozenset(words_in(question))
    if not asked:
        return 1.0
    said = (_said(each.passage.text) | _said(each.passage.title) | _said(each.passage.path) for each in best)
    return max(len(asked & words) for words in said) / len(asked)


# -- words

WORD: Final = re.compile(r"[^\W_](?:[\w'-]*[^\W_])?")
# What every text has. The search leaves out less; this is for comparing.
COMMON: Final = frozenset(
    word
    for line in (
        "a about all also am an and another any are as at be been being but by can could did do does for from get",
        "give had has have he hello her hi his how i if in into is it its just know may me might more most much many",
        "must my no not of ok okay on or other our out please she should so some tell than thank thanks that the their",
        "them then there these they this those to us was we were what when where which who whom whose why will with",
        "would yes you your",
    )
    for word in line.split()
)
PUNCTUATION: Final = string.punctuation + "“”‘’„«»…–—"
ENDINGS: Final = ("ingly", "edly", "ing", "ied", "ies", "ed", "es", "ly", "s")


def words_in(text: str) -> list[str]:
    """Return the words of a text that say something, without their endings."""
    return [stem for word in WORD.findall(text) if (stem := _stem(word))]


@lru_cache(maxsize=1 << 10)  # the passages that are found for one question are found for others, too
def _said(text: str) -> frozenset[str]:
    return frozenset(words_in(text))


def _tells(word: str) -> bool:
    """Return whether a word says something by itself, as the US and IT do, and us and it do not."""
    return bool(word) and (word.lower() not in COMMON or (len(word) > 1 and word.isupper()))


@lru_cache(maxsize=1 << 14)  # a question compares 20 passages, on the loop that streams tokens
def _stem(word: str) -> str:
    """Return a word without its ending, "" for one that says nothing."""
    if not _tells(word):
        return ""
    word = word.lower()
    return next((word[: -len(end)] for end in ENDINGS if word.endswith(end) and len(word) - len(end) >= 3), word)


def _text(message: Mapping[str, Any]) -> str:
    """Return what a message says, "" where that is no text."""
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""


# A letter of a script that is written without spaces is searched for like a word, and so is a part of an endless one.
SEARCHED: Final = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]{1,64}"
)


def _cut(text: str, words: int) -> str:
    """Return the beginning of a text: Elasticsearch refuses a query of more than some thousand words."""
    end = 0
    for word in islice(SEARCHED.finditer(text), words):
        end = word.end()
    return " ".join(text[:end].split())


# -- what is asked

OPENING: Final = re.compile(
    r"^(?:(?:and|but|so|then|ok(?:ay)?|well|also|now|please|hi|hello|hey|yes|no|great|no worries|"
    r"thank(?:s| you)(?: (?:so|very) much| a lot)?|that(?:['’]s| is) (?:fine|ok(?:ay)?|great))[,!.\s]+)*",
    re.IGNORECASE,
)
# "Could you tell me where it is?" asks what "Where is it?" does, and not about the assistant.
POLITELY: Final = re.compile(
    r"\b(?:can|could|would|will) you (?:(?:please|just|also|kindly) )*"
    r"(?=(?:tell|show) me|give (?:me )?(?:more|some|the)|explain|describe|define|list|compare|clarify|find)|"
    r"\bdo you (?:happen to )?know (?=who|what|when|where|which|why|how|if|whether|about|of|the|any)|"
    r"\bwhat do you mean by\b",
    re.IGNORECASE,
)
ASKING: Final = re.compile(
    r"(?:who|whom|whose|what|when|where|which|why|how|is|are|was|were|do|does|did|can|could|should|would|will|has|have|"
    r"had|tell me (?:(?:some|a (?:bit|little)) )?(?:about|more|how|what|why|who|when|where|which|if|the difference)|"
    r"explain|describe|define|clarify|list|name|compare|show me|find|"
    r"give (?:me )?(?:more|some|the|all|any|an? (?:example|overview|definition|explanation|list))|"
    r"i (?:want|need|would like|'d like) to (?:know|understand|learn|find)|any (?:idea|information))\b",
    re.IGNORECASE,
)
# To the assistant or about the asker: no document would know.
PERSONAL: Final = re.compile(
    r"\b(?:my name|am i|do i (?:like|prefer|work|live|have|use)|did i|about me|who i am|know me|remember|"
    r"i (?:said|told|asked)|(?:are|were|do|did|can|could|will|would) you\b|you(?:r name| are|'re| can)|about you\b|"
    r"yourself|(?:this|our) conversation|"
    r"we (?:talk|discuss|said)\w*)\b",
    re.IGNORECASE,
)
# Something to be made, for which documents help but are not needed.
TASK: Final = re.compile(
    r"^(?:please\s+|(?:can|could|would|will) you (?:please )?)?(?:write|rewrite|translate|summari[sz]e|rephrase|"
    r"shorten|expand|continue|generate|create|draft|compose|correct|fix|refactor|count|calculate|convert|say|repeat|act|"
    r"imagine|pretend|answer|reply|respond|make (?:it|this|that)|use|stop|go on|thank)\b",
    re.IGNORECASE,
)
# What is meant by these has been said before, or depends on who says it.
POINTING: Final = re.compile(
    r"\b(?:it|its|itself|this|that|these|those|they|them|their|theirs|he|him|his|she|her|hers|there|then|here|one|ones|"
    r"such|so|same|other|others|another|else|more|less|most|least|both|either|neither|each|all|former|latter|above|"
    r"below|first|second|last|next|previous|earlier|later|again|still|also|too|instead|different|similar|"
    r"i|me|my|mine|we|us|our|ours|you|your|yours)\b|"
    r"\bthe\b(?! (?:[\w.'-]+ ){1,3}?of \w)|"
    r"\w+er than\b",
    re.IGNORECASE,
)
# Nothing but this is said to be polite, whatever mark stands behind it.
SMALL_TALK: Final = re.compile(
    r"(?:\W|\b(?:hi|hey|hello|good (?:morning|day|afternoon|evening)|and|so|ok(?:ay)?|well|really|right|sure|"
    r"seriously|what(?:['’]s| is) up|how(?:['’]s| is) (?:it|everything|life|your day)(?: going)?|"
    r"any(?:one|body) (?:there|here))\b)*",
    re.IGNORECASE,
)


def asks(utterance: str) -> bool:
    """Return whether somebody wants to know something that a document could say. In doubt not.

    Not so greetings, thanks, what people tell of themselves, and things to be written or done.
    """
    text = POLITELY.sub("", OPENING.sub("", " ".join(utterance.split()).strip("\"'“”„ ")))
    if PERSONAL.search(text) or TASK.match(text) or SMALL_TALK.fullmatch(text) or not words_in(text):
        return False
    return bool(ASKING.match(text)) or text.endswith("?")
