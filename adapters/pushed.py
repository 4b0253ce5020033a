"""What a stream that is heard (`domain.hearing`) has in common, wherever it comes from: pauses, errors and its end."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable


class Pushed(ABC):
    """A stream of which `look` hands on what has come, and whose end one task waits for.

    The invariant: whatever comes is handed on in its order, once, and never while a pause lasts.
    """

    def __init__(self) -> None:
        self._woken: asyncio.Future[None] | None = None
        self._pause: Awaitable[object] | None = None
        self._error: Exception | None = None

    @abstractmethod
    def _hand_on(self) -> Awaitable[object] | None:
        """Hand on what there is; return what is to be waited for before there is more. May raise."""

    @abstractmethod
    def _has_ended(self) -> bool:
        """Tell whether nothing more is to come."""

    def look(self) -> None:
        """Hand on what has come, unless it is to wait."""
        if self._pause is not None or self._error is not None:
            return
        try:
            self._pause = self._hand_on()
            if self._pause is None and not self._has_ended():
                return  # as nearly always: nobody need wake up
        except Exception as error:  # noqa: BLE001 - raised again where the end is waited for
            self._error = error
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

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
            elif self._has_ended():
                return
            else:
                self._woken = asyncio.get_running_loop().create_future()
                await self._woken

    async def _wait_for(self, pause: Awaitable[object]) -> None:
        """Wait as whoever hears it wants."""
        await pause
