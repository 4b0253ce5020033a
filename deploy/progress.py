"""How `make up` shows what it does: a spinner with seconds on a terminal, a plain line for each step elsewhere."""

import itertools
import os
import shutil
import sys
import time
from contextlib import suppress
from typing import Final, Self, TextIO

WIDTH: Final = 52
SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAME_SECONDS: Final = 0.1
GREEN, RED = "32", "31"


class Progress:
    """Writes steps and sentences. A terminal that has gone away is no reason not to go on."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self.live = self._out.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self.live and not os.environ.get("NO_COLOR")
        unicode = (self._out.encoding or "").lower().replace("-", "") == "utf8"
        self.marks = ("✓", "✗") if unicode else ("ok", "failed:")
        self.spinner = SPINNER if unicode else "|/-\\"

    def say(self, text: str = "") -> None:
        """Write a line."""
        self.write(f"{text}\n")

    def step(self, title: str, *, since: float | None = None) -> "Step":
        """Return a step that begins now, or began at that moment of `time.monotonic`."""
        return Step(self, title, time.monotonic() if since is None else since)

    def colour(self, text: str, code: str) -> str:
        """Return the text in this colour, where the terminal has colours."""
        return f"\033[{code}m{text}\033[0m" if self._colours else text

    def write(self, text: str) -> None:
        """Write at once."""
        with suppress(OSError, ValueError):
            self._out.write(text)
            self._out.flush()


class Step:
    """One line, which ends with a tick, or with a cross if the body raises. Call `tick` while it goes on."""

    def __init__(self, progress: Progress, title: str, began: float) -> None:
        self._progress = progress
        self._title = title
        self._began = began
        self._frames = itertools.cycle(progress.spinner)
        self._next_frame = 0.0
        self.note = ""

    def __enter__(self) -> Self:
        """Show it."""
        self.tick()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Show how it ended, and how long it took."""
        good, bad = self._progress.marks
        mark = self._progress.colour(bad, RED) if kind else self._progress.colour(good, GREEN)
        self._progress.write(f"{self._erase()}  {mark} {self._line()}\n")

    def tick(self) -> None:
        """Turn the spinner, if it is time for that."""
        now = time.monotonic()
        if self._progress.live and now >= self._next_frame:
            self._next_frame = now + FRAME_SECONDS
            # A line that wraps could not be erased.
            line = self._line()[: shutil.get_terminal_size().columns - 5]
            self._progress.write(f"{self._erase()}  {next(self._frames)} {line}")

    def _line(self) -> str:
        return f"{self._title:<{WIDTH}} {time.monotonic() - self._began:5.1f} s  {self.note}".rstrip()

    def _erase(self) -> str:
        return "\r\033[K" if self._progress.live else ""
