"""Cuts a document into passages: what is searched, given to a model and cited as one piece.

A document is Markdown, or plain text, which is Markdown without headings. It is cut where its structure is: a heading
begins a passage, and paragraphs, lists, tables and code stay whole as long as they fit. Small neighbours under the same
headings share a passage. What is too large is cut within: tables between rows, each part with the table's head; code
at blank lines, else between lines; prose between sentences and the items of a list, with some overlap, so that no
thought is torn in two for every reader. The line breaks of a paragraph stay, and none of them ends a sentence.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

MOST: Final = 200
"""Model tokens of a passage. Common embedding models read 256, headings among them, and ignore what follows."""

BESIDE: Final = 25
"""Model tokens of title and headings that fit beside a passage of ``MOST`` into what a model reads, though our count is
13 % too low. More of them leave less for the text, but half of it in any case."""

OVERLAP: Final = 30

LONGEST_TOKEN: Final = 8  # characters

LONGEST_HEADING: Final = 300
"""Characters. A longer line is prose: every passage under a heading carries it."""

Count = Callable[[str], int]
Kind = Literal["heading", "code", "table", "prose"]

HEADING: Final = re.compile(r" {0,3}(#{1,6})(?:[ \t]+|$)")
UNDERLINE: Final = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})")
ROW: Final = re.compile(r"[ \t]*\|.*\|[ \t]*$")
BLANK_LINES: Final = re.compile(r".+?\n(?:[ \t]*\n)+|.+\Z", re.DOTALL)
RULE: Final = re.compile(r"[ \t]*\|?(?:[ \t]*:?-+:?[ \t]*\|)+[ \t]*(?::?-+:?)?[ \t]*$")
WORD: Final = re.compile(r"[^\W_]+|[^\w\s]|_")
UNIT_END: Final = re.compile(
    r"""[.!?][\"'”’)\]]*\s+ | [。！？｡][\"'”’」』）)\]]*\s* | \n(?=[ \t]*(?:[-*+•]|[0-9]{1,9}[.)])[ \t])""", re.VERBOSE
)
"""The end of a sentence, after which some scripts have no space, or of a list's item."""

NUMBER: Final = re.compile(r"\s*[0-9]{1,9}[.)]\s*")


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage of a document. ``path``: its headings, outermost first, joined by " > "."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a document that belongs together."""

    kind: Kind
    text: str
    level: int = 0


def model_tokens(text: str) -> int:
    """Return about how many tokens an embedding model makes of a text.

    Those of the BERT family read a common word as one, a rare one as several, and letters of other scripts, marks and
    digits singly. Of 900 characters of prose, Markdown and Python each, 99 % were within 13 % of MiniLM's own count.
    """
    return sum(
        len(word) if not word.isascii() else 1 if len(word) <= 6 else 1 + (len(word) - 4) // 3
        for word in WORD.findall(text)
    )


def split(
    text: str, title: str = "", *, most: int = MOST, overlap: int = OVERLAP, count: Count = model_tokens
) -> list[Piece]:
    """Return a document's passages in their order, each of ``most`` model tokens at most, as ``count`` has it.

    ``title`` is what stands before each; where there is none, the first heading will.
    """
    pieces: list[Piece] = []
    for path, blocks in _sections(text):
        above = count(title or path.partition(" > ")[0]) + count(path)
        cut = Cut(max(most - max(0, above - BESIDE), most // 2), overlap, count)
        pieces += (Piece(path, part) for part in cut.packed(blocks) if part.strip())
    return pieces


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the blocks of a document in their order."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    place, prose = 0, list[str]()
    while place < len(lines):
        block, end = _block_at(lines, place, prose)
        if block is None:
            prose.append(lines[place])
            if not lines[place].strip():
                yield from _prose(prose)
                prose = []
        else:
            if block.level and end == place + 1 and UNDERLINE.fullmatch(lines[place]) and prose:
                prose.pop()
            yield from _prose(prose)
            prose = []
            yield block
        place = end
    yield from _prose(prose)


def _block_at(lines: Sequence[str], place: int, before: Sequence[str]) -> tuple[Block | None, int]:
    """Return the heading, code or table that begins at a line, and where it ends; None if there is none."""
    line = lines[place]
    if (heading := HEADING.match(line)) and len(line) <= LONGEST_HEADING:
        return Block("heading", _unclosed(line[heading.end() :]), len(heading[1])), place + 1
    if (rule := UNDERLINE.fullmatch(line)) and len(before) == 1 and 0 < len(before[0].strip()) <= LONGEST_HEADING:
        return Block("heading", before[0].strip(), 1 if rule[1][0] == "=" else 2), place + 1
    if fence := FENCE.match(line):
        end = place + 1
        while end < len(lines) and not re.match(rf" {{0,3}}{fence[1][0]}{{{len(fence[1])},}}[ \t]*$", lines[end]):
            end += 1
        end = min(end + 1, len(lines))
        return Block("code", "\n".join(lines[place:end])), end
    if ROW.fullmatch(line) and place + 1 < len(lines) and RULE.fullmatch(lines[place + 1]):
        end = place + 2
        while end < len(lines) and ROW.fullmatch(lines[end]):
            end += 1
        return Block("table", "\n".join(lines[place:end])), end
    return None, place + 1


def _unclosed(heading: str) -> str:
    """Return a heading without the number signs that may close it. One within a word belongs to it: C#."""
    text = heading.strip()
    bare = text.rstrip("#")
    return bare.rstrip() if not bare or bare[-1].isspace() else text


def _prose(lines: Sequence[str]) -> Iterator[Block]:
    text = "\n".join(lines).strip("\n")
    if text.strip():
        yield Block("prose", text)


def _sections(text: str) -> Iterator[tuple[str, list[Block]]]:
    """Yield what stands under each heading, with the headings that lead there."""
    path: list[tuple[int, str]] = []
    blocks: list[Block] = []
    for block in blocks_of(text):
        if block.kind != "heading":
            blocks.append(block)
            continue
        if blocks:
            yield _joined(path), blocks
            blocks = []
        elif path and block.level <= path[-1][0]:
            yield _joined(path), [Block("prose", path[-1][1])]  # a heading with nothing under it says itself
        while path and path[-1][0] >= block.level:
            path.pop()
        path.append((block.level, block.text))
    if blocks or path:
        yield _joined(path), blocks or [Block("prose", path[-1][1])]


def _joined(path: Sequence[tuple[int, str]]) -> str:
    return " > ".join(text for _, text in path if text)


@dataclass(frozen=True, slots=True)
class Cut:
    """How blocks become passages. Counts of parts are added up, so that a long text is counted once."""

    most: int
    overlap: int
    count: Count

    def packed(self, blocks: Sequence[Block]) -> Iterator[str]:
        """Yield blocks as passages: as many of them together as fit, and those that fit in none in parts."""
        packed: list[str] = []
        size = 0
        for block in blocks:
            parts = [block.text] if self.count(block.text) <= self.most else self._parts(block)
            for part in parts:
                if packed and (part is not parts[0] or size + self.count(part) > self.most):
                    yield "\n\n".join(packed)
                    packed, size = [], 0
                packed.append(part)
                size += self.count(part)
        if packed:
            yield "\n\n".join(packed)

    def _parts(self, block: Block) -> list[str]:
        """Return a block that is too large in parts."""
        match block.kind:
            case "table":
                head, rows = _lines(block.text)[:2], _lines(block.text)[2:]
                room = self.most - self.count("".join(head))
                if rows and room > self.most // 4:
                    return ["".join([*head, part]) for part in self._grouped(rows, room, 0)]
                return self._grouped([*head, *rows], self.most, 0)
            case "code":
                return self._grouped(BLANK_LINES.findall(block.text), self.most, 0)
            case _:
                return self._grouped(_sentences(block.text), self.most, self.overlap)

    def _grouped(self, units: Sequence[str], most: int, overlap: int) -> list[str]:
        """Return units in groups that fit; each but the first begins with the last units of the one before."""
        return [group.rstrip() for group in self._groups(units, most, overlap)]

    def _groups(self, units: Sequence[str], most: int, overlap: int) -> list[str]:
        """Return units, each with the space behind it, in groups that fit without the space at their end."""
        groups: list[str] = []
        group: list[tuple[str, int]] = []
        for unit in (bite for each in units for bite in self._bites(each, most)):
            size = self.count(unit.rstrip())
            if group and sum(each for _, each in group) + size > most:
                groups.append("".join(text for text, _ in group))
                group = _tail(group, min(overlap, most - size))
            group.append((unit, size))
        return [*groups, "".join(text for text, _ in group)]

    def _bites(self, unit: str, most: int) -> Iterator[str]:
        """Yield a unit whole, or, if it alone is too large, line by line, else word by word, as much as fits."""
        if self.count(unit.rstrip()) <= most:
            yield unit
        elif "\n" in unit.rstrip():
            yield from self._groups(_lines(unit), most, 0)
        else:
            words = [bite for word in re.findall(r"^\s+|\S+\s*", unit) for bite in self._torn(word, most)]
            yield from self._grouped_words(words, most)

    def _grouped_words(self, words: Sequence[str], most: int) -> Iterator[str]:
        """Yield words, with the space behind each, as much as fits."""
        bite, size = "", 0
        for word in words:
            if bite and size + self.count(word) > most:
                yield bite
                bite, size = "", 0
            bite += word
            size += self.count(word)
        if bite:
            yield bite

    def _torn(self, word: str, most: int) -> Iterator[str]:
        """Yield a word whole, or, if it is too large (a script without spaces, encoded data), in parts that fit."""
        if self.count(word) <= most:
            yield word
            return
        start = 0
        while start < len(word):
            part = word[start : start + LONGEST_TOKEN * most]
            while (size := self.count(part)) > most and len(part) > 1:
                part = part[: max(1, min(len(part) - 1, len(part) * most // size))]
            yield part
            start += len(part)


def _lines(text: str) -> list[str]:
    """Return the lines of a text, each with its end."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def _sentences(text: str) -> list[str]:
    """Return the sentences of a paragraph and the items of a list, each with the space behind it."""
    units, start = [], 0
    for end in UNIT_END.finditer(text):
        if not NUMBER.fullmatch(text, start, end.end()):  # of a list: it stays with its item
            units.append(text[start : end.end()])
            start = end.end()
    return [*units, text[start:]] if text[start:].strip() else units


def _tail(group: Sequence[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    """Return the last units of a group that have so many model tokens at most, never all of them."""
    tail: list[tuple[str, int]] = []
    for unit in reversed(group[1:]):
        if sum(size for _, size in [unit, *tail]) > most:
            break
        tail.insert(0, unit)
    return tail
