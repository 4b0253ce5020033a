"""Ids that say where to look: a turn id carries the time and the Kafka partition of its question.

Both kinds are uuid7 (RFC 9562): 48 bits of Unix milliseconds, then 12 bits and 62 bits that are free to
choose. In a turn id the 12 bits are the partition of its conversation, so that any worker finds the turn's
question and tokens by seeking in Kafka, hours later and without an index. Clients do not parse ids.
"""

from typing import NamedTuple
from uuid import UUID

MAX_PARTITIONS = 1 << 12


class Place(NamedTuple):
    """Where in the log a turn began: Unix time in milliseconds, and partition."""

    milliseconds: int
    partition: int


def uuid7(milliseconds: int, twelve: int, random62: int) -> str:
    """Return the uuid7 of a Unix time in ms, with the 12 and the 62 free bits as given."""
    value = (
        (milliseconds & (1 << 48) - 1) << 80
        | 0x7 << 76
        | (twelve & 0xFFF) << 64
        | 0b10 << 62
        | random62 & (1 << 62) - 1
    )
    return str(UUID(int=value))


def new_turn_id(milliseconds: int, partition: int, random62: int) -> str:
    """Return the id of a turn whose question goes to ``partition`` at this time."""
    if not 0 <= partition < MAX_PARTITIONS:
        raise ValueError(f"partition {partition} does not fit a turn id (0 to {MAX_PARTITIONS - 1})")
    return uuid7(milliseconds, partition, random62)


def place_of(turn_id: str) -> Place | None:
    """Return where a turn began, or None if this is not a turn id in its canonical form."""
    try:
        value = UUID(turn_id)
    except ValueError:
        return None
    if value.version != 7 or str(value) != turn_id:
        return None
    return Place(value.int >> 80, value.int >> 64 & 0xFFF)
