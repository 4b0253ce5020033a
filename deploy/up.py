"""`make up`: everything on this machine with one command in one terminal, until Ctrl-C.

Starts a broker, a search server, a database and a model server, each only if its URL is not in the environment,
then one worker, and watches over them. The services are in `embedded`, what is checked first in `checks`.

    python -m deploy.up [--port 6066] [--folder .headrace]
"""

import argparse
import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Final, Self

from deploy import checks
from deploy.checks import CannotStart
from deploy.embedded import LOOPBACK, Broker, Embedded, ModelServer, Part, answers_http
from deploy.progress import DIM, Progress
from deploy.service import PROJECT, Service, ServiceFailed, check_alive

PORT: Final = 6066
VARIABLE_OF: Final[Mapping[str, Part]] = {
    "KAFKA_BOOTSTRAP_SERVERS": "kafka",
    "ELASTICSEARCH_URL": "es",
    "DATABASE_URL": "pg",
    "OPENAI_BASE_URL": "model",
}
START_SECONDS: Final = 120.0
BACK_OFF_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Before a worker that died is started again; after the last, we give up."""
HEALTHY_SECONDS: Final = 120.0
"""A worker that lived this long is not one that dies again and again."""


class Worker(Service):
    """The worker that answers: web server, agents and tables. ``given`` leads it to the services."""

    name = "worker"
    title = "Worker"
    stop_seconds = 30.0

    def __init__(self, folder: Path, *, port: int, given: Mapping[str, str]) -> None:
        super().__init__(folder)
        self.port = port
        self._given = given
        if kafka := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
            # Tables remember how far they have read on the broker that they were made from, and fit no other.
            self.data = self.data.with_name(f"worker-{hashlib.sha256(kafka.encode()).hexdigest()[:8]}")

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def environ(self) -> Mapping[str, str]:
        """Nothing: others find the worker by its address."""
        return {}

    def variables(self) -> Mapping[str, str]:
        """Return the settings of a worker for one person on one machine; those in the environment come first."""
        usual = {"HEADRACE_AUTH": "dev", "HEADRACE_LOG_FORMAT": "text"}
        return {**usual, **self._given, **headrace_variables()}

    def command(self) -> Sequence[str | Path]:
        """Return what an operator would type."""
        faust = Path(sys.executable).with_name("faust")
        listen = ["--web-host", LOOPBACK, "--web-port", str(self.port)]
        return [faust, "--quiet", "--datadir", self.data, "-A", "streams.app", "worker", "-l", "info", *listen]

    def ready(self) -> bool:
        """Return whether it takes questions: tables recovered, partitions assigned."""
        return self.running and answers_http(self.port, "/readyz")


class Interrupts:
    """Counts Ctrl-C, SIGTERM and a closed terminal, instead of being interrupted by them."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, signal.Handlers | object] = {}

    def __enter__(self) -> Self:
        """Listen."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the signals ignored: nothing is left to be stopped."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        self.count += 1


class Interrupted(Exception):
    """Someone wants us to stop."""
