"""A worker for one person on one machine, as `make up` runs it (containers have worker.sh)."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.embedded import LOOPBACK, answers_http
from deploy.service import Service


class Worker(Service):
    """The worker under its supervisor. ``services`` are the variables that lead it to what we started."""

    name = "worker"
    title = "Worker"
    stop_seconds = 30.0

    def __init__(self, folder: Path, port: int, services: Mapping[str, str]) -> None:
        super().__init__(folder)
        self.port = port
        self._services = services

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def environ(self) -> Mapping[str, str]:
        """Nothing that another process would need."""
        return {}

    def variables(self) -> Mapping[str, str]:
        """Return what suits one person on one machine, unless the environment says otherwise."""
        usual = {"HEADRACE_AUTH": "dev", "HEADRACE_LOG_FORMAT": "text", **self._services}
        return usual | {name: value for name, value in os.environ.items() if name.startswith("HEADRACE_")}

    def command(self) -> Sequence[str | Path]:
        """Return `headrace worker`, so that a worker that dies is started again at once."""
        listen = ["--web-host", LOOPBACK, "--web-port", str(self.port)]
        return [sys.executable, "-m", "streams.supervisor", "worker", "--datadir", self.data, *listen]

    def ready(self) -> bool:
        """Return whether it takes questions."""
        return self.running and answers_http(self.port, "/readyz")

    def last_lines(self, count: int = 12) -> str:
        """Return why it refused to start, where it did; else the end of its log."""
        _, refused, why = super().last_lines(200).rpartition("Headrace cannot start")
        return refused + why if refused else super().last_lines(count)
