"""Made-up turns: what a worker writes when all goes well, and what a reader is told."""

import asyncio

from adapters.token_log import TokenLog
from domain.tokens import Token


def claim(turn_id: str, epoch: int = 1) -> Token:
    return Token(turn_id, epoch, 0, "claim", "{}")


def words(turn_id: str, first: int, last: int, epoch: int = 1) -> list[Token]:
    """Return the pieces with these numbers. The text of each depends on its number alone."""
    return [Token(turn_id, epoch, seq, "token", f"w{seq} ") for seq in range(first, last + 1)]


def end(turn_id: str, seq: int, epoch: int = 1) -> Token:
    return Token(turn_id, epoch, seq, "end", "{}")


def whole(turn_id: str, count: int, epoch: int = 1) -> list[Token]:
    """Return a turn of ``count`` words, from claim to end."""
    return [claim(turn_id, epoch), *words(turn_id, 1, count, epoch), end(turn_id, count + 1, epoch)]


async def answer(token_log: TokenLog, turn_id: str, partition: int, count: int, *, pause: float = 0.002) -> None:
    """Write a whole turn, a word after each pause."""
    await token_log.put(partition, claim(turn_id))
    for token in words(turn_id, 1, count):
        if (room := token_log.room(partition)) is not None:
            await room
        token_log.append(partition, token)
        await asyncio.sleep(pause)
    await token_log.put(partition, end(turn_id, count + 1))


async def collect(token_log: TokenLog, turn_id: str, partition: int, since: int = 0) -> list[Token]:
    """Return what a reader is told of a turn, to its end."""
    pieces: list[Token] = []
    await token_log.follow(turn_id, partition, since, -1, pieces.extend)
    return pieces
