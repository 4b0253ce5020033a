"""What is known of every user, in RocksDB: a row a user, in the partition of the user and not of a conversation.

A row is the fold of the user's changes, in the order of their topic. So whoever owns the partition, and however often
a change is handled, the same revision means the same facts.
"""

from dataclasses import replace
from itertools import islice
from typing import Final

import msgspec

from domain import memory
from domain.memory import HANDLED, Fact, Memories
from domain.told import as_edited
from streams.app import app
from streams.records import MemoryChange, memories_key
from tables.row_table import acknowledged, row_table

SOME: Final = 100

_decode = msgspec.json.Decoder(Memories).decode
_memories = row_table("memories", check=_decode)


def read(tenant: str, user: str) -> Memories:
    """Return what is known of a user; raises `NotOwner`."""
    key = memories_key(tenant, user)
    row = _memories.row(app.partition(key), key)
    return Memories(tenant, user) if row is None else _decode(row)


def some(partition: int, after: str = "") -> tuple[list[Memories], str | None]:
    """Return what is known of some users of a partition, and the place after which the next stand; None after the last.

    Raises `NotOwner`.
    """
    rows = list(islice(_memories.after(partition, after), SOME))
    return [_decode(row) for _, row in rows], rows[-1][0] if len(rows) == SOME else None


async def change(order: MemoryChange) -> Memories:
    """Carry out a change; return what is known when the changelog has it. The same change again changes nothing."""
    known = changed(read(order.tenant, order.user), order, most=app.settings.memory_facts)
    key = memories_key(order.tenant, order.user)
    # Also where nothing changed: after a crash, or a changelog that did not answer, it may be on this disk alone.
    await acknowledged(_memories.put(app.partition(key), key, msgspec.json.encode(known)))
    return known


def changed(known: Memories, order: MemoryChange, *, most: int) -> Memories:
    """Return what is known after a change."""
    if order.change_id in known.handled:
        return known
    return replace(
        _carried_out(known, order, most),
        handled=[*known.handled, order.change_id][-HANDLED:],
        # Above every earlier one also where Kafka lost what was known, and a mirror of it lives on.
        revision=max(known.revision + 1, order.at),
    )


def _carried_out(known: Memories, order: MemoryChange, most: int) -> Memories:
    match order.action:
        case "remember":
            return memory.remembered(known, _fact(order), most=most)
        case "edit":
            if (fact := known.find(order.memory_id)) is None:
                return known
            told = as_edited(fact, order.text)
            return memory.edited(known, fact, told.text, told.slot, told.kind, order.at)
        case "forget":
            return memory.forgotten(known, _slots(known, order))
        case "forget_all":
            return memory.emptied(known, order.at)
        case "switch":
            return memory.switched(known, enabled=order.enabled, at=order.at)


def _fact(order: MemoryChange) -> Fact:
    return Fact(
        id=order.change_id,
        text=order.text,
        slot=order.slot,
        kind=order.kind,
        created_at=order.at,
        valid_from=order.at,
        turn_id=order.turn_id,
        conversation_id=order.conversation_id,
    )


def _slots(known: Memories, order: MemoryChange) -> set[str]:
    """Return the slots that a change has forgotten."""
    named = {order.slot} if order.slot else set()
    return named | {
        fact.slot
        for fact in known.facts
        if (order.memory_id and fact.id == order.memory_id) or (order.turn_id and fact.turn_id == order.turn_id)
    }
