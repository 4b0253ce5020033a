"""Ctrl-C and its kin as something to ask for, so that nothing is interrupted in the middle."""

import signal
import time
from types import FrameType
from typing import Any, Final, Self

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_WISH_SECONDS: Final = 0.5


class Interrupted(Exception):
    """Someone wants us to stop."""


class Interrupts:
    """Counts Ctrl-C, SIGTERM and the terminal's end, so that nothing is interrupted in the middle."""

    def __init__(self) -> None:
        self.count = 0
        self._last = float("-inf")
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Listen for them."""
        self._handlers = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Let them do again what they did before."""
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        """Raise `Interrupted` if there was one."""
        if self.count:
            raise Interrupted

    def wait(self, seconds: float) -> None:
        """Sleep; raises `Interrupted`."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.1))
        self.check()

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        # One wish may arrive twice: make passes on a SIGTERM that the whole process group was sent.
        now = time.monotonic()
        self.count += now - self._last > SAME_WISH_SECONDS
        self._last = now
