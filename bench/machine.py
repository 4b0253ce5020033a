"""The processes of a measurement, and what each of them costs."""

import asyncio
import os
import platform
import re
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psutil
from confluent_kafka.admin import AdminClient

from tests.support.worker import Worker

ROOT = Path(__file__).parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Something that answers at ``url``, in the process ``pid``: chat completions, or our native route."""

    name: str
    url: str
    pid: int
    native: bool = False


def kafka() -> str:
    """Return the brokers to measure on, or end the process with what is missing."""
    if given := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        return given
    raise SystemExit("Set KAFKA_BOOTSTRAP_SERVERS to a Kafka that serves nobody else.")


def described() -> str:
    """Return what figures were taken on: they compare with others of the same machine only."""
    info = Path("/proc/cpuinfo")
    models = (
        re.findall(r"^model name\s*: (.+)$", info.read_text(encoding="utf-8"), re.MULTILINE) if info.exists() else []
    )
    name = models[0] if models else platform.machine()
    return f"{os.cpu_count()} x {name}, {platform.system()}, Python {platform.python_version()}"


@contextmanager
def running(name: str, *command: str) -> Iterator[Place]:
    """Run one of our modules that prints where it listens, and end it afterwards."""
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError(f"{' '.join(command)} did not start")
        yield Place(name, line.removeprefix("listening on ").strip(), process.pid)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # a shell that started us in the background may have told it to ignore signals
            process.wait()


@asynccontextmanager
async def worker(bootstrap: str, model_url: str, *, native: bool) -> AsyncIterator[Place]:
    """Run a worker; see `workers`."""
    async with workers(bootstrap, model_url, 1, native=native) as (place,):
        yield place


@asynccontextmanager
async def workers(bootstrap: str, model_url: str, count: int, *, native: bool = True) -> AsyncIterator[list[Place]]:
    """Run workers that share topics of their own, which are deleted afterwards.

    Settings in the environment are tried out.
    """
    group = f"bench-{uuid4().hex[:8]}"
    variables = {
        **{name: value for name, value in os.environ.items() if name.startswith("HEADRACE_")},
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "OPENAI_BASE_URL": model_url,
        "HEADRACE_AUTH": "dev",
        "HEADRACE_RETRIEVAL": "off",
        "HEADRACE_TOPIC_PREFIX": f"{group}.",
        "HEADRACE_GROUP": group,
        "HEADRACE_ANSWER_TOKENS": "1000000",
        "HEADRACE_TURN_SECONDS": "3600",
    }
    with TemporaryDirectory() as folder:
        processes = [Worker(Path(folder) / str(number), variables) for number in range(count)]
        try:
            for process in processes:
                process.launch()
            await asyncio.gather(*(process.ready() for process in processes))
            yield [Place("worker", f"{process.url}/v1", process.pid, native) for process in processes]
        finally:
            await asyncio.gather(*(process.stop() for process in processes))
            # Also the changelogs of their tables, which are named after the group.
            await asyncio.to_thread(delete_topics, bootstrap, group)


def delete_topics(bootstrap: str, prefix: str) -> None:
    """Delete all topics whose names begin like this, so that a hundred runs leave nothing behind."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    names = [name for name in admin.list_topics(timeout=10).topics if name.startswith(prefix)]
    for deleted in admin.delete_topics(names).values() if names else ():
        deleted.result(30)


def broker_pids(bootstrap: str) -> list[int]:
    """Return the processes that listen at the brokers' ports; none for those on another machine."""
    ports = {int(broker.rpartition(":")[2]) for broker in bootstrap.split(",")}
    listening = (
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port in ports
    )
    return sorted({pid for pid in listening if pid is not None})


def cpu_seconds(pids: Collection[int]) -> float:
    """Return the CPU time that processes have used together; nan for none."""
    return sum(map(cpu_seconds_of, pids)) if pids else float("nan")


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU time that a process has used, with all its threads."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS


def page_faults(pid: int) -> int:
    """Return how often a process was given memory that it had no page for yet."""
    return int(_stat(pid)[7])


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()


def counter(url: str, name: str) -> float:
    """Return a counter of a worker's /metrics."""
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics", timeout=10) as answer:  # noqa: S310 - our own
        text = answer.read().decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else float("nan")
