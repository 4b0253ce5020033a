"""What can go wrong: one function a kind of fault, which does the damage, heals it, and returns whom it befell.

Whoever calls one waits afterwards until nothing is left of it (`Cluster.steady`). A function may use the numbers of its
`Fault` only, so that the same seed does the same again as far as the victims are the same.
"""

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from bench.campaign.cluster import PARTITIONS, Cluster, Member
from bench.campaign.schedule import MODEL_FAULTS, NOT_DONE, Fault
from tests.support.worker import WorkerDied

TOKENS: Final = "chat.tokens.v1"
AFFLICTED: Final = 3
"""Turns that a fault of the model befalls."""

CLOCKS: Final = (-45.0, -5.0, 5.0, 45.0)
"""Workers take a turn id that is more than a minute ahead of their own clock for a made-up one."""


class Talk(Protocol):
    """The clients, as far as faults need them."""

    def afflict(self, kind: str, turns: int) -> None:
        """Let the next turns have a fault of the model."""

    def drop(self) -> int:
        """Break the connections of all readers; return how many had one."""


# -- workers


async def worker_killed(fault: Fault, cluster: Cluster, _: Talk) -> str:
    """SIGKILL of the worker process. A supervisor starts it again; without one, we do."""
    member = cluster.victim(fault.target)
    while member.worker.supervised:
        with suppress(WorkerDied):
            member.worker.kill()
            return member.name
        await asyncio.sleep(0.05)
    return await host_lost(fault, cluster, _)


async def host_lost(fault: Fault, cluster: Cluster, _: Talk) -> str:
    """Supervisor and worker die at once, and come back later."""
    member = cluster.victim(fault.target)
    member.wanted = False
    member.worker.lose_machine()
    await asyncio.sleep(fault.lasts)
    _start(member)
    return member.name


async def worker_terminated(fault: Fault, cluster: Cluster, _: Talk) -> str:
    """SIGTERM, as an update of the program begins; then it is started again."""
    member = cluster.victim(fault.target)
    await _terminate(member)
    _start(member)
    return member.name


async def worker_frozen(fault: Fault, cluster: Cluster, _: Talk) -> str:
    """SIGSTOP, and SIGCONT later: shorter or longer than others wait for it."""
    member = cluster.victim(fault.target)
    pid = member.worker.worker_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(fault.lasts)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return member.name


async def worker_added(_: Fault, cluster: Cluster, __: Talk) -> str:
    """One more worker takes its share."""
    _start(cluster.spare)
    return cluster.spare.name


async def worker_removed(_: Fault, cluster: Cluster, __: Talk) -> str:
    """And goes again."""
    await _terminate(cluster.spare)
    return cluster.spare.name


def _start(member: Member) -> None:
    if not member.worker.running:
        member.worker.launch()
    member.wanted = True


async def _terminate(member: Member) -> None:
    member.wanted = False
    if not member.worker.running:
        return
    try:
        await member.worker.terminate(within=40)
    except TimeoutError:
        member.worker.lose_machine()


# -- brokers


async def leader_killed(fault: Fault, cluster: Cluster, _: Talk) -> str:
    """SIGKILL of the broker that leads a partition of the tokens."""
    return await _broker_killed(fault, cluster, lambda: cluster.brokers.leader_of(TOKENS, fault.target % PARTITIONS))


async def coordinator_killed(fault: Fault, cluster: Cluster, _: Talk) -> str:
    """SIGKILL of the broker that coordinates the workers' group."""
    return await _broker_killed(fault, cluster, cluster.brokers.coordinator)


async def controller_killed(fault: Fault, cluster: Cluster, _: Talk) -> str:
    """SIGKILL of the broker that leads the controllers."""
    return await _broker_killed(fault, cluster, cluster.brokers.controller)


async def _broker_killed(fault: Fault, cluster: Cluster, which: Callable[[], str]) -> str:
    name = await asyncio.to_thread(which)
    await cluster.brokers.kill(name)
    await asyncio.sleep(fault.lasts)
    await cluster.brokers.start(name)
    return name


# -- networks


async def line_slow(fault: Fault, cluster: Cluster, _: Talk, *, to: str) -> str:
    """Few bytes a second get through."""
    return await _poisoned(fault, cluster, to, "bandwidth", rate=8 + fault.target % 40)


async def line_late(fault: Fault, cluster: Cluster, _: Talk, *, to: str) -> str:
    """Everything arrives late, and some of it later still."""
    return await _poisoned(fault, cluster, to, "latency", latency=100 + fault.target % 300, jitter=50)


async def line_half_open(fault: Fault, cluster: Cluster, _: Talk, *, to: str) -> str:
    """Connections stay open, and nothing comes through."""
    return await _poisoned(fault, cluster, to, "timeout", timeout=0)


async def line_cut(fault: Fault, cluster: Cluster, _: Talk, *, to: str) -> str:
    """Connections break, and new ones are refused."""
    lines = _affected(fault, cluster, to)
    await cluster.lines.cut(lines)
    await asyncio.sleep(fault.lasts)
    await cluster.lines.heal()
    return ", ".join(lines)


def _affected(fault: Fault, cluster: Cluster, to: str) -> list[str]:
    """Return a worker's lines to all brokers; of those to model servers, every other time one only."""
    lines = cluster.lines.between(cluster.victim(fault.target).name, to)
    return lines[:1] if to == "model" and fault.target // len(cluster.members) % 2 else lines


async def _poisoned(fault: Fault, cluster: Cluster, to: str, toxic: str, **attributes: int) -> str:
    lines = _affected(fault, cluster, to)
    await cluster.lines.poison(lines, toxic, **attributes)
    await asyncio.sleep(fault.lasts)
    await cluster.lines.heal()
    return ", ".join(lines)


# -- machines


async def clock_jumps(fault: Fault, cluster: Cluster, _: Talk) -> str:
    """A worker's clock is wrong for a while, by seconds or minutes, and then right again."""
    member = cluster.victim(fault.target)
    seconds = CLOCKS[fault.target % len(CLOCKS)]
    member.set_clock(seconds)
    await asyncio.sleep(fault.lasts)
    member.set_clock(0.0)
    return f"{member.name} by {seconds:+.0f} s"


async def disk_full(fault: Fault, cluster: Cluster, _: Talk) -> str:
    """A worker's data folder takes nothing more for a while."""
    if not cluster.disks:
        return f"{NOT_DONE}nothing can be mounted here"
    member = cluster.victim(fault.target)
    filler = member.worker.folder / "data" / "filler"
    try:
        await asyncio.to_thread(_fill, filler)
        await asyncio.sleep(fault.lasts)
    finally:
        filler.unlink()
    return member.name


def _fill(filler: "os.PathLike[str]") -> None:
    with open(filler, "wb", buffering=0) as file:  # noqa: PTH123 - unbuffered, to the last byte
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


# -- what is said


async def model_fails(fault: Fault, _: Cluster, talk: Talk) -> str:
    """The model fails over the next questions."""
    talk.afflict(fault.kind, AFFLICTED)
    return f"the next {AFFLICTED} turns"


async def clients_dropped(_: Fault, __: Cluster, talk: Talk) -> str:
    """All readers lose their connections at once."""
    return f"{talk.drop()} readers"


Do = Callable[[Fault, Cluster, Talk], Awaitable[str]]

FAULTS: Final[Mapping[str, Do]] = {
    "worker SIGKILL": worker_killed,
    "host lost": host_lost,
    "worker SIGTERM": worker_terminated,
    "worker frozen 1 s": worker_frozen,
    "worker frozen 8 s": worker_frozen,
    "worker added": worker_added,
    "worker removed": worker_removed,
    "broker killed: leader": leader_killed,
    "broker killed: coordinator": coordinator_killed,
    "broker killed: controller": controller_killed,
    "worker to Kafka: latency": partial(line_late, to="kafka"),
    "worker to Kafka: cut": partial(line_cut, to="kafka"),
    "worker to Kafka: half-open": partial(line_half_open, to="kafka"),
    "worker to Kafka: slow": partial(line_slow, to="kafka"),
    "worker to model: latency": partial(line_late, to="model"),
    "worker to model: cut": partial(line_cut, to="model"),
    "worker to model: half-open": partial(line_half_open, to="model"),
    "worker to model: slow": partial(line_slow, to="model"),
    "clock jump": clock_jumps,
    "disk full": disk_full,
    "clients dropped": clients_dropped,
    **dict.fromkeys(MODEL_FAULTS, model_fails),
}
