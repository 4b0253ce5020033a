"""What a stream that is heard (`domain.hearing`) has in common, wherever it comes from: pauses, errors and its end."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Pushed(ABC, Generic[T]):
    """A stream of which `look` hands on what has come, and whose end one task waits for.

    The invariant: whatever comes is handed on in its order, once, and never while a pause lasts. ``_ended``: nothing
    more is to be handed on.
    """

    __slots__ = ("_ended", "_error", "_hear", "_pause", "_woken")

    def __init__(self, hear: Callable[[T], Awaitable[object] | None]) -> None:
        self._hear = hear
        self._woken: asyncio.Future[None] | None = None
        self._pause: Awaitable[object] | None = None
        self._error: Exception | None = None
        self._ended = False

    @abstractmethod
    def _next(self) -> T | None:
        """Return what has come and was not handed on, if anything; note if it was the last. May raise."""

    def look(self, come: T | None = None) -> bool:
        """Hand on what has come, ``come`` or else what `_next` has; tell whether this could be done now."""
        if self._pause is not None or self._error is not None or self._ended:
            return False
        try:
            if come := come or self._next():
                self._pause = self._hear(come)
            if self._pause is None and not self._ended:
                return True  # as nearly always: nobody need wake up
        except Exception as error:  # noqa: BLE001 - raised again where the end is waited for
            self._error = error
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
        return True

    async def until_end(self) -> None:
        """Return when the stream has ended. Raises what broke it, and what whoever hears it raises."""
        try:
            self.look()
            await self._until_end()
        finally:
            if asyncio.iscoroutine(self._pause):
                self._pause.close()  # its time has not come, where nobody hears the stream any more

    async def _until_end(self) -> None:
        while True:
            if self._pause is not None:
                await self._wait_for(self._pause)
                self._pause = None
                self.look()
            elif self._error is not None:
                raise self._error
            elif self._ended:
                return
            else:
                self._woken = asyncio.get_running_loop().create_future()
                await self._woken

    async def _wait_for(self, pause: Awaitable[object]) -> None:
        """Wait as whoever hears it wants."""
        await pause
