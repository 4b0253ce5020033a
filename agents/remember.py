"""turns -> memory changes -> memories: what users tell about themselves, kept for later conversations"""

import asyncio
from hashlib import blake2b
from time import monotonic
from typing import Any, Final

import msgspec
import structlog

from agents.asking_model import answer_of
from config import metrics
from domain.errors import ChatError, Rejected
from domain.proposed import ANSWER_TOKENS, asking, proposed
from domain.statements import Told
from domain.told import Forget, told_in
from domain.turns import is_refusal
from streams.app import app
from streams.handling import handle_each
from streams.records import MemoryChange, Turn, UserMemories, memories_key
from streams.ticks import tick_for_ever
from tables import memories

log = structlog.get_logger(__name__)

# Of one worker. A turn that finds no room is read by patterns: proposals must not pile up behind a slow model.
MODELS_AT_ONCE: Final = 4
MODEL_SECONDS: Final = 20.0
MIRROR_SECONDS: Final = 600.0
MIRROR_AGAIN_SECONDS: Final = 30.0  # where Elasticsearch is away

_asking = asyncio.Semaphore(MODELS_AT_ONCE)


@app.agent(app.raw_topic(app.topics_of.turns))
async def propose(stream: Any) -> None:
    """Publish what each finished turn's question tells of its user, to the user's own partition."""
    await handle_each(app, stream, Turn, propose_of, is_owner=False)  # agents/close.py is


@app.agent(app.raw_topic(app.topics_of.memory_changes))
async def remember(stream: Any) -> None:
    """Carry out each change, in the order of a user's."""
    await handle_each(app, stream, MemoryChange, carry_out)


@app.task  # type: ignore[untyped-decorator]  # Faust leaves it without types
async def mirror() -> None:
    """Write again what the mirror has lost: whoever empties Elasticsearch has not erased what is known of users."""
    await tick_for_ever("mirroring memories", Mirroring().tick)


class Mirroring:
    """Looks through this worker's rows after each assignment, and then every ten minutes."""

    def __init__(self) -> None:
        self._generation = -1
        self._next = 0.0

    async def tick(self) -> None:
        """Look through them, if it is time."""
        if app.ready() or (app.generation == self._generation and monotonic() < self._next):
            return
        self._generation, self._next = app.generation, monotonic() + MIRROR_AGAIN_SECONDS
        for partition in sorted(app.owned()):
            await self._look_through(partition)
        self._next = monotonic() + MIRROR_SECONDS

    async def _look_through(self, partition: int) -> None:
        place: str | None = ""
        while place is not None:
            known, place = memories.some(partition, place)
            for each in await app.services.memories.without(known) if known else ():
                # As it is by now, so that nothing that was erased meanwhile comes back.
                await app.services.memories.keep(memories.read(each.tenant, each.user))


async def propose_of(turn: Turn, _partition: int) -> None:
    """Publish what a turn's question tells. What the model said, or a document, is not looked at."""
    if app.settings.memory == "off" or turn.bare or is_refusal(turn.error):
        return
    for number, each in enumerate(await _told(turn)):
        order = change_of(turn, number, each)
        if order is not None:
            await app.publish(app.topics_of.memory_changes, memories_key(turn.tenant, turn.user), order)


async def _told(turn: Turn) -> list[Told | Forget]:
    """Return what a question tells, by the model that is set for it, or by patterns where there is none or it fails."""
    by_patterns = told_in(turn.input)
    model = app.settings.memory_model
    if not model or _asking.locked() or not turn.input.strip():
        return by_patterns
    try:
        async with _asking:
            answer = await answer_of(model, asking(turn.input), tokens=ANSWER_TOKENS, within=MODEL_SECONDS)
    except ChatError as error:
        log.warning("memory model did not answer", turn_id=turn.turn_id, reason=str(error))
        return by_patterns
    facts = proposed(answer, turn.input)
    if facts is None:
        log.warning("memory model's answer cannot be read", turn_id=turn.turn_id)
        return by_patterns
    return [*(each for each in by_patterns if isinstance(each, Forget)), *facts]


def change_of(turn: Turn, number: int, told: Told | Forget) -> MemoryChange | None:
    """Return the change that a turn asks for, the same however often the turn comes; None if it comes to nothing."""
    change_id = blake2b(f"{turn.turn_id}/{number}".encode(), digest_size=12).hexdigest()
    base = MemoryChange(change_id=change_id, action="forget", tenant=turn.tenant, user=turn.user, at=turn.asked_at)
    match told:
        case Told(text, slot, kind):
            return msgspec.structs.replace(
                base,
                action="remember",
                text=text,
                slot=slot,
                kind=kind,
                turn_id=turn.turn_id,
                conversation_id=turn.conversation_id,
            )
        case Forget(everything=True):
            return msgspec.structs.replace(base, action="forget_all")
        case Forget(latest=True):
            return msgspec.structs.replace(base, turn_id=turn.parent) if turn.parent else None
        case Forget(slot):
            return msgspec.structs.replace(base, slot=slot)


async def carry_out(order: MemoryChange, partition: int) -> None:
    """Change what is known of a user; then tell everyone, and the mirror that all workers read."""
    key = memories_key(order.tenant, order.user)
    if app.partition(key) != partition:
        raise Rejected(f"what is known of this user does not belong to partition {partition}")
    known = await memories.change(order)
    metrics.memory_changes.labels(order.action).inc()
    state = UserMemories(
        tenant=known.tenant, user=known.user, enabled=known.enabled, facts=known.facts, revision=known.revision
    )
    await app.publish(app.topics_of.memories, key, state)
    await app.services.memories.keep(known)
