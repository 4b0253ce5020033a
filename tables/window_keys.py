"""How the keys of windows begin, in both tables of them: kind, size, start. So the store has them in that order.

Sizes and times are ms, with so many digits that the order of the texts is that of the numbers.
"""

from typing import Final

END_OF_TIME: Final = 10**15 - 1  # the last moment that a key can name


def size_digits(size: int) -> str:
    """Return a size as it stands in keys."""
    return f"{size:07d}"


def time_digits(moment: int) -> str:
    """Return a moment as it stands in keys."""
    return f"{moment:015d}"


def first_key(kind: str, size: int, start: int = 0) -> str:
    """Return what comes right before the rows of a kind, of windows of a size, from a start on."""
    return kind + size_digits(size) + time_digits(start)


def size_in(key: str) -> int:
    """Return the size of a key's window."""
    return int(key[1:8])


def start_in(key: str) -> int:
    """Return the start of a key's window."""
    return int(key[8:23])


def rest_of(key: str) -> str:
    """Return what follows the start in a key."""
    return key[23:]
