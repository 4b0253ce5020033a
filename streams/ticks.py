"""Work that agents do as time passes, with records or without, for as long as the worker lives."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

import structlog

from domain.errors import Retriable

log = structlog.get_logger(__name__)

TICK_SECONDS: Final = 1.0


async def tick_for_ever(what: str, tick: Callable[[], Awaitable[None]]) -> NoReturn:
    """Call ``tick`` again and again; what fails comes again with the next. Nothing but its cancellation ends it.

    ``what`` names the work in the log.
    """
    while True:
        await asyncio.sleep(TICK_SECONDS)
        try:
            await tick()
        except Retriable as error:
            log.info("left for the next tick", work=what, reason=str(error))
        except Exception:
            # Raised from here, it would end the worker.
            log.exception("tick met an unforeseen error", work=what)
