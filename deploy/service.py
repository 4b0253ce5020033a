"""A child process that we start, wait for and stop: the common part of everything that `make up` runs."""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

from adapters import tether

PROJECT: Final = Path(__file__).resolve().parent.parent
TAIL_BYTES: Final = 64_000


class ServiceFailed(Exception):
    """A service ended, or did not answer in time. The message says which, and shows the end of its log."""


class Service(ABC):
    """How a service is started, when it is ready, what it offers, and how it ends.

    It ends with the process that started it (see `tether`), and never hears the terminal's Ctrl-C, so that
    whoever started it decides the order. ``folder`` gets data/NAME and logs/NAME.log.
    """

    name: str
    title: str
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_seconds: ClassVar[float] = 10.0

    def __init__(self, folder: Path) -> None:
        self.data = folder.absolute() / "data" / self.name
        self.log = folder.absolute() / "logs" / f"{self.name}.log"
        self.started_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begins = 0

    @property
    @abstractmethod
    def environ(self) -> Mapping[str, str]:
        """The variables that lead Headrace to this service."""

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """Return the program and its arguments; raises FileNotFoundError if it is not installed."""

    @abstractmethod
    def ready(self) -> bool:
        """Return whether it answers. Waits for seconds at most."""

    def variables(self) -> Mapping[str, str]:
        """Return what the process gets in its environment, besides our own."""
        return {}

    @property
    def pid(self) -> int | None:
        """The process that was started last, running or not."""
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """How it ended (negative: by this signal); None while it runs or was never started."""
        return self._process.poll() if self._process else None

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.poll() is None

    def start(self, inherit: Sequence[int] = ()) -> None:
        """Start the process and return at once. ``inherit``: file descriptors that it holds as long as it lives."""
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        tied = [sys.executable, "-I", tether.__file__, str(os.getpid()), str(int(self.stop_signal))]
        command = [*tied, *self.command()]
        with self.log.open("ab") as log:
            self._log_begins = log.tell()
            self.started_at = time.monotonic()
            self._process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env={**os.environ, **self.variables()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=inherit,
            )

    def ask_to_stop(self) -> None:
        """Send the signal on which it ends in good order."""
        if self._process is not None:
            self._process.send_signal(self.stop_signal)  # does nothing where it has ended

    def kill(self) -> None:
        """End it and its own children at once."""
        if self._process is not None and self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """End it in good order, or by force when that takes too long. May be called at any time and again."""
        self.ask_to_stop()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(self.stop_seconds)
        self.kill()

    def last_lines(self, count: int = 12) -> str:
        """Return the end of what it has logged since it was started."""
        with suppress(FileNotFoundError), self.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_begins, end - TAIL_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])
        return ""

    def how_it_ended(self) -> str:
        """Return the exit code in words."""
        code = self.exit_code
        return f"ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"


def check_alive(service: Service) -> None:
    """Raise `ServiceFailed` if it has ended."""
    if not service.running:
        raise ServiceFailed(f"{service.title} {service.how_it_ended()}\n{service.last_lines()}".rstrip())


def wait_ready(
    service: Service, within: float, meanwhile: Callable[[], None] = lambda: None, *, every: float = 0.02
) -> None:
    """Return when the service answers; raises `ServiceFailed` if it ends or takes longer than ``within`` seconds.

    Asks it and calls ``meanwhile`` every so many seconds; what that raises ends the waiting.
    """
    deadline = time.monotonic() + within
    while not service.ready():
        check_alive(service)
        if time.monotonic() > deadline:
            raise ServiceFailed(
                f"{service.title} did not answer within {within:.0f} s\n{service.last_lines()}".rstrip()
            )
        meanwhile()
        time.sleep(every)
