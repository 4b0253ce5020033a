"""Kafka, Elasticsearch and Postgres for the tests: those named in the environment, else embedded ones of our own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import pytest

from deploy.embedded import Embedded, Part

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
    if not LAUNCHER.exists() or shutil.which("java") is None:
        missing("needs a real Kafka: set KAFKA_BOOTSTRAP_SERVERS to one that may be written to", "KAFKA")
    launch = [sys.executable, str(LAUNCHER)]
    where = ["--dir", str(folder)]
    try:
        exports = subprocess.run(
            [*launch, "up", "--only", "kafka", *where], check=True, stdout=subprocess.PIPE, text=True, timeout=120
        ).stdout
        yield exported(exports)["KAFKA_BOOTSTRAP_SERVERS"]
    finally:
        subprocess.run([*launch, "down", "--wipe", *where], check=True, stdout=subprocess.DEVNULL, timeout=60)


def exported(text: str) -> dict[str, str]:
    """Return the variables of lines such as ``export NAME=value``."""
    pairs = (line.removeprefix("export ").partition("=") for line in text.splitlines())
    return {name: value for name, _, value in pairs}


def missing(why: str, what: str) -> NoReturn:
    """Skip the test, or fail it where HEADRACE_TEST_REQUIRE_<what>=1 forbids skipping."""
    if os.environ.get(f"HEADRACE_TEST_REQUIRE_{what}") == "1":
        pytest.fail(why)
    pytest.skip(why)
