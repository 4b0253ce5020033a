"""How far a turn is, by the log: the same fold that every reader of its events sees."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from domain.ids import Place, place_of
from domain.knowledge import Citation
from domain.tokens import Token, text_of
from domain.turns import End, Status
from streams.records import Question
from web.site import Site

# How far this worker's reading of the log may be behind that of another one, which showed somebody a turn's end.
BEHIND_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """What the log has of a turn; ``expired`` if it has deleted the beginning."""

    pieces: tuple[Token, ...]
    claims: int = 0
    expired: bool = False

    @property
    def gone(self) -> bool:
        """Return whether the log had the turn once, and has nothing of it any more."""
        return self.expired and not self.pieces

    @property
    def end(self) -> End | None:
        """Return how the turn ended, if it did."""
        if not self.pieces or self.pieces[-1].kind != "end":
            return None
        return msgspec.json.decode(self.pieces[-1].text, type=End)

    @property
    def status(self) -> Status:
        """Return the turn's status."""
        end = self.end
        if end is not None:
            return end.outcome
        return "running" if self.pieces else "queued"

    @property
    def answer(self) -> str:
        """Return the text so far."""
        return text_of(self.pieces)

    @property
    def citations(self) -> list[Citation]:
        """Return the passages that the model was given."""
        for piece in self.pieces[1:2]:
            if piece.kind == "citations":
                return msgspec.json.decode(piece.text, type=list[Citation])
        return []

    @property
    def last_event_id(self) -> int | None:
        """Return the number of the latest event, None while there is none."""
        return len(self.pieces) - 1 if self.pieces else None


def place_of_turn(turn_id: str) -> Place:
    """Return where a turn of ours began; raises ValueError for what is not a turn id."""
    place = place_of(turn_id)
    if place is None:
        raise ValueError(f"{turn_id!r} is not a turn id")
    return place


async def progress_of(site: Site, question: Question) -> Progress:
    """Return how far a turn is. Raises `LogUnavailable`."""
    partition = place_of_turn(question.turn_id).partition
    log = site.chat.services.token_log
    async with log.attach(question.turn_id, partition, question.tokens_from) as logged:
        return Progress(tuple(logged.pieces), logged.fold.claims, logged.expired)


async def has_ended(site: Site, question: Question) -> bool:
    """Return whether a turn has ended, for someone who may have seen its end on another worker just now."""
    partition = place_of_turn(question.turn_id).partition
    log = site.chat.services.token_log
    async with log.attach(question.turn_id, partition, question.tokens_from) as logged:
        with suppress(TimeoutError):
            async with asyncio.timeout(BEHIND_SECONDS):
                while not logged.fold.ended:
                    await logged.changed(len(logged.pieces))
        return logged.fold.ended
