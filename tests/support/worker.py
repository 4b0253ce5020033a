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

from deploy import tether
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

    ``environ`` is what it gets besides PATH and the like; it may be changed between two starts.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.environ = dict(environ)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that was started last."""
        return self._started().pid

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
        faust = Path(sys.executable).with_name("faust")
        listen = ["--web-host", "127.0.0.1", "--web-port", str(self.port)]
        data = str(self.folder / "data")
        command = [str(faust), "--datadir", data, "-A", "streams.app", "worker", "-l", "info", *listen]
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
        """End it at once, as a crash or a lost machine would.

        For tests on a real Kafka: the embedded broker waits for a dead member of a group for ever.
        """
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

    def freeze(self) -> None:
        """Halt it as it stands, like a long pause of the machine."""
        self._started().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen worker go on."""
        self._started().send_signal(signal.SIGCONT)

    async def stop(self, within: float = 15.0) -> None:
        """End it in whatever state it is. May be called again."""
        if not self.running:
            return
        self.thaw()
        try:
            await self.terminate(within)
        except TimeoutError:
            self.kill()

    def last_lines(self, count: int = 40) -> str:
        """Return the end of its log, without what our own asking whether it is ready left there."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if "/readyz" not in line][-count:])

    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "this worker was never started"
        return self._process
