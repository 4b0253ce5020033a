"""A worker as a process of its own, started just as in production, to be killed, frozen and started again."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import aiohttp
import psutil

from adapters import tether
from deploy.embedded import free_port

ROOT: Final = Path(__file__).parents[2]
# Set by whoever runs the tests, and not meant for the workers in them.
NOT_INHERITED: Final = (
    "HEADRACE_",
    "KAFKA_BOOTSTRAP_SERVERS",
    "ELASTICSEARCH_URL",
    "DATABASE_URL",
    "OPENAI_BASE_URL",
    "OPENAI_API_KEY",
)


class WorkerDied(Exception):
    """A worker ended, or did not become ready, with the end of its log."""


class Worker:
    """One worker: its folder (data and log), its port, and its process of the moment.

    ``environ`` is what it gets besides PATH and the like; it may be changed between two starts. ``supervised``: it
    runs under `headrace worker`, which starts it again when it is killed.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str], *, supervised: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.environ = dict(environ)
        self.supervised = supervised
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that was started last: of a supervised worker, its supervisor."""
        return self._started().pid

    @property
    def worker_pid(self) -> int:
        """The worker itself; raises `WorkerDied` in the moment between a death and the restart."""
        if not self.supervised:
            return self.pid
        children = psutil.Process(self.pid).children()
        if not children:
            raise WorkerDied("its supervisor has no child at this moment")
        return children[0].pid

    @property
    def running(self) -> bool:
        """Whether there is a process, frozen or not."""
        return self._process is not None and self._process.poll() is None

    async def start(self, within: float = 60.0) -> None:
        """Start it and return when it is ready; raises `WorkerDied`."""
        self.launch()
        await self.ready(within)

    def launch(self) -> None:
        """Start it, with the data folder of its last life, and return at once."""
        assert not self.running, "this worker runs already"
        listen = ["--web-host", "127.0.0.1", "--web-port", str(self.port)]
        data = ["--datadir", str(self.folder / "data")]
        if self.supervised:
            command = [sys.executable, "-m", "streams.supervisor", "worker", *data, *listen]
        else:
            faust = Path(sys.executable).with_name("faust")
            command = [str(faust), *data, "-A", "streams.app", "worker", "-l", "info", *listen]
        # It must not outlive a pytest that is killed.
        tied = [sys.executable, "-I", tether.__file__, str(os.getpid()), str(int(signal.SIGKILL))]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*tied, *command],
                cwd=ROOT,
                env=inherited | self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def ready(self, within: float = 60.0) -> None:
        """Return when GET /readyz answers 200; raises `WorkerDied` if it ends first or takes longer."""
        try:
            async with asyncio.timeout(within), aiohttp.ClientSession() as session:
                while not await self._answers(session):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise WorkerDied(f"not ready within {within:.0f} s; its log ends:\n{self.last_lines()}") from None

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        if not self.running:
            raise WorkerDied(f"ended with {self._started().returncode}; its log ends:\n{self.last_lines()}")
        with suppress(aiohttp.ClientError):
            async with session.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        return False

    def kill(self) -> None:
        """End it at once, as a crash would. A supervisor lives on, tells Kafka and starts it again.

        Unsupervised, for tests on a real Kafka: the embedded broker waits for a dead member of a group for ever.
        """
        if self.supervised:
            os.kill(self.worker_pid, signal.SIGKILL)
        else:
            self.lose_machine()

    def kill_supervisor(self) -> None:
        """End the supervisor alone; its worker gets a SIGTERM from the kernel and hands over."""
        os.kill(self.pid, signal.SIGKILL)
        self._started().wait()

    def lose_machine(self) -> None:
        """End everything at once, supervisor or not, as a machine that loses its power does."""
        # Its own session: whatever it started dies with it.
        os.killpg(self.pid, signal.SIGKILL)
        self._started().wait()

    async def terminate(self, within: float = 30.0) -> int:
        """Ask it to end, as an operator would, and return its exit code; raises TimeoutError."""
        process = self._started()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(within):
            while process.poll() is None:
                await asyncio.sleep(0.02)
        return process.returncode

    async def ended(self, within: float = 60.0) -> int:
        """Return its exit code once it has ended by itself; raises TimeoutError."""
        process = self._started()
        async with asyncio.timeout(within):
            while process.poll() is None:
                await asyncio.sleep(0.02)
        return int(process.returncode)

    def freeze(self) -> None:
        """Halt it as it stands, like a long pause; a supervisor goes on and notices nothing."""
        os.kill(self.worker_pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen worker go on."""
        with suppress(WorkerDied):  # it may have been killed in its sleep
            os.kill(self.worker_pid, signal.SIGCONT)

    async def stop(self, within: float = 15.0) -> None:
        """End it in whatever state it is. May be called again."""
        if not self.running:
            return
        self.thaw()
        try:
            await self.terminate(within)
        except TimeoutError:
            self.lose_machine()

    def last_lines(self, count: int = 40) -> str:
        """Return the end of its log, without what our own asking whether it is ready left there."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if "/readyz" not in line][-count:])

    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "this worker was never started"
        return self._process
