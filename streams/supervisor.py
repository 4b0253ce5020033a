"""`headrace worker`: starts a worker, tells Kafka the moment it dies, and starts it again.

    headrace worker [--datadir FOLDER] [options of `faust worker`]

Kafka notices a dead worker when its session times out, after seconds in which its readers see nothing. Its parent
process knows at once. So this is the parent: small, without Faust and without the app, so that hardly anything can
kill it, and with a connection to the group's coordinator kept open, so that an eviction takes milliseconds.

It passes signals on, ends with its child's exit code, and reaps what it inherits, so it may be the first process of
a container. The worker hears of the supervisor's own death by a SIGTERM from the kernel (`adapters.tether`), and then
hands its answers over: nothing is wrong with it, but nobody would see it die.

Not its business: a worker that lives and does nothing. Readiness checks and the peer watch see that.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Final

import structlog

from adapters import tether
from adapters.group import Members, client_id
from config import logging, settings
from domain.errors import LogUnavailable

log = structlog.get_logger("streams.supervisor")  # which under `python -m` is not __name__

PORT: Final = 6066  # Faust's
# Besides what running answers are given (HEADRACE_DRAIN_SECONDS): closing tables and streams takes 3 s.
STOP_SECONDS: Final = 20.0
# Before the second restart in a row, doubled up to the longest. The first is immediate: most deaths are single.
FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 30.0
# A worker that lived this long did not die of its start. It gives up on a Kafka that is away after half of that.
WELL_SECONDS: Final = 60.0
WARM_SECONDS: Final = 30.0

Evict = Callable[[], Awaitable[None]]


class Supervisor:
    """Keeps one child running until a signal ends both. ``evict`` is called after each death and raises nothing."""

    def __init__(
        self,
        command: Sequence[str],
        evict: Evict,
        *,
        stop_seconds: float = STOP_SECONDS,
        pause: Callable[[int], float] | None = None,
    ) -> None:
        self._command = command
        self._evict = evict
        self._stop_seconds = stop_seconds
        self._pause = pause or pause_before
        self._stopping = asyncio.Event()
        self._pid = 0
        self._ended: asyncio.Future[int]

    async def run(self) -> int:
        """Return the exit code of the last child: after a signal, or when it says that trying again is no use."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(signum, self._stop, signum)
        deaths = code = 0
        # A signal that comes between two children is nobody's: whoever is started after it would never hear of it.
        while not self._stopping.is_set():
            began = loop.time()
            code = await self._live()
            if code not in {0, os.EX_CONFIG}:
                await self._evict()
            if self._stopping.is_set() or code == os.EX_CONFIG:
                break
            lived = loop.time() - began
            deaths = deaths + 1 if lived < WELL_SECONDS else 1
            # Who ends with this code asks for a while: Kafka is away, or a table cannot be written here.
            pause = self._pause(deaths + (code == os.EX_TEMPFAIL))
            log.error("worker ended", how=how(code), lived=round(lived, 1), deaths=deaths, restart_in=round(pause, 1))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
        return code if code >= 0 else 128 - code

    async def _live(self) -> int:
        """Start a child and return how it ended: its exit code, or minus the signal that killed it."""
        self._ended = asyncio.get_running_loop().create_future()
        tied = [sys.executable, "-I", tether.__file__, str(os.getpid()), str(int(signal.SIGTERM))]
        # Not asyncio's subprocess: its watcher and our reaping would take each other's exit codes. The child stays in
        # our process group, so that whoever kills the group, as a lost machine does, kills both.
        self._pid = os.posix_spawn(tied[0], [*tied, *self._command], os.environ)  # noqa: ASYNC221 - it only begins
        try:
            return await self._ended
        finally:
            self._pid = 0

    def _reap(self) -> None:
        """Take the exit codes of all children, also of orphans that a first process is given."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if pid == self._pid:
                    self._ended.set_result(os.waitstatus_to_exitcode(status))

    def _stop(self, signum: signal.Signals) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            asyncio.get_running_loop().call_later(self._stop_seconds, self._give_up)
        # Of a hang-up Faust knows nothing: it would die of it, without handing over.
        self._send(signal.SIGTERM if signum == signal.SIGHUP else signum)

    def _give_up(self) -> None:
        log.error("worker killed, because it did not end", seconds=self._stop_seconds)
        self._send(signal.SIGKILL)

    def _send(self, signum: signal.Signals) -> None:
        if self._pid:  # ours until `_reap` has taken its exit code, on this same thread
            os.kill(self._pid, signum)


def pause_before(deaths: int) -> float:
    """Return how long to wait before the restart after so many quick deaths in a row, in seconds.

    Of half a pause chance decides, so that workers that died of the same thing do not all come back at once.
    """
    if deaths <= 1:
        return 0.0
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(deaths - 2, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret


def how(code: int) -> str:
    """Return an exit code in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def worker_command(options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """Return the command of the worker. ``rest`` goes to `faust worker`."""
    # -P: the current folder is often the data folder, and nothing in it is to be taken for a module.
    faust = [sys.executable, "-P", "-m", "faust", "--quiet"]
    data = ["--datadir", options.datadir] if options.datadir else []
    return [*faust, *data, "-A", "streams.app", "worker", "-l", "info", "--web-port", str(options.web_port), *rest]


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options that the supervisor needs to know, and those that are Faust's alone."""
    parser = argparse.ArgumentParser(
        prog="headrace",
        description="Runs a worker and starts it again when it dies.",
        epilog="All other options go to `faust worker`: --web-host, --web-bind, --loglevel, …",
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=["worker"])
    parser.add_argument("--datadir", "-D", help="where the worker keeps its tables")
    port = os.environ.get("WEB_PORT") or PORT
    parser.add_argument("--web-port", "-p", type=int, default=port, help=f"where it listens (default: {PORT})")
    return parser.parse_known_args(arguments)


async def supervise(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the worker of these options until it is ended; return its exit code."""
    chosen = settings.load()
    logging.configure(chosen.log_format)
    client = client_id(chosen.group, options.web_port)
    async with aclosing(Members(chosen.kafka_bootstrap_servers, chosen.group)) as members:

        async def evict() -> None:
            try:
                await members.evict_client(client)
            except LogUnavailable as error:
                # Kafka finds out by itself, when the session times out.
                log.warning("dead worker not evicted", reason=str(error), session_seconds=chosen.session_seconds)

        warm = asyncio.create_task(_keep_warm(members, client))
        try:
            stop_seconds = STOP_SECONDS + chosen.drain_seconds
            return await Supervisor(worker_command(options, rest), evict, stop_seconds=stop_seconds).run()
        finally:
            warm.cancel()


async def _keep_warm(members: Members, client: str) -> None:
    """Know the coordinator of the moment, and have a connection to it."""
    while True:
        with suppress(LogUnavailable):  # a worker that is affected by it says so
            await members.of(client, patience=0)
        await asyncio.sleep(WARM_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal ends it; return the worker's exit code."""
    return asyncio.run(supervise(*parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    sys.exit(main())
