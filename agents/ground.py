"""question -> conversation, documents, memory -> what the model reads

Everything an answer needs besides the model is gathered here, at once: the turns that lead to the question, the
passages that its user may read, and what is known of the user. What has been written of an answer decides what the
rest of it reads: a resumed answer goes on with the passages that the log says it was given, and searches no more.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from agents.recall import recall
from domain import prompt
from domain.answer_cache import Asked, Place, pieces
from domain.conversation import parent_of_next, path_to
from domain.grounding import NOT_ANSWERED, WITHOUT_DOCUMENTS, citations_of, fenced, without_marks
from domain.knowledge import Citation, Reader, Retrieval, Retrieved
from domain.memory import is_about_user
from domain.prompt import Context, Message
from domain.retrieval import asks, stands_alone
from domain.tokens import TurnInLog
from domain.told import told_in
from domain.turns import Cache
from streams.app import app
from streams.records import Question
from tables import conversations

INSTRUCTIONS: Final = prompt.load_prompt()
GROUNDED: Final = prompt.load_prompt("grounded.v1")
HEADRACE: Final = "headrace"  # the model name that means: the default model, with our instructions and documents

NOTHING: Final = Retrieved("empty")


@dataclass(frozen=True, slots=True)
class Seed:
    """What an answer grows from.

    ``pieces``: what is written before the model says a word; if ``is_whole``, that is the answer, and no model is
    asked. Both are of answers that have not begun. ``has_marks``: what reads as a mark in it is one, of a passage that
    was given or of none; else nobody could have written any, and ``[3, 1, 2]`` is a list. ``place``: where the answer
    may be kept for others, with what it rests on (``retrieved``).
    """

    messages: Sequence[Message]
    citations: tuple[Citation, ...] = ()
    retrieval: Retrieval | None = None
    pieces: tuple[str, ...] = ()
    is_whole: bool = False
    has_marks: bool = False
    cache: Cache | None = None
    place: Place | None = None
    retrieved: Retrieved = NOTHING


async def seed(question: Question, logged: TurnInLog, model: str) -> Seed:
    """Gather what a question's answer needs. Raises `Rejected` if its conversation is not the asker's."""
    await app.settled()
    asked = _Asked(question)
    if has_begun(logged):
        given = citations_in(logged)
        await asked.recall()
        is_whole = logged.text == NOT_ANSWERED
        found: Retrieval | None = "found" if given else None
        return Seed(asked.messages(given), given, found, is_whole=is_whole, has_marks=asked.has_marks(given))
    retrieved, _ = await asyncio.gather(asked.retrieved(model), asked.recall())
    if retrieved.outcome == "weak" and asked.is_for_documents():
        return Seed((), (), retrieved.outcome, (NOT_ANSWERED,), is_whole=True)
    grounded = await _from_cache(asked, retrieved, model)
    if grounded is not None and grounded.is_whole:
        return grounded
    given = citations_of(retrieved.passages) if retrieved.outcome == "found" else ()
    note = (WITHOUT_DOCUMENTS,) if retrieved.outcome == "unavailable" and asks(question.input) else ()
    outcome = retrieved.outcome if asked.is_searched else None
    fresh = Seed(asked.messages(given), given, outcome, note, has_marks=asked.has_marks(given))
    return fresh if grounded is None else replace(fresh, cache="miss", place=grounded.place, retrieved=retrieved)


async def _from_cache(asked: "_Asked", retrieved: Retrieved, model: str) -> Seed | None:
    """Return the answer to an earlier question, or where this one's may be kept; None if it may be neither."""
    question = asked.question
    place = app.services.answer_cache.place(
        Asked(
            reader=asked.reader,
            question=question.input,
            retrieved=retrieved,
            prompt=asked.instructions() or (GROUNDED if retrieved.passages else INSTRUCTIONS).name,
            model=model,
            follows=not asked.stands_alone(),
            is_again=bool(question.beside),
            is_personal=bool(asked.facts or told_in(question.input)) or not asked.is_searched,
            options=question.options or None,
        )
    )
    if place is None:
        return None
    cached = await app.services.answer_cache.find(place, retrieved)
    if cached is None:
        # What the model reads of a conversation may be in its answer: that one is for nobody else.
        return Seed((), place=place if asked.is_first() else None)
    given = citations_of(cached.passages)
    return Seed((), given, retrieved.outcome, tuple(pieces(cached.answer)), is_whole=True, cache=cached.kind)


def is_bare(question: Question) -> bool:
    """Return whether a model is asked by its own name: then it answers without documents and without memory."""
    return question.model not in {"", HEADRACE}


def prompt_of(question: Question, given: Sequence[Citation]) -> str:
    """Return the name of the instructions of ours that a model reads, "" where it reads none of them."""
    if question.messages and not prompt.is_instructed(question.messages, bare=is_bare(question)):
        return ""
    return (GROUNDED if given else INSTRUCTIONS).name


def has_begun(logged: TurnInLog) -> bool:
    """Return whether the log has more of a turn than that it was taken up."""
    return logged.fold.next > 1


def citations_in(logged: TurnInLog) -> tuple[Citation, ...]:
    """Return the passages that the log says a turn was given."""
    for piece in logged.pieces[1:2]:
        if piece.kind == "citations":
            return msgspec.json.decode(piece.text, type=tuple[Citation, ...])
    return ()


class _Asked:
    """A question, with the turns that lead to it."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.reader = Reader(question.tenant, question.user)
        self.is_searched = app.settings.retrieval == "on" and not is_bare(question) and bool(question.input.strip())
        self.parent, self.path = ("", ()) if question.messages else _path(question)
        self.facts: Sequence[str] = ()

    async def recall(self) -> None:
        """Look up what is known of the user, unless a bare model is asked."""
        if not is_bare(self.question):
            self.facts = await recall(self.question)

    async def retrieved(self, model: str) -> Retrieved:
        """Search for passages, if any are to be searched for."""
        settings = app.settings
        if not self.is_searched:
            return NOTHING
        return await app.services.retriever.find(
            self.reader,
            self.said(),
            k=settings.passages,
            threshold=settings.threshold(model, HEADRACE),
            tokens=min(settings.passage_tokens, settings.context_tokens // 2),
        )

    def said(self) -> list[Message]:
        """Return the conversation up to the question, in OpenAI's form."""
        if self.question.messages:
            return [message for message in self.question.messages if message.get("role") in {"user", "assistant"}]
        said: list[Message] = []
        for turn in self.path:
            said += ({"role": "user", "content": turn.input}, {"role": "assistant", "content": turn.answer})
        return [*said, {"role": "user", "content": self.question.input}]

    def has_marks(self, given: Sequence[Citation]) -> bool:
        """Return whether an answer may have marks: of passages that it is given, or copied from an earlier answer."""
        earlier = (str(message["content"]) for message in self.said() if message["role"] == "assistant")
        return self.is_searched and (bool(given) or any(without_marks(text) != text for text in earlier))

    def is_first(self) -> bool:
        """Return whether nothing was said before the question."""
        return not self.parent and len(self.said()) == 1

    def stands_alone(self) -> bool:
        """Return whether the question asks the same, and is to be answered the same, without what was said before.

        In doubt not; so where some of that is not at hand, told something of the user or how to answer.
        """
        said, before = self.said(), self.path[0].parent if self.path else self.parent
        if before or said[-1]["role"] != "user":
            return False
        earlier = [str(message["content"]) for message in said[:-1] if message["role"] == "user"]
        return stands_alone(said) and all(asks(text) and not told_in(text) for text in earlier)

    def instructions(self) -> str:
        """Return what a client's own instructions are, and whoever it names: nothing else is the same."""
        messages = self.question.messages
        own = [each for each in messages if each.get("role") in prompt.OF_SYSTEM or each.get("name")]
        return msgspec.json.encode(own).decode() if own else ""

    def is_for_documents(self) -> bool:
        """Return whether documents would have to answer: no task, no small talk, not the user, no tool at hand."""
        text = self.question.input
        return asks(text) and not is_about_user(text) and not self.question.options.get("tools")

    def messages(self, given: Sequence[Citation]) -> list[Mapping[str, Any]]:
        """Return what the model is to read."""
        question = self.question
        instructions = GROUNDED if given else INSTRUCTIONS
        summary = conversations.summary_for(question, self.path, self.parent) if self.parent else ""
        context = Context(passages=fenced(given) if given else "", summary=summary, facts=self.facts)
        if question.messages:
            return prompt.for_client(instructions, question.messages, bare=is_bare(question), context=context)
        return prompt.for_conversation(
            instructions,
            self.path,
            question.input,
            budget=app.settings.context_tokens,
            context=context,
            characters_per_token=app.services.model.counts.characters_per_token(app.settings.model),
        )


def _path(question: Question) -> tuple[str, Sequence[conversations.KeptTurn]]:
    """Return the turn that a question follows, and the turns up to it that are at hand."""
    turns = conversations.context(question)
    parent = parent_of_next(turns, question.beside, question.parent)
    return parent, path_to(turns, parent)
