"""Ties an answer to the passages that it was given: how they stand in the prompt, and what ``[n]`` in the answer means.

Two things hold. What a document says never leaves its fence: it is shown as data, and whatever in it could close the
fence, or speak with the voice of a chat template, is taken out of it. And an answer cites only what it was given:
``[9]`` of five passages does not reach a reader.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from domain.knowledge import Citation, Found

NOT_ANSWERED: Final = "My documents do not answer this question."
WITHOUT_DOCUMENTS: Final = "(My documents are out of reach just now, so this answer does without them.)\n\n"

# [1], and what models make of it: [1, 2], [1; 2], [1-3], [ 1 ], [^1] and 【1】. Nobody cites a hundred passages, or one
# before the first: a range of longer numbers is one of years, and [0-9] are digits.
NUMBERS: Final = r"\^?(?:[1-9]\d? ?[-\N{EN DASH}] ?\^?\d{1,2}(?!\d)|\d{1,4})"
MARK: Final = re.compile(rf" ?[\[【] ?({NUMBERS}(?: ?[,;] ?{NUMBERS}){{0,15}}) ?[\]】]")
# A text that ends so may go on as a mark.
PERHAPS_MARK: Final = re.compile(" ?(?:[\\[【][\\d ,;^\N{EN DASH}-]{0,200}[\\]】]?)?\\Z")
PLAIN_MARK: Final = re.compile(r" ?\[\d+(?: ?, ?\d+)*\]")
NO_MARK: Final = frozenset("(+*{")
"""What follows tells a mark from a link, [1](https://…), and from a pattern, [1-9]+."""

FENCE: Final = re.compile(r"`+|~~~+")
# What chat templates end a message with, or begin another: <|im_end|>, [INST], [SYSTEM_PROMPT], <<SYS>>, </s>; and with
# marks that look like these to a reader, or are a template's own: <｜User｜>.
_LESS, _MORE, _BAR = "[<＜﹤‹〈⟨❮〈]", "[>＞﹥›〉⟩❯〉]", "[|｜￨∣│❘ǀ]"
CONTROL: Final = re.compile(
    rf"""{_LESS} {_BAR} [^|｜<>\n]{{0,40}} {_BAR} {_MORE}
      | [\[［] /? (?: INST | SYSTEM_PROMPT | AVAILABLE_TOOLS | TOOL_(?:CALLS|RESULTS|CONTENT) | THINK | ARGS | CALL_ID )
        [\]］]
      | {_LESS}{{2}} /? SYS {_MORE}{{2}} | [«《] /? SYS [»》]
      | {_LESS} /? s {_MORE} | {_LESS} (?: start | end ) _of_turn {_MORE}""",
    re.IGNORECASE | re.VERBOSE,
)
# What no person sees and a model reads: tag characters and variants of characters, which can spell out a text, reversed
# writing, spaces of no width, soft hyphens, fillers, control characters. Emoji keep the variant that makes them some.
_UNSEEN: Final = (
    "\U000e0000-\U000e0fff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\ufff0-\ufffb\uffa0\ufeff\ufe00-\ufe0d\u3164"
    "\u2060-\u206f\u202a-\u202e\u200b\u200e\u200f\u180b-\u180f\u17b4\u17b5\u115f\u1160\u061c\u034f\xad"
    "\x7f-\x9f\x00-\x08\x0b-\x1f"
)
# Persian and the scripts of India are written with joiners, and so are emoji: one between two characters that are not
# Latin stays. A second one joins nothing.
_JOINED: Final = f"[^\\x00-\u02ff\u200c\u200d{_UNSEEN}]"
UNSEEN: Final = re.compile(
    f"[{_UNSEEN}]|(?<!{_JOINED})[\u200c\u200d]|[\u200c\u200d](?!{_JOINED})|(?<=[\ufe0e\ufe0f])[\ufe0e\ufe0f]"
)
TAG: Final = re.compile(r"</?\s*passages?\b", re.IGNORECASE)


def citations_of(passages: Sequence[Found]) -> tuple[Citation, ...]:
    """Return the passages as what is cited, numbered from 1."""
    return tuple(
        Citation(n, found.passage.document_id, _headed(found), found.passage.url, found.passage.text)
        for n, found in enumerate(passages, 1)
    )


def _headed(found: Found) -> str:
    """Return a document's title, with the headings that lead to the passage."""
    passage = found.passage
    return " > ".join(filter(None, (passage.title, passage.path.removeprefix(passage.title).removeprefix(" > "))))


def fenced(citations: Iterable[Citation]) -> str:
    """Return the passages as a prompt shows them."""
    blocks = [
        f'<passage n="{each.n}" from="{_attribute(each.title)}">\n{_data(each.text)}\n</passage>' for each in citations
    ]
    return "<passages>\n" + "\n".join(blocks) + "\n</passages>"


def _attribute(text: str) -> str:
    return " ".join(_data(text).replace('"', "'").split())


def _data(text: str) -> str:
    """Return a text that stays within its fence, and that no chat template takes for more than text."""
    return TAG.sub(lambda tag: tag[0].replace("<", "‹"), CONTROL.sub(" ", UNSEEN.sub("", text)))


class CitationFilter:
    """Lets an answer through as it comes, without marks of passages that were not given.

    Within code nothing is a mark. Of ``[1, 9]`` the ``1`` stays, and other ways to write a mark become this one, which
    readers know. What may become a mark is held back until that is certain; after `close` nothing is. ``so_far``: what
    of the answer went through before.
    """

    __slots__ = ("_given", "_held", "_opened")

    def __init__(self, given: Iterable[int], so_far: str = "") -> None:
        self._given = frozenset(given)
        self._held = ""
        self._opened = ""  # the run of backticks or tildes that the code we are in began with
        _ = self._passed(so_far, "")

    def push(self, text: str) -> str:
        """Take the next piece of the answer; return what can be shown."""
        text = self._held + text
        end = self._certain(text)
        self._held = text[end:]
        return self._passed(text[:end], self._held)

    def close(self) -> str:
        """Return what is still held, when the answer has come to its end."""
        held, self._held = self._held, ""
        return self._passed(held, "")

    def _certain(self, text: str) -> int:
        """Return up to where it is known what the text is."""
        perhaps = PERHAPS_MARK.search(text)
        end = perhaps.start() if perhaps else len(text)
        # A run of backticks may go on, and three of them are other than two; so may one of line breaks.
        while end and text[end - 1] in "`~\n":
            end -= 1
        return end

    def _passed(self, text: str, following: str) -> str:
        shown, place = [], 0
        for fence in FENCE.finditer(text):
            shown.append(self._marked(text[place : fence.start()], "`"))
            shown.append(fence[0])
            self._toggle(fence[0])
            place = fence.end()
        return "".join([*shown, self._marked(text[place:], following)])

    def _marked(self, text: str, following: str) -> str:
        """Return a text between two fences, without the marks that mean nothing."""
        if self._opened:
            if len(self._opened) < 3 and "\n\n" in text:  # code in a line ends with its paragraph
                before, _, after = text.partition("\n\n")
                self._opened = ""
                return f"{before}\n\n{self._marked(after, following)}"
            return text
        return MARK.sub(lambda mark: self._kept(mark, text, following), text)

    def _kept(self, mark: re.Match[str], text: str, following: str) -> str:
        if (text[mark.end() :] + following)[:1] in NO_MARK:
            return mark[0]
        numbers = _numbers(mark[1])
        if not numbers:  # [9-1]
            return mark[0]
        given = [number for number in numbers if number in self._given]
        lead = " " if mark[0].startswith(" ") else ""
        if given == numbers and PLAIN_MARK.fullmatch(mark[0]):
            return mark[0]
        return f"{lead}[{', '.join(map(str, given))}]" if given else ""

    def _toggle(self, run: str) -> None:
        if not self._opened:
            self._opened = run if run[0] == "`" or len(run) >= 3 else ""
        elif run == self._opened or (len(self._opened) >= 3 and run.startswith(self._opened)):
            self._opened = ""


def without_note(text: str) -> str:
    """Return what of an answer the model has said: an answer that does without documents begins by saying so."""
    return text.removeprefix(WITHOUT_DOCUMENTS)


def without_marks(text: str) -> str:
    """Return an earlier answer without its marks, which named what was given then."""
    marks = CitationFilter(())
    return marks.push(text) + marks.close()


def _numbers(named: str) -> list[int]:
    """Return the numbers that stand in a mark; a range has all of its own."""
    numbers: list[int] = []
    for part in re.split("[,;]", named.replace("^", "")):
        first, _, last = part.replace("\N{EN DASH}", "-").partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def cited(answer: str, citations: Iterable[Citation]) -> list[Citation]:
    """Return the passages that an answer names, in their order."""
    named = {number for mark in MARK.finditer(answer) for number in _numbers(mark[1])}
    return [each for each in citations if each.n in named]
