"""Joins an interrupted answer to what the model says when it is asked to go on.

Servers differ in what they make of a text so far, and nothing in the protocol tells. So there are three ways:

``prefill``   it stands as the model's own half of a message, and the server continues it: what comes is the rest.
``perhaps``   the same request to a server of which that is not known: it continues the text, or begins anew.
``instruct``  it stands as an earlier message, and the model is told to repeat its last words and to go on.

Each way is a decision over the beginning of the new text, which is held back until the decision is certain. The
invariant: what is shown is the new text without some beginning of it, so no word of it can be lost later on.

What no comparison of texts can decide: whether a continuation that repeats the whole text so far means it (``ha``
after ``ha``), and whether a word that was cut in two goes on where an instructed model repeats nothing. The first is
read as a repetition, the second as a new word.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, Literal

from domain.prompt import Message, load_prompt

Way = Literal["prefill", "perhaps", "instruct"]

MIN_OVERLAP: Final = 8
"""Characters that an instructed model must repeat to be believed: shorter words occur in many places."""

LAST_WORDS: Final = 60
"""Characters that it is told to repeat: some ten words, which are seldom found twice in one answer."""

CONTINUE: Final = load_prompt("continue.v1")
FENCE: Final = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)
OPENING: Final = re.compile(r"\s*(?:```|~~~)[\w+#.-]*\n")
PERHAPS_OPENING: Final = re.compile(r"\s*(?:`{0,3}|~{0,3}|(?:```|~~~)[\w+#.-]*)")
WITH_LANGUAGE: Final = re.compile(r"\s*(?:```|~~~)[\w+#.-]+\n")
DECORATION: Final = re.compile(r"[\s\"'“”„‘’«».…]*")
QUOTES: Final = frozenset("\"'“”„‘’«»")
BEYOND_SPACED_SCRIPTS: Final = "\u2e80"  # from here on: Chinese, Japanese and others that put no spaces between words


def messages_to_continue(messages: Sequence[Message], so_far: str, way: Way) -> list[Message]:
    """Return what the model is to read so that it goes on with the text so far.

    White space at the text's end is left out: most chat templates drop it, some servers refuse it, and a model
    whose tokens bring their space along stumbles over it (after ``five, six, `` SmolLM2 writes ``7``, not ``seven``).
    """
    text = so_far.rstrip()
    if not text:
        return list(messages)
    resumed: list[Message] = [*messages, {"role": "assistant", "content": text}]
    if way == "instruct":
        resumed.append({"role": "user", "content": CONTINUE.text.format(last_words=last_words(text))})
    return resumed


def last_words(text: str) -> str:
    """Return the end of a text, from the beginning of a word on."""
    end = text[-LAST_WORDS:]
    return end if len(end) == len(text) else end.split(maxsplit=1)[-1]


class Join:
    """Passes on of the new text what follows the text so far. Pieces may be of any size."""

    __slots__ = ("_decide", "_held", "_so_far")

    def __init__(self, so_far: str, way: Way) -> None:
        self._so_far = so_far
        self._held = ""
        self._decide: Decide | None = WAYS[way] if so_far else None

    def push(self, text: str) -> str:
        """Take the next piece of the new text; return what may be shown now."""
        if self._decide is None:
            return text
        self._held += text
        return self._released(self._decide(self._so_far, self._held, False))

    def close(self) -> str:
        """Return what is still held when the model has come to its end.

        In general that is a beginning of the text so far, which stops there. An answer begun anew would have got
        further, as it did before, so this is a continuation that repeats some words. Where that is wrong, words
        are read twice; dropping them where it is right would lose the answer's last words.
        """
        return self._released(self._decide(self._so_far, self._held, True)) if self._decide is not None else ""

    def _released(self, shown: str | None) -> str:
        if shown is None:
            return ""
        self._decide = None
        return shown


Decide = Callable[[str, str, bool], str | None]
"""(the text so far, the new text as far as it is known, whether that is all of it) -> what to show of it, or None
while more has to be known."""


def continued(so_far: str, new: str, whole: bool) -> str | None:
    """Leave out the white space that the text so far ends with, as the model was not shown it."""
    unseen = so_far[len(so_far.rstrip()) :]
    common = 0
    while common < min(len(unseen), len(new)) and unseen[common] == new[common]:
        common += 1
    if common == len(new) < len(unseen) and not whole:
        return None
    return new[common:]


def continued_or_anew(so_far: str, new: str, whole: bool) -> str | None:
    """Leave out the text so far if the new text begins with it; if it departs from it earlier, it is a continuation."""
    if new.startswith(so_far):
        return new[len(so_far) :]
    if so_far.startswith(new) and not whole:
        return None
    return continued(so_far, new, whole)


def continued_as_told(so_far: str, new: str, whole: bool) -> str | None:
    """Leave out what the new text repeats: the last words, more than those, or everything from the beginning.

    White space, quotation marks and the fence of a code block around the repetition are what models add to it.
    """
    text = so_far.rstrip()
    if not text:
        return continued(so_far, new, whole)
    fence = 0
    if in_code := len(FENCE.findall(so_far)) % 2 == 1:
        if PERHAPS_OPENING.fullmatch(new) and not whole:
            return None
        fence = _length(OPENING, new)
    undecided, repeated = False, 0
    for start in {len(new) - len(new.lstrip()), fence + _length(DECORATION, new[fence:])}:
        overlap, more = _overlap(text, new[start:])
        undecided = undecided or more
        repeated = max(repeated, start + overlap if overlap else 0)
    if undecided and not whole:
        return None
    if not repeated:
        return _joined_without_overlap(so_far, new[_length(WITH_LANGUAGE, new) :] if in_code else new, whole)
    rest = new[repeated:]
    if new[0] in QUOTES and text[0] not in QUOTES:
        if not rest and not whole:
            return None
        rest = rest[1:] if rest[:1] in QUOTES else rest
    return continued(so_far, rest, whole)


WAYS: Final[dict[Way, Decide]] = {
    "prefill": continued,
    "perhaps": continued_or_anew,
    "instruct": continued_as_told,
}


def _overlap(text: str, new: str) -> tuple[int, bool]:
    """Return how many characters of ``new`` are the longest end of ``text``, and whether more may turn out to be.

    A run of white space equals any other.
    """
    ours, theirs = " ".join(text.split()), " ".join(new.split())
    if new[-1:].isspace():
        theirs += " "
    if len(theirs) < min(MIN_OVERLAP, len(ours)):
        return 0, not theirs or bool(_places(ours, theirs))
    longest, more = 0, False
    for place in _places(ours, theirs[:MIN_OVERLAP]):
        end = ours[place:]
        if len(end) < MIN_OVERLAP and place > 0:
            continue
        if theirs.startswith(end):
            longest = max(longest, len(end))
        elif end.startswith(theirs):
            more = True
    return _without_collapsing(new, longest), more


def _places(text: str, beginning: str) -> list[int]:
    """Return where a word of the text begins with this; a text shorter than that, if it does so itself."""
    if len(text) < len(beginning):
        return [0] if beginning.startswith(text) else []
    found, at = [], text.find(beginning)
    while at >= 0:
        if at == 0 or not one_word(text[at - 1], text[at]):
            found.append(at)
        at = text.find(beginning, at + 1)
    return found


def _without_collapsing(text: str, collapsed: int) -> int:
    """Return the length of the beginning that has so many characters once its white space is collapsed."""
    length = seen = 0
    while seen < collapsed:
        seen += not (text[length].isspace() and length > 0 and text[length - 1].isspace())
        length += 1
    return length


def _joined_without_overlap(so_far: str, new: str, whole: bool) -> str | None:
    """Join a new text that repeats nothing: a message begins without the space that the text would have had."""
    if not new.strip() and not whole:
        return None
    if new and one_word(so_far[-1], new[0]):
        return f" {new}"
    if so_far[-1] in ",;:.!?" and new[:1].isalnum() and new[:1] < BEYOND_SPACED_SCRIPTS:
        return f" {new}"
    return continued(so_far, new, whole)


def one_word(left: str, right: str) -> bool:
    """Tell whether two neighbouring characters belong to one word, as far as their script puts spaces between words."""
    return (left.isalnum() and right.isalnum()) and max(left, right) < BEYOND_SPACED_SCRIPTS


def _length(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.match(text)
    return match.end() if match else 0
