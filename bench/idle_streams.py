"""What ten thousand open streams cost on which nothing comes: memory, CPU, and the time of tokens on another stream.

    KAFKA_BOOTSTRAP_SERVERS=… python -m bench.idle_streams [--streams 10000] [--seconds 20] [--warm-up 20]

One worker. The readers wait for the turns of one conversation, which are queued behind an answer that does not come;
each turn has fifty of them. Beside them one stream is read at 50 tokens a second, for as long before the others come
as while they are there, and its added times are compared. The client is this process, so it is in no figure.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from time import monotonic
from urllib.parse import urlsplit

import aiohttp
import psutil

from bench.load import Heard, Load
from bench.machine import Place, cpu_seconds, described, kafka, running, workers
from bench.token_path import PACE, SETTLE, TAIL, warm_up
from tests.support.chat_client import ChatClient

READERS_A_TURN = 50
AT_ONCE = 200
"""Connections that are opened together: fewer than the worker's backlog holds."""


@dataclass(frozen=True, slots=True)
class State:
    """The worker over some seconds: memory at the end in bytes, CPU in percent of a core, times of the one stream."""

    memory: int
    cpu: float
    heard: Heard


class Idle(asyncio.Protocol):
    """A reader that waits."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self.lost = False

    async def open(self) -> None:
        """Connect, and return when the first byte has come."""
        at = urlsplit(self._url)
        connect = asyncio.get_running_loop().create_connection
        await connect(lambda: self, at.hostname or "127.0.0.1", at.port or 80)
        await self._open

    def leave(self) -> None:
        """Leave without a word."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the events."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        at = urlsplit(self._url)
        transport.write(f"GET {at.path} HTTP/1.1\r\nHost: {at.netloc}\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        """Note that the stream is open."""
        if not self._open.done():
            assert data.startswith(b"HTTP/1.1 200"), data[:200]
            self._open.set_result(None)

    def connection_lost(self, _: Exception | None) -> None:
        """Note that this reader does not count any more."""
        self.lost = True


@asynccontextmanager
async def idle(place: Place, streams: int) -> AsyncIterator[list[Idle]]:
    """Hold so many streams open on turns that wait."""
    base = place.url.removesuffix("/v1")
    async with aiohttp.ClientSession() as session:
        client = ChatClient(session, base)
        conversation = await client.converse()
        await client.ask(conversation, "an answer that does not come [wait=3600]")
        turns = [
            await client.ask(conversation, f"question {number}") for number in range(-(-streams // READERS_A_TURN))
        ]
    readers = [Idle(f"{base}/v1/turns/{turns[number // READERS_A_TURN]}/events") for number in range(streams)]
    try:
        for first in range(0, streams, AT_ONCE):
            async with asyncio.timeout(30):
                await asyncio.gather(*(reader.open() for reader in readers[first : first + AT_ONCE]))
        yield readers
    finally:
        for reader in readers:
            reader.leave()


async def measure(place: Place, seconds: float) -> State:
    """Read one stream for some seconds, and look at the worker meanwhile."""
    load = Load(place, 1, pace=PACE, seconds=SETTLE + seconds + TAIL)
    await load.start()
    await asyncio.sleep(SETTLE)
    since, used = monotonic(), cpu_seconds([place.pid])
    await asyncio.sleep(seconds)
    until = monotonic()
    cpu = 100 * (cpu_seconds([place.pid]) - used) / (until - since)
    await load.end()
    return State(psutil.Process(place.pid).memory_info().rss, cpu, load.heard(since, until))


def table(streams: int, alone: State, beside: State) -> str:
    """Return the figures."""
    lines = [f"{'idle':>6s} {'added p50':>11s} {'added p99':>11s} {'CPU of a core':>14s} {'memory':>9s}"]
    for count, state in ((0, alone), (streams, beside)):
        lines.append(
            f"{count:6d} {state.heard.quantile(0.5):8.2f} ms {state.heard.quantile(0.99):8.2f} ms"
            f" {state.cpu:12.1f} % {state.memory / 2**20:6.0f} MB"
        )
    p50, p99 = (beside.heard.quantile(share) / alone.heard.quantile(share) for share in (0.5, 0.99))
    each = (beside.memory - alone.memory) / streams / 1024
    lines.append(f"beside them: p50 {p50:.2f} x, p99 {p99:.2f} x; {each:.1f} kB a stream")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--streams", type=int, default=10_000)
    options.add_argument("--seconds", type=float, default=20.0, help="measured, without the idle streams and with them")
    options.add_argument("--warm-up", type=float, default=20.0, help="seconds of load before the first figure")
    return options


async def main(arguments: argparse.Namespace) -> None:
    """Run and print."""
    bootstrap = kafka()
    with running("model", "tests.support.model_server") as model:
        async with workers(bootstrap, model.url, 1) as (place,):
            await warm_up(place, arguments.warm_up)
            alone = await measure(place, arguments.seconds)
            # Only now, so that the worker has to raise its own limit.
            setrlimit(RLIMIT_NOFILE, (getrlimit(RLIMIT_NOFILE)[1],) * 2)
            async with idle(place, arguments.streams) as readers:
                beside = await measure(place, arguments.seconds)
                lost = sum(reader.lost for reader in readers)
    print(f"{described()}; {arguments.seconds:g} s each; {lost} idle streams were lost")
    print(table(arguments.streams, alone, beside))


if __name__ == "__main__":
    asyncio.run(main(parser().parse_args()))
