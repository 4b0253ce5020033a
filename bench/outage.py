"""What a long outage of Postgres costs: answers, the worker's memory, and what arrives afterwards.

    python -m bench.outage                   # ten minutes of outage, thirteen in all
    python -m bench.outage --seconds 60

Clients ask one question after the other all the time. Postgres is killed after a minute and started again after the
outage; in the end every turn has to be in it. Prints a line a phase: questions answered, how long an answer took, the
worker's resident memory. Starts everything itself; needs what `bench.chaos_windows` needs.
"""

import argparse
import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from time import monotonic
from typing import Final

import aiohttp
import psutil
import psycopg

from bench.chaos_windows import Stores, say
from bench.machine import counter, described, running
from tests.support.chat_client import ChatClient
from tests.support.worker import Worker

CLIENTS: Final = 4
QUESTION: Final = "what is a partition? [tokens=40 pace=20]"
WARM_SECONDS: Final = 60.0
AFTER_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 1.0
SINK_UP: Final = 'headrace_archive_up{sink="postgres"}'


class Asking:
    """Clients that ask all the time. ``took`` are the seconds of the answers since the last phase."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._client = ChatClient(session, url)
        self.turns: list[str] = []
        self.took: list[float] = []

    async def run(self, over: asyncio.Event) -> None:
        """Ask until it is over."""
        conversation = await self._client.converse()
        while not over.is_set():
            began = monotonic()
            turn = await self._client.ask(conversation, QUESTION)
            seen = await self._client.read(turn)
            if seen.outcome != "completed":
                raise RuntimeError(f"turn {turn} ended as {seen.outcome}")
            self.turns.append(turn)
            self.took.append(monotonic() - began)


async def phase(name: str, seconds: float, asking: Asking, worker: Worker) -> float:
    """Let it go on, and say how it was; return the largest memory in MB."""
    asking.took.clear()
    largest, until = 0.0, monotonic() + seconds
    while monotonic() < until:
        await asyncio.sleep(LOOK_SECONDS)
        largest = max(largest, psutil.Process(worker.pid).memory_info().rss / 1e6)
    up = await asyncio.to_thread(counter, worker.url, SINK_UP)
    say(
        f"{name}: {len(asking.took):,} answers, p50 {median(asking.took):.3f} s, longest {max(asking.took):.3f} s,"
        f" memory at most {largest:.0f} MB; Postgres is {'up' if up else 'down'} for the worker"
    )
    return largest


async def missing(database_url: str, turns: list[str]) -> int:
    """Return how many turns Postgres lacks, once no more come in."""
    left, since = len(turns), monotonic()
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        while left and monotonic() - since < AFTER_SECONDS:
            found = await connection.execute("SELECT count(*) FROM turns WHERE turn_id = ANY(%s::uuid[])", [turns])
            row = await found.fetchone()
            left = len(turns) - (row[0] if row else 0)
            await asyncio.sleep(LOOK_SECONDS)
    return left


async def measure(folder: Path, seconds: float) -> bool:
    """Run it; return whether everything arrived."""
    async with AsyncExitStack() as stack:
        stores = Stores(folder / "stores")
        stack.push_async_callback(stores.down)
        await stores.up()
        model = stack.enter_context(running("model", "tests.support.model_server"))
        environ = stores.environ | {
            "OPENAI_BASE_URL": model.url,
            "OPENAI_API_KEY": "none",
            "HEADRACE_AUTH": "dev",
            "HEADRACE_RETRIEVAL": "off",
            "HEADRACE_WINDOW_SECONDS": "10",
        }
        worker = Worker(folder / "worker", environ)
        stack.push_async_callback(worker.stop)
        await worker.start(90)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        asking, over = Asking(session, worker.url), asyncio.Event()
        clients = [asyncio.create_task(asking.run(over)) for _ in range(CLIENTS)]
        await phase("before", WARM_SECONDS, asking, worker)
        outage = asyncio.create_task(stores.outage("pg", seconds))
        await phase("outage", seconds, asking, worker)
        await outage
        await phase("after", WARM_SECONDS, asking, worker)
        over.set()
        await asyncio.gather(*clients)
        left = await missing(environ["DATABASE_URL"], asking.turns)
        say(f"{len(asking.turns):,} turns answered, {left:,} of them not in Postgres")
        return not left


def main() -> None:
    """Run it; end with 1 if a turn is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long Postgres is away")
    parser.add_argument("--folder", type=Path, help="where logs and data go; a new one by default")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(mkdtemp(prefix="headrace-outage-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # for Postgres's own user
    say(f"Postgres away for {arguments.seconds:.0f} s, {CLIENTS} clients, on {described()}; logs in {folder}")
    raise SystemExit(0 if asyncio.run(measure(folder, arguments.seconds)) else 1)


if __name__ == "__main__":
    main()
