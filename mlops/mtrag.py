"""The questions and passages that retrieval is measured on: tests/data/mtrag.jsonl.gz, of IBM's MTRAG benchmark.

Real conversations of several turns over government, cloud, finance and encyclopaedia texts. Each ends in a question of
which people have said whether the passages answer it, and which ones do.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

DATA: Final = Path(__file__).resolve().parents[1] / "tests/data/mtrag.jsonl.gz"

Answerability = Literal["answerable", "partial", "unanswerable", "underspecified", "conversational"]


@dataclass(frozen=True, slots=True)
class Text:
    """A passage of the benchmark, which is a document to us."""

    passage_id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """The last question of a conversation. ``messages``: all of it, in OpenAI's form. ``relevant``: passage ids."""

    question_id: str
    conversation: str
    answerability: Answerability
    relevant: frozenset[str]
    messages: tuple[dict[str, str], ...]

    @property
    def is_follow_up(self) -> bool:
        """Return whether questions come before it."""
        return sum(message["role"] == "user" for message in self.messages) > 1


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All of it."""

    texts: tuple[Text, ...]
    questions: tuple[Asked, ...]


def load() -> Benchmark:
    """Return the benchmark."""
    texts, questions = [], []
    for line in _lines():
        if "passage" in line:
            texts.append(Text(line["passage"], line["title"], line["text"]))
        else:
            messages = tuple({"role": role, "content": content} for role, content in line["messages"])
            questions.append(
                Asked(
                    line["question"],
                    line["conversation"],
                    line["answerability"],
                    frozenset(line["relevant"]),
                    messages,
                )
            )
    return Benchmark(tuple(texts), tuple(questions))


def _lines() -> Iterator[dict[str, Any]]:
    with gzip.open(DATA, "rb") as file:
        for line in file:
            yield msgspec.json.decode(line)
