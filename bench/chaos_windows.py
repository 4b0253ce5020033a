"""The windows' fault campaign: workers and stores are killed while finished turns flow, and every row is checked.

    python -m bench.chaos_windows                # 20 kills, 10,000 turns and more, about 8 minutes
    python -m bench.chaos_windows --short        # a few kills, 3 minutes

Finished turns, and what users say of some, are written to their topics by this program, with their own times: most are
on time, some come late, some come twice, as after a crash. What the stores and the metrics topics have to say in the
end is worked out here from what was written, by code that shares nothing with the product's
(`bench/windows_campaign/truth.py`), and all of it is compared: every field of every row. Starts everything itself on
free ports; needs Java, Debian's Postgres and the services script (HEADRACE_TEST_SERVICES). Ends with 1 and what was
wrong if a row is.
"""

import argparse
import asyncio
import random
import shutil
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic
from typing import Final

from bench.machine import described, running
from bench.windows_campaign.check import check
from bench.windows_campaign.load import PRICES, Load
from tests.support.services import launch
from tests.support.worker import Worker, WorkerDied

WORKERS: Final = 3
PARTITIONS: Final = 8
WINDOW_SECONDS: Final = 5
GRACE_SECONDS: Final = 2
FREEZE_SECONDS: Final = 8.0  # the session time-out is 6
BETWEEN_SECONDS: Final = (7.0, 11.0)
OUTAGE_SECONDS: Final = 20.0
KINDS: Final = ("SIGKILL", "SIGTERM", "SIGSTOP")


@dataclass
class Plan:
    """How long and how hard. ``widths``: the metrics windows whose final rows are waited for, in seconds."""

    kills: int
    turns: int
    rate: float
    widths: tuple[int, ...]


FULL: Final = Plan(20, 10_000, 300.0, (10, 60, 300))
SHORT: Final = Plan(4, 2_000, 150.0, (10, 60))


@dataclass
class Stores:
    """Kafka, Elasticsearch and Postgres of this campaign alone."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    async def up(self) -> None:
        """Start them."""
        self.environ = await self._run("up", "--only", "kafka,es,pg")

    async def outage(self, name: str, seconds: float) -> None:
        """Kill one, and start it again later."""
        await self._run("kill", name)
        await asyncio.sleep(seconds)
        await self._run("start", name)

    async def down(self) -> None:
        """End them, and delete what they had."""
        await self._run("down", "--wipe")

    async def _run(self, *command: str) -> dict[str, str]:
        return await asyncio.to_thread(launch, self.folder, *command)


async def strike(worker: Worker, kind: str) -> None:
    """Do to a worker what the kind says, and return when it has been started again or goes on."""
    match kind:
        case "SIGKILL":
            worker.kill()
        case "SIGTERM":
            await worker.terminate()
            worker.launch()
        case _:
            worker.freeze()
            await asyncio.sleep(FREEZE_SECONDS)
            worker.thaw()


async def strikes(workers: list[Worker], kills: int, dice: random.Random) -> None:
    """Do so many, at random moments, to random workers."""
    for number in range(kills):
        await asyncio.sleep(dice.uniform(*BETWEEN_SECONDS))
        worker, kind = dice.choice(workers), KINDS[number % len(KINDS)]
        try:
            await strike(worker, kind)
        except WorkerDied:  # its supervisor was starting it at that moment
            kind += ", but it was dead already"
        say(f"kill {number + 1} of {kills}: {kind} of worker {workers.index(worker) + 1}")


async def outages(stores: Stores) -> None:
    """Let each store be away once."""
    for name in ("pg", "es"):
        await asyncio.sleep(OUTAGE_SECONDS / 2)
        say(f"{name} killed")
        await stores.outage(name, OUTAGE_SECONDS)
        say(f"{name} started again")


async def campaign(plan: Plan, seed: int, folder: Path) -> bool:
    """Run one; return whether every row was right."""
    dice = random.Random(seed)  # noqa: S311 - a schedule that can be run again
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
            "HEADRACE_PARTITIONS": str(PARTITIONS),
            "HEADRACE_WINDOW_SECONDS": str(WINDOW_SECONDS),
            "HEADRACE_METRICS_GRACE_SECONDS": str(GRACE_SECONDS),
            "HEADRACE_INPUT_PRICE": prices(0),
            "HEADRACE_OUTPUT_PRICE": prices(1),
        }
        workers = [Worker(folder / f"w{number}", environ, supervised=True) for number in range(1, WORKERS + 1)]
        for worker in workers:
            stack.push_async_callback(worker.stop)
            worker.launch()
        for worker in workers:
            await worker.ready(90)
        load = Load(environ["KAFKA_BOOTSTRAP_SERVERS"], PARTITIONS, random.Random(seed + 1))  # noqa: S311
        over = asyncio.Event()
        flowing = asyncio.create_task(load.run(plan.rate, plan.turns, over))
        await asyncio.gather(strikes(workers, plan.kills, dice), outages(stores))
        over.set()
        await flowing
        written = load.written
        say(f"{len(written.turns):,} turns and {len(written.votes):,} votes written in {load.records:,} records")
        return await check(written, environ, plan.widths, say)


def prices(which: int) -> str:
    """Return what the models cost, as the setting has it."""
    return ",".join(f"{model}={price[which]}" for model, price in PRICES.items() if price is not None)


def say(line: str) -> None:
    """Print a line of progress."""
    print(f"{monotonic() - BEGAN:7.1f} s  {line}", flush=True)


BEGAN: Final = monotonic()


def main() -> None:
    """Run the campaign; end with 1 if a row is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="a few kills, 3 minutes")
    parser.add_argument("--folder", type=Path, help="where logs and data go; a new one by default")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(mkdtemp(prefix="headrace-chaos-windows-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # Postgres refuses to run as root, and its own user has to reach its data
    plan = SHORT if arguments.short else FULL
    say(f"seed {arguments.seed}: {plan.kills} kills, {plan.rate:.0f} turns/s, on {described()}; logs in {folder}")
    if not asyncio.run(campaign(plan, arguments.seed, folder)):
        raise SystemExit(1)
    if not arguments.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
