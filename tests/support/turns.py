"""Records of made-up turns: what a worker writes when all goes well."""

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
