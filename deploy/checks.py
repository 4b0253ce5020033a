"""What has to be true before `make up` starts anything. Each check says what is wrong and what to do about it."""

import errno
import fcntl
import os
import shutil
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Final
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import psutil
import psycopg

LOOPBACK: Final = "127.0.0.1"
NEEDED_BYTES: Final = 1 << 30
"""A few hundred MB are written at first; the rest is for conversations and logs."""
ELSEWHERE: Final = "HEADRACE_FOLDER=/another/folder make up"
ANSWER_SECONDS: Final = 3
LAST_RUN_SECONDS: Final = 30.0


class CannotStart(Exception):
    """What is wrong, and what to do."""


def free_bytes(folder: Path) -> int:
    """Return what an ordinary user may still write there. The folder need not exist yet."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def check_disk(folder: Path, *, free: Callable[[Path], int] = free_bytes) -> None:
    """Raise `CannotStart` if the data would soon fill the disk."""
    if (left := free(folder)) < NEEDED_BYTES:
        raise CannotStart(
            f"only {left // 1_000_000} MB are free where {folder} is, and it needs {NEEDED_BYTES // 1_000_000} MB."
            f" Free some, or keep the data elsewhere: {ELSEWHERE}"
        )


def check_writable(folder: Path) -> None:
    """Raise `CannotStart` if the folder cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise CannotStart(f"cannot make the folder {folder}: {error.strerror}. Choose another: {ELSEWHERE}") from None
    if not writable:
        raise CannotStart(
            f"{folder} cannot be written to; was `make up` once run by root? Give it back (chown -R), or choose"
            f" another: {ELSEWHERE}"
        )


def lock(
    folder: Path, *, patience: float = LAST_RUN_SECONDS, meanwhile: Callable[[], object] = lambda: None
) -> IO[str]:
    """Return the folder's lock, held until it is closed here and in every process that inherited it.

    The services inherit it. So where the last run was killed, we wait until they have saved their data and
    ended, and call ``meanwhile`` many times a second. Raises `CannotStart` if another `make up` lives, or if they do
    not end within ``patience`` seconds.
    """
    file = (folder / "lock").open("a+")
    deadline = time.monotonic() + patience
    while not _locked(file):
        file.seek(0)
        holder = file.read().strip()
        if holder.isdigit() and psutil.pid_exists(int(holder)):
            raise CannotStart(
                f"{folder} is in use by another `make up` (process {holder}). Stop that one with Ctrl-C, or"
                f" give this one a folder and a port of its own: {ELSEWHERE}"
            )
        if time.monotonic() > deadline:
            raise CannotStart(
                f"the last `make up` (process {holder}) was killed, and something that it started still uses {folder}."
                f" `fuser {file.name}` tells which; end it."
            )
        meanwhile()
        time.sleep(0.05)
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


def _locked(file: IO[str]) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def check_port(port: int) -> None:
    """Raise `CannotStart` if we cannot listen on this port of the loopback address."""
    with socket.socket() as probe:
        # As the worker's server does: without it, connections of the last run that are still closing are in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise CannotStart(f"cannot listen on port {port}: {error.strerror}. {_choose(port)}") from None
            raise CannotStart(
                f"port {port} is taken by {listener(port)}. Stop that, or choose another: {_choose(port)}"
            ) from None


def _choose(port: int) -> str:
    other = port + 1 if 1024 <= port < 65535 else 6067
    return f"HEADRACE_PORT={other} make up"


def listener(port: int) -> str:
    """Return which process listens on a port, as far as we may know."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f"process {connection.pid} ({command[:80]})"
    return "another process"


# -- services that were given, by the variable that names them


def check_kafka(servers: str) -> None:
    """Raise `CannotStart` if no broker of host:port,host:port accepts a connection."""
    refusals = []
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        if not host or not port.isdigit():
            raise CannotStart(f"KAFKA_BOOTSTRAP_SERVERS: {server!r} is not host:port.")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            refusals.append(f"{server.strip()} ({error})")
        else:
            return
    raise CannotStart(f"KAFKA_BOOTSTRAP_SERVERS: no broker answers at {', '.join(refusals)}. {_unset('a broker')}")


def check_elasticsearch(url: str) -> None:
    """Raise `CannotStart` if no server answers at this URL, or it does not let us in."""
    status = _status("ELASTICSEARCH_URL", url, url, "a search server")
    if status in {401, 403}:
        raise CannotStart(f"ELASTICSEARCH_URL: {shown(url)} refuses us ({status}). Put user:password@ before its host.")
    if status != 200:
        raise CannotStart(f"ELASTICSEARCH_URL: {shown(url)} answers with {status}, so it is no Elasticsearch.")


def check_postgres(url: str) -> None:
    """Raise `CannotStart` if the database cannot be opened."""
    try:
        psycopg.connect(url, connect_timeout=ANSWER_SECONDS).close()
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise CannotStart(f"DATABASE_URL: {shown(url)} does not open: {reason}. {_unset('a database')}") from None


def check_model(url: str) -> None:
    """Raise `CannotStart` if no server answers at this URL, or it refuses the key. It may lack a list of models."""
    key = os.environ.get("OPENAI_API_KEY", "none")
    status = _status("OPENAI_BASE_URL", url, url.rstrip("/") + "/models", "a model server", f"Bearer {key}")
    if status in {401, 403}:
        raise CannotStart(f"OPENAI_BASE_URL: {shown(url)} refuses the key in OPENAI_API_KEY ({status}).")
    if status >= 500:
        raise CannotStart(f"OPENAI_BASE_URL: {shown(url)} answers with {status}: is its model loaded?")


CHECKS: Final[Mapping[str, Callable[[str], None]]] = {
    "KAFKA_BOOTSTRAP_SERVERS": check_kafka,
    "ELASTICSEARCH_URL": check_elasticsearch,
    "DATABASE_URL": check_postgres,
    "OPENAI_BASE_URL": check_model,
}


def shown(url: str) -> str:
    """Return a URL without the password in it."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _status(variable: str, url: str, page: str, kind: str, authorization: str = "") -> int:
    """Return the status of a GET. Credentials in the URL are sent as such; raises `CannotStart` without an answer."""
    if not url.startswith(("http://", "https://")):
        raise CannotStart(f"{variable}: {url!r} must begin with http:// or https://.")
    parts = urlsplit(page)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {b64encode(pair.encode()).decode()}"
    headers = {"Authorization": authorization} if authorization else {}
    try:
        with urlopen(Request(bare, headers=headers), timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - checked above
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except (URLError, OSError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise CannotStart(f"{variable}: {shown(url)} does not answer ({reason}). {_unset(kind)}") from None


def _unset(kind: str) -> str:
    return f"Start it, or unset the variable to let `make up` start {kind} of its own."
