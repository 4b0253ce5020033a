"""The processes of a campaign: brokers, workers, the model server, and toxiproxy on every line between them.

Each broker has a listener of its own for each worker, and a proxy before each listener. So the network of one worker
can be cut while the others go on, which one proxy for all workers could not do. The services script starts brokers from
its state.json, so the listeners are written there before the first start.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final

import aiohttp
from confluent_kafka.admin import AdminClient
from yarl import URL

from bench.machine import ROOT, running
from tests.support.services import launch
from tests.support.worker import Worker

# It may lie beside the repository; the variable names another place.
TOXIPROXY: Final = os.environ.get("HEADRACE_TEST_TOXIPROXY") or str(ROOT.parent / "shared/tools/toxiproxy-server")
GROUP: Final = "campaign"
OFFSETS: Final = "__consumer_offsets"
PARTITIONS: Final = 8
DISK_BYTES: Final = 96 << 20
LOOK_SECONDS: Final = 0.25
CALM_SECONDS: Final = 1.0
MODEL_SERVERS: Final = 2
TENANTS: Final = 6
# A dead broker is noticed after 3 s instead of 9; what a single replica has is not acknowledged.
BROKER_SETTINGS: Final = (
    "broker.session.timeout.ms=3000",
    "broker.heartbeat.interval.ms=500",
    # A dead controller is replaced after one to two seconds; with Kafka's defaults, after two to four.
    "controller.quorum.fetch.timeout.ms=1000",
    "controller.quorum.election.timeout.ms=500",
    "min.insync.replicas=2",
)


def api_key(tenant: int) -> str:
    """Return the key of a tenant's user."""
    return f"campaign-key-of-tenant-{tenant:02d}"


_given: set[int] = set()
"""Ports on which somebody is going to listen: of forty out of 17,000, two are the same in every twentieth campaign."""


def lasting_port() -> int:
    """Return a free port that stays free while nobody listens: none that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(15_000, 32_000)  # noqa: S311 - any will do
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


def toxiproxy_program() -> str | None:
    """Return where toxiproxy is."""
    return shutil.which("toxiproxy-server") or shutil.which(TOXIPROXY)


# -- brokers


class Brokers:
    """Brokers of a real Kafka. ``lines`` are the names of who gets a listener of his own."""

    def __init__(self, folder: Path, count: int, lines: Sequence[str]) -> None:
        self.names = [f"kafka{number}" for number in range(1, count + 1)]
        self._folder = folder
        self._ports = {name: lasting_port() for name in self.names}
        self.advertised = {(line, name): lasting_port() for line in lines for name in self.names}
        self.listening = {place: lasting_port() for place in self.advertised}
        self._state = {name: self._declared(name, lines, count) for name in self.names}
        self.down: set[str] = set()

    def _declared(self, name: str, lines: Sequence[str], count: int) -> dict[str, Any]:
        """Return what the services script is to know of a broker; later properties override its own."""
        port = self._ports[name]

        def listeners(ports: Mapping[tuple[str, str], int]) -> str:
            return ",".join(f"{line.upper()}://127.0.0.1:{ports[line, name]}" for line in lines)

        controller = lasting_port()
        own = f"PLAINTEXT://127.0.0.1:{port}"
        protocols = ",".join(f"{each}:PLAINTEXT" for each in ("PLAINTEXT", "CONTROLLER", *map(str.upper, lines)))
        settings = [
            f"listeners={own},{listeners(self.listening)},CONTROLLER://127.0.0.1:{controller}",
            f"advertised.listeners={own},{listeners(self.advertised)}",
            f"listener.security.protocol.map={protocols}",
            *(BROKER_SETTINGS if count >= 3 else BROKER_SETTINGS[:-1]),
        ]
        return {"port": port, "controller": controller, "set": settings}

    @property
    def bootstrap(self) -> str:
        """Where the verifier reads: past all proxies."""
        return ",".join(f"127.0.0.1:{port}" for port in self._ports.values())

    def of(self, line: str) -> str:
        """Where a worker finds the brokers: at its own proxies."""
        return ",".join(f"127.0.0.1:{self.advertised[line, name]}" for name in self.names)

    async def up(self) -> None:
        """Start all."""
        self._folder.mkdir(parents=True)
        (self._folder / "state.json").write_text(json.dumps(self._state), encoding="utf-8")
        await self._run("up", "--only", "kafka")

    async def kill(self, name: str) -> None:
        """End one at once."""
        self.down.add(name)
        await self._run("kill", name)

    async def start(self, name: str) -> None:
        """Start it again, with what its disk has."""
        await self._run("start", name)
        self.down.discard(name)

    async def wipe(self) -> None:
        """End all, and delete their data; what they logged is kept."""
        await self._run("down")
        for log in self._folder.glob("*.log"):
            shutil.copy(log, self._folder.parent)
        shutil.rmtree(self._folder)

    async def _run(self, *command: str) -> None:
        await asyncio.to_thread(launch, self._folder, *command)

    # -- who is who

    def in_sync(self) -> bool:
        """Return whether every partition has all its copies in sync, and a leader."""
        if self.down:
            return False
        topics = self._admin().list_topics(timeout=5).topics.values()
        return all(
            len(partition.isrs) == len(partition.replicas) and partition.leader >= 0
            for topic in topics
            for partition in topic.partitions.values()
        )

    def leader_of(self, topic: str, partition: int) -> str:
        """Return the broker that leads a partition."""
        return f"kafka{self._admin().list_topics(topic, timeout=10).topics[topic].partitions[partition].leader}"

    def coordinator(self) -> str:
        """Return the broker that coordinates the workers' group."""
        # Asked for it, librdkafka's admin client sends a DescribeGroups that was never answered here.
        offsets = self._admin().list_topics(OFFSETS, timeout=10).topics[OFFSETS].partitions
        return f"kafka{offsets[java_hash(GROUP) % len(offsets)].leader}"

    def controller(self) -> str:
        """Return the broker that leads the quorum of controllers; clients are told any broker, its files tell this."""
        states = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in self._folder.glob("kafka*/__cluster_metadata-0/quorum-state")
        ]
        latest = max(states, key=lambda state: (state["leaderEpoch"], state["leaderId"]))
        return f"kafka{latest['leaderId']}"

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})


def java_hash(text: str) -> int:
    """Return Java's hash of a string without its sign, by which Kafka finds the partition of a group's offsets."""
    code = 0
    for char in text:
        code = (31 * code + ord(char)) & 0xFFFFFFFF
    return code & 0x7FFFFFFF


# -- networks


class Lines:
    """Proxies that can be made bad, by name."""

    def __init__(self, session: aiohttp.ClientSession, api: str) -> None:
        self._session = session
        self._api = api
        self._names: set[str] = set()

    async def open(self, within: float = 10.0) -> None:
        """Wait until toxiproxy answers."""
        async with asyncio.timeout(within):
            while True:
                with suppress(aiohttp.ClientError):
                    return await self._call("GET", "/version")
                await asyncio.sleep(0.05)

    async def add(self, name: str, listen: int, upstream: int) -> None:
        """Make a line from a port to another."""
        body = {"name": name, "listen": f"127.0.0.1:{listen}", "upstream": f"127.0.0.1:{upstream}", "enabled": True}
        await self._call("POST", "/proxies", body)
        self._names.add(name)

    def between(self, one: str, other: str) -> list[str]:
        """Return the lines from one to another, e.g. between a worker and all brokers."""
        return sorted(name for name in self._names if name.startswith(f"{one} {other}"))

    async def cut(self, names: Iterable[str]) -> None:
        """Close all connections, and take no new ones."""
        for name in names:
            await self._call("POST", f"/proxies/{name}", {"enabled": False})

    async def poison(self, names: Iterable[str], toxic: str, **attributes: int) -> None:
        """Make lines bad in both directions: latency, bandwidth, timeout (half-open where it is 0)."""
        for name in names:
            for stream in ("upstream", "downstream"):
                body = {"name": f"{toxic} {stream}", "type": toxic, "stream": stream, "attributes": attributes}
                await self._call("POST", f"/proxies/{name}/toxics", body)

    async def heal(self) -> None:
        """Make all lines good again."""
        await self._call("POST", "/reset")

    async def _call(self, method: str, path: str, body: Any = None) -> None:
        async with self._session.request(method, self._api + path, json=body) as answer:
            if answer.status >= 400:
                raise RuntimeError(f"toxiproxy {method} {path}: {await answer.text()}")


@contextmanager
def toxiproxy(log: Path) -> Iterator[str]:
    """Run it until the block is left; yield where its API is."""
    port = lasting_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [toxiproxy_program() or TOXIPROXY, "-host", "127.0.0.1", "-port", str(port)], stdout=out, stderr=out
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


# -- workers


@dataclass
class Member:
    """One worker of the campaign: its process, its clock, and how it was when last looked at."""

    name: str
    worker: Worker
    clock: Path
    wanted: bool = False
    partitions: frozenset[int] | None = None
    looked_at: float = 0.0

    @property
    def ready(self) -> bool:
        """Whether it answered that it is ready."""
        return self.partitions is not None

    def set_clock(self, seconds: float) -> None:
        """Let its clock be wrong by so many seconds."""
        with self.clock.open("r+b") as file:
            file.write(struct.pack("d", seconds))


@dataclass
class Cluster:
    """Everything that runs. ``members`` are the workers, the last of them a spare that is not running at first."""

    folder: Path
    brokers: Brokers
    lines: Lines
    members: list[Member]
    session: aiohttp.ClientSession
    disks: bool
    unexpected: list[str] = field(default_factory=list)

    @property
    def spare(self) -> Member:
        """The worker that is added and removed."""
        return self.members[-1]

    def victim(self, target: int) -> Member:
        """Return one of the workers that are there all the time."""
        return self.members[target % (len(self.members) - 1)]

    def ready_urls(self) -> list[str]:
        """Return where clients are sent to, as a load balancer that asks GET /readyz would."""
        return [member.worker.url for member in self.members if member.ready]

    async def watch(self) -> None:
        """Ask the workers again and again how they are; start one again that ended by itself."""
        while True:
            await asyncio.gather(*map(self._look, self.members))
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, member: Member) -> None:
        if member.wanted and not member.worker.running:
            self.unexpected.append(f"{member.name} ended by itself:\n{member.worker.last_lines(12)}")
            member.worker.launch()
        looked_at = monotonic()
        member.partitions = await self._partitions(member) if member.wanted else None
        member.looked_at = looked_at

    async def _partitions(self, member: Member) -> frozenset[int] | None:
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            url, timeout = f"{member.worker.url}/readyz", aiohttp.ClientTimeout(total=1)
            async with self.session.get(url, timeout=timeout) as answer:
                if answer.status == 200:
                    return frozenset((await answer.json())["partitions"])
        return None

    def shared_out(self, since: float) -> bool:
        """Return whether every worker that should run has been ready since, and every partition is owned once."""
        if any(member.looked_at < since for member in self.members):
            return False
        wanted = [member for member in self.members if member.wanted]
        owned = [partition for member in wanted for partition in member.partitions or ()]
        return all(member.ready for member in wanted) and sorted(owned) == list(range(PARTITIONS))

    async def steady(self, within: float = 90.0) -> bool:
        """Wait until nothing is left of a fault, and nothing has been for a moment; return whether that came to be."""
        began = calm_since = monotonic()
        while monotonic() - calm_since < CALM_SECONDS:
            if not (self.shared_out(began) and await asyncio.to_thread(self._in_sync)):
                calm_since = monotonic()
            if monotonic() - began > within:
                return False
            await asyncio.sleep(0.1)
        return True

    def _in_sync(self) -> bool:
        try:
            return self.brokers.in_sync()
        except Exception:  # noqa: BLE001 - whatever it is, it is not in sync
            return False

    def state(self) -> str:
        """Say how the workers are, in one line."""
        return " ".join(
            f"{member.name}:{'-' if member.partitions is None else len(member.partitions)}" for member in self.members
        )


@dataclass(frozen=True, slots=True)
class Size:
    """How big a campaign is. ``disks``: workers have small disks of their own, which can be filled."""

    workers: int
    brokers: int
    supervised: bool
    disks: bool


@asynccontextmanager
async def open_cluster(folder: Path, size: Size) -> AsyncIterator[Cluster]:
    """Start everything; all of it ends with the block."""
    names = [f"w{number}" for number in range(1, size.workers + 2)]
    brokers = Brokers(folder / "kafka", size.brokers, names)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30))
        )
        models = [
            stack.enter_context(running(f"model{number}", "tests.support.model_server"))
            for number in range(1, MODEL_SERVERS + 1)
        ]
        lines = Lines(session, stack.enter_context(toxiproxy(folder / "toxiproxy.log")))
        await lines.open()
        stack.push_async_callback(brokers.wipe)
        await brokers.up()
        for (line, broker), port in brokers.advertised.items():
            await lines.add(f"{line} {broker}", port, brokers.listening[line, broker])
        members = []
        for name in names:
            ports = [lasting_port() for _ in models]
            for model, port in zip(models, ports, strict=True):
                await lines.add(f"{name} {model.name}", port, URL(model.url).port or 80)
            members.append(_member(folder, name, brokers, ports, size))
        cluster = Cluster(folder, brokers, lines, members, session, size.disks)
        stack.push_async_callback(_end, cluster)
        for member in members[:-1]:
            member.worker.launch()
            member.wanted = True
        for member in members[:-1]:
            await member.worker.ready(90)
        watching = asyncio.create_task(cluster.watch())
        stack.callback(watching.cancel)
        if not await cluster.steady():
            raise RuntimeError(f"the workers did not share the work: {cluster.state()}")
        yield cluster


def _member(folder: Path, name: str, brokers: Brokers, model_ports: Sequence[int], size: Size) -> Member:
    home = folder / name
    (home / "data").mkdir(parents=True)
    if size.disks:
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "campaign", str(home / "data")]
        subprocess.run(mounting, check=True)
    clock = home / "clock"
    clock.write_bytes(struct.pack("d", 0.0))
    settings = {
        "KAFKA_BOOTSTRAP_SERVERS": brokers.of(name),
        "HEADRACE_MODEL_SERVERS": ",".join(f"http://127.0.0.1:{port}/v1" for port in model_ports),
        # What the scripted server does. Trying it out, as by default, fails: it counts to no twelve.
        "HEADRACE_MODEL_RESUME": "prefill",
        "HEADRACE_AUTH": "required",
        "HEADRACE_RETRIEVAL": "off",
        "HEADRACE_API_KEYS": ",".join(f"tenant{number}/user:{api_key(number)}" for number in range(TENANTS)),
        "HEADRACE_GROUP": GROUP,
        "HEADRACE_PARTITIONS": str(PARTITIONS),
        "HEADRACE_REPLICATION": str(min(3, size.brokers)),
        "HEADRACE_LOG_FORMAT": "text",
        # Short, so that a fault shows within it; the shipped ones are for real models and slow lines.
        "HEADRACE_PING_SECONDS": "1",
        "HEADRACE_MODEL_STALL_SECONDS": "3",
        "HEADRACE_MODEL_CONNECT_SECONDS": "2",
        # No bytecode: several workers that start at once would write the same files.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": f"{Path(__file__).parent / 'clock'}:{ROOT}",
        "CAMPAIGN_CLOCK": str(clock),
    }
    tried = {
        key: value
        for key, value in os.environ.items()
        if key.startswith("HEADRACE_") and not key.startswith("HEADRACE_TEST_")
    }
    worker = Worker(home, settings | tried, supervised=size.supervised)
    worker.port = lasting_port()
    worker.url = f"http://127.0.0.1:{worker.port}"
    return Member(name, worker, clock)


async def _end(cluster: Cluster) -> None:
    for member in cluster.members:
        member.wanted = False
        if member.worker.running:
            member.worker.thaw()
            with suppress(ProcessLookupError):
                os.kill(member.worker.pid, signal.SIGTERM)
    await asyncio.gather(*(member.worker.stop() for member in cluster.members))
