"""How a stream is listened to: by a function that takes what comes in the very call that brought it.

To wake a task for every token costs more than all that is done for the token (docs/measurements.md). So a task waits
for the end of a stream only, and for what the function wants waited for.
"""

from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

T = TypeVar("T")

Hear = Callable[[list[T]], Awaitable[object] | None]
"""Takes the next of a stream. Where it returns something, no more comes before that is done; what it raises ends it."""


class Enough(Exception):
    """Raised by who hears a stream and wants no more of it."""


async def heard(hear: Hear[T], what: list[T]) -> None:
    """Have something heard, and wait as whoever hears it wants."""
    if (pause := hear(what)) is not None:
        await pause


async def then_enough(pause: Awaitable[object] | None) -> NoReturn:
    """Wait for the last that is wanted, and end the stream."""
    if pause is not None:
        await pause
    raise Enough
