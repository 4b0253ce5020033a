"""The fault campaign: brokers, workers, a model server and clients, and a seeded schedule of what goes wrong.

    python -m bench.chaos --seed 1 --faults 300 --turns 20000 --out docs/reliability.md
    python -m bench.chaos --short                       # 10 faults, under 4 minutes
    python -m bench.chaos --only "worker SIGKILL" --faults 10

Starts everything itself, on free ports of this machine; needs Java, the services script (HEADRACE_TEST_SERVICES) and
toxiproxy-server. Ends with 0 if every promise was kept and every goal reached, and with 1 and what is needed to run it
again if not; with fewer than 300 faults a goal may take three times its time. Settings in the environment (HEADRACE_…)
are passed to the workers, so that one can be tried out.
"""

import argparse
import asyncio
import ctypes
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic
from typing import Final

from bench.campaign import report
from bench.campaign.clients import Load
from bench.campaign.cluster import Cluster, Size, open_cluster
from bench.campaign.faults import FAULTS
from bench.campaign.report import Campaign, Mark
from bench.campaign.schedule import KINDS, Fault, length, schedule, short_schedule
from bench.campaign.verify import verify
from bench.machine import described

CLONE_NEWNS: Final = 0x00020000
WARM_SECONDS: Final = 15.0
DRAIN_SECONDS: Final = 120.0
PROGRESS_SECONDS: Final = 15.0
TURNS: Final = 20_000
SHORT_TURNS: Final = 400


class Run:
    """One campaign while it runs."""

    def __init__(self, cluster: Cluster, load: Load, faults: list[Fault]) -> None:
        self._cluster = cluster
        self._load = load
        self._faults = faults
        self._began = monotonic()
        self.marks: list[Mark] = []
        self.troubles: list[str] = []

    async def run(self) -> None:
        """Do all faults of both lanes."""
        self._began = monotonic()
        watching = asyncio.create_task(self._progress())
        try:
            await asyncio.gather(self._lane("machines"), self._lane("talk"))
        finally:
            watching.cancel()

    async def _lane(self, lane: str) -> None:
        for fault in self._faults:
            if KINDS[fault.kind].lane == lane:
                await asyncio.sleep(max(0.0, self._began + fault.at - monotonic()))
                await self._do(fault)

    async def _do(self, fault: Fault) -> None:
        mark = Mark(fault, monotonic())
        self.marks.append(mark)
        try:
            mark.note = await FAULTS[fault.kind](fault, self._cluster, self._load)
        except Exception as error:  # noqa: BLE001 - the campaign goes on, and fails at its end
            self.troubles.append(f"fault {fault.number} {fault.kind} could not be done: {error!r}")
        mark.healed = mark.steady = monotonic()
        if KINDS[fault.kind].lane == "machines":
            if not await self._cluster.steady():
                self.troubles.append(f"not recovered from fault {fault.number} {fault.kind}: {self._cluster.state()}")
            mark.steady = monotonic()
        say(
            f"{mark.began - self._began:7.1f} s  fault {fault.number}: {fault.kind} ({mark.note}),"
            f" all as before after {mark.steady - mark.began:.1f} s"
        )

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            load = self._load
            say(
                f"{monotonic() - self._began:7.1f} s  {len(load.turns)} turns accepted, {load.running} clients at work,"
                f" {len(load.failures)} failures, {self._cluster.state()}"
            )


async def campaign(arguments: argparse.Namespace, folder: Path) -> Campaign:
    """Run one, and return what was found."""
    faults = (
        short_schedule(arguments.seed)
        if arguments.short
        else schedule(arguments.seed, arguments.faults, only=arguments.only)
    )
    seconds = length(faults)
    rate = arguments.turns / (seconds + WARM_SECONDS)
    say(f"seed {arguments.seed}: {len(faults)} faults in {seconds:.0f} s or more, {rate:.1f} turns/s; logs in {folder}")
    size = Size(arguments.workers, arguments.brokers, not arguments.no_supervisor, own_mounts())
    if not size.disks:
        say("nothing can be mounted here, so no disk gets full")
    async with open_cluster(folder, size) as cluster:
        began = monotonic()
        urls = [member.worker.url for member in cluster.members[:-1]]
        load = Load(arguments.seed, cluster.session, cluster.ready_urls, urls)
        over = asyncio.Event()
        loading = asyncio.create_task(load.run(rate, over))
        await asyncio.sleep(WARM_SECONDS)
        run = Run(cluster, load, faults)
        await run.run()
        await load.reached(arguments.turns)
        over.set()
        await loading
        say("faults and questions are over; waiting for the last answers")
        left = await load.drained(DRAIN_SECONDS)
        seconds = monotonic() - began
        troubles = [*run.troubles, *cluster.unexpected, *load.failures]
        if left:
            troubles.append(f"{left} clients were still waiting {DRAIN_SECONDS:.0f} s after everything")
        if not await cluster.steady():
            troubles.append(f"the workers did not come to rest: {cluster.state()}")
        say(f"verifying {len(load.turns)} turns")
        url = (cluster.ready_urls() or urls)[0]
        verdict = await verify(load.turns, load.conversations, cluster.brokers.bootstrap, cluster.session, url)
        counts = report.counted(member.worker.log for member in cluster.members)
        counts |= {
            "requests repeated": load.repeated,
            "requests without a key that were not answered": load.unanswered,
            "regenerations refused, because a worker had not seen the end yet": load.too_early,
        }
    return Campaign(
        seed=arguments.seed,
        command="python -m bench.chaos " + shlex.join(sys.argv[1:]),
        machine=described(),
        folder=folder,
        seconds=seconds,
        turns=load.turns,
        marks=run.marks,
        verdict=verdict,
        troubles=troubles,
        counts=counts,
        slack=report.SMALL_SLACK if len(faults) < report.FULL_FAULTS else 1.0,
    )


def own_mounts() -> bool:
    """Give this process mounts of its own, which end with it; return whether that may be done here."""
    if sys.platform != "linux" or ctypes.CDLL(None).unshare(CLONE_NEWNS) != 0:
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode == 0


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    described_as = (__doc__ or "").partition("\n")[0]
    found = argparse.ArgumentParser(prog="python -m bench.chaos", description=described_as)
    found.add_argument("--seed", type=int, default=1)
    found.add_argument("--faults", type=int, default=report.FULL_FAULTS)
    found.add_argument("--turns", type=int, help="at least so many; they set the rate (20,000, or 400 with --short)")
    found.add_argument("--workers", type=int, default=3)
    found.add_argument("--brokers", type=int, default=3)
    found.add_argument("--short", action="store_true", help="ten faults of different kinds, under 4 minutes")
    found.add_argument("--only", action="append", default=[], help="kinds of faults whose names begin so")
    found.add_argument("--no-supervisor", action="store_true", help="run the workers without one")
    found.add_argument("--folder", type=Path, help="where logs and data go; a new one by default")
    found.add_argument("--out", type=Path, help="where the report goes, as Markdown")
    return found


def main() -> int:
    """Run a campaign; return the exit code."""
    arguments = parser().parse_args()
    arguments.turns = arguments.turns or (SHORT_TURNS if arguments.short else TURNS)
    folder = (arguments.folder or Path(mkdtemp(prefix="headrace-chaos-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no broker outlives us
    done = asyncio.run(campaign(arguments, folder))
    report.write(done, arguments.out)
    say("\n" + report.table(done) + "\n\n" + "\n".join(report.goals(done)))
    if not done.kept:
        say("\n" + report.failure(done))
    say(f"\n{'kept' if done.kept else 'BROKEN'}; the report and all logs are in {folder}")
    return 0 if done.kept else 1


if __name__ == "__main__":
    sys.exit(main())
