"""Kafka, Elasticsearch and Postgres for the tests: those named in the environment, else embedded ones of our own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import pytest

from deploy.embedded import Broker, Embedded, Part
from deploy.service import wait_ready

ROOT: Final = Path(__file__).parents[2]
PART_OF: Final[Mapping[str, Part]] = {
    "KAFKA_BOOTSTRAP_SERVERS": "kafka",
    "ELASTICSEARCH_URL": "es",
    "DATABASE_URL": "pg",
}
# A real Kafka that may lie beside the repository; needs Java. The variable names another place.
LAUNCHER: Final = Path(os.environ.get("HEADRACE_TEST_SERVICES", ROOT.parent / "shared" / "services" / "services"))


@dataclass(frozen=True, slots=True)
class Services:
    """Where they listen. ``real``: Kafka is Apache Kafka and not the embedded broker."""

    bootstrap: str
    elasticsearch_url: str
    database_url: str
    real: bool

    @property
    def environ(self) -> dict[str, str]:
        """The variables that lead a worker to them."""
        found = {
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap,
            "ELASTICSEARCH_URL": self.elasticsearch_url,
            "DATABASE_URL": self.database_url,
        }
        if not self.real:
            # The embedded broker answers an empty fetch at once, so a worker without a pause fills a core.
            found["HEADRACE_IDLE_FETCH_PAUSE_MS"] = "5"
        return found

    @classmethod
    def at(cls, environ: Mapping[str, str], *, real: bool) -> "Services":
        """Return the services that these variables name."""
        kafka, elasticsearch, postgres = (environ[name] for name in PART_OF)
        return cls(kafka, elasticsearch, postgres, real)


@contextmanager
def open_services(folder: Path) -> Iterator[Services]:
    """Yield what the environment names, and embedded services in ``folder`` for what it does not."""
    given = {name: os.environ[name] for name in PART_OF if os.environ.get(name)}
    missing = {part for name, part in PART_OF.items() if name not in given}
    with Embedded(folder, only=missing) as embedded:
        yield Services.at(embedded.environ | given, real="KAFKA_BOOTSTRAP_SERVERS" in given)


@contextmanager
def open_real_kafka(folder: Path) -> Iterator[str]:
    """Yield the bootstrap servers of a real Kafka: of the environment's, or of one that is started in ``folder``.

    Skips the test where there is neither, and fails it under HEADRACE_TEST_REQUIRE_KAFKA=1.
    """
    if given := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield given
        return
    if not can_launch():
        missing("needs a real Kafka: set KAFKA_BOOTSTRAP_SERVERS to one that may be written to", "KAFKA")
    with launched(folder, "kafka") as environ:
        yield environ["KAFKA_BOOTSTRAP_SERVERS"]


# -- real services of one's own, which may be killed


def can_launch() -> bool:
    """Return whether there is a launcher, and Java for what it starts."""
    return LAUNCHER.exists() and shutil.which("java") is not None


def launch(folder: Path, *command: str) -> dict[str, str]:
    """Have the launcher do something with the services in ``folder``; return the variables that lead to them.

    Commands: up, kill NAME, start NAME, down. Waits until it is done. Raises RuntimeError with what it said.
    """
    asked = [sys.executable, str(LAUNCHER), *command, "--dir", str(folder)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=150)
    if done.returncode and command[0] == "start":  # on a busy machine it takes longer to come back than is waited for
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=150)
    if done.returncode:
        raise RuntimeError(f"services {' '.join(command)}: {done.stdout}{done.stderr}")
    lines = (line.removeprefix("export ").partition("=") for line in done.stdout.splitlines())
    return {name: value for name, _, value in lines}


@contextmanager
def launched(folder: Path, only: str, *options: str) -> Iterator[dict[str, str]]:
    """Yield the variables of services that are started for this, and wiped afterwards."""
    try:
        yield launch(folder, "up", "--only", only, *options)
    finally:
        launch(folder, "down", "--wipe")


@dataclass(frozen=True, slots=True)
class OwnSearch:
    """An Elasticsearch of a test's own. Killed at once, it comes back at the same place with what it had."""

    url: str
    kill: Callable[[], object]
    start: Callable[[], object]


@contextmanager
def own_search(folder: Path, *, real: bool) -> Iterator[OwnSearch]:
    """Yield one that is real, if that is wanted and there is a launcher, else the embedded one."""
    if real and can_launch():
        with launched(folder, "es") as environ:
            url = environ["ELASTICSEARCH_URL"]
            yield OwnSearch(url, partial(launch, folder, "kill", "es"), partial(launch, folder, "start", "es"))
        return
    embedded = Broker(folder, kafka=False)

    def start() -> None:
        embedded.start()
        wait_ready(embedded, 60)

    try:
        start()
        yield OwnSearch(embedded.environ["ELASTICSEARCH_URL"], embedded.kill, start)
    finally:
        embedded.stop()


def missing(why: str, what: str) -> NoReturn:
    """Skip the test, or fail it where HEADRACE_TEST_REQUIRE_<what>=1 forbids skipping."""
    if os.environ.get(f"HEADRACE_TEST_REQUIRE_{what}") == "1":
        pytest.fail(why)
    pytest.skip(why)
