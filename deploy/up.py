"""`make up`: everything on this machine, with one command in one terminal, until Ctrl-C.

Starts a broker, a search server, a database and a model server, each unless its URL is in the environment, then
one worker, and watches over them. What is checked first is in `checks`, the services are in `embedded`.

    python -m deploy.up [--port 6066] [--folder .headrace]
"""

import argparse
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from deploy.checks import CHECKS, CannotStart, check_disk, check_port, check_writable, lock, shown
from deploy.embedded import Broker, Embedded, Part
from deploy.interrupts import Interrupted, Interrupts
from deploy.own_docs import OwnDocs
from deploy.progress import Progress, Step
from deploy.service import PROJECT, Service, ServiceFailed, check_alive, wait_ready
from deploy.worker import Worker

PORT: Final = 6066
VARIABLES: Final[Mapping[Part, str]] = {
    "kafka": "KAFKA_BOOTSTRAP_SERVERS",
    "es": "ELASTICSEARCH_URL",
    "pg": "DATABASE_URL",
    "model": "OPENAI_BASE_URL",
}
START_SECONDS: Final = 120.0
BACK_OFF_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Before a worker that died is started again. After the last one we give up."""
HEALTHY_SECONDS: Final = 120.0
"""A worker that lived this long did not die of its start."""
HURRIED_SECONDS: Final = 2.0
BEREFT_SECONDS: Final = 4.0
"""For a worker that has lost a service: without a broker it would wait in vain. What it had in work is in the log."""
WATCH_SECONDS: Final = 0.2


def keep_showing(step: Step, interrupts: Interrupts) -> Callable[[], None]:
    """Return what to call while a step goes on; it raises `Interrupted`."""

    def meanwhile() -> None:
        step.tick()
        interrupts.check()

    return meanwhile


class Run:
    """One run: starts services and then their worker, watches over them, and stops them."""

    def __init__(
        self, services: Sequence[Service], worker: Service, *, inherit: int, progress: Progress, interrupts: Interrupts
    ) -> None:
        self._services = services
        self._worker = worker
        self._inherit = inherit
        self._progress = progress
        self._interrupts = interrupts

    def start(self) -> None:
        """Start the services side by side, then the worker; raises `ServiceFailed` and `Interrupted`."""
        for service in self._services:
            service.start([self._inherit])
        for service in self._services:
            self._wait_ready(service)
        self._worker.start([self._inherit])
        self._wait_ready(self._worker)

    def watch(self) -> None:
        """Stay until something ends: raises `Interrupted`, or `ServiceFailed` when nothing can be done about it."""
        deaths = 0
        while True:
            self._interrupts.wait(WATCH_SECONDS)
            for service in self._services:
                check_alive(service)
            if self._worker.running:
                continue
            if time.monotonic() - self._worker.started_at > HEALTHY_SECONDS:
                deaths = 0
            if deaths == len(BACK_OFF_SECONDS):
                check_alive(self._worker)
            self._revive_worker(BACK_OFF_SECONDS[deaths])
            deaths += 1

    def stop(self) -> None:
        """Stop what runs: the worker first, because it still has something to tell the others. A Ctrl-C hastens it."""
        asked = self._interrupts.count
        bereft = any(service.exit_code is not None for service in self._services)
        for service in (self._worker, *reversed(self._services)):
            if service.running:
                patience = BEREFT_SECONDS if bereft and service is self._worker else service.stop_seconds
                with self._progress.step(f"Stopping {service.title}") as step:
                    self._stop(service, patience, lambda: self._interrupts.count > asked, step.tick)

    def _wait_ready(self, service: Service) -> None:
        with self._progress.step(service.title, since=service.started_at) as step:
            wait_ready(service, START_SECONDS, keep_showing(step, self._interrupts), every=0.1)

    def _revive_worker(self, pause: float) -> None:
        """Start the worker again. What it was answering goes on, because the log has it."""
        how, lines = self._worker.how_it_ended(), self._worker.last_lines(5)
        self._progress.say(f"\nThe worker {how}, and is started again in {pause:.0f} s. Its log ends:\n{lines}\n")
        self._interrupts.wait(pause)
        self._worker.start([self._inherit])
        try:
            self._wait_ready(self._worker)
        except ServiceFailed:
            self._worker.kill()

    def _stop(self, service: Service, patience: float, hurried: Callable[[], bool], tick: Callable[[], None]) -> None:
        began = time.monotonic()
        service.ask_to_stop()
        while service.running:
            if time.monotonic() - began > (HURRIED_SECONDS if hurried() else patience):
                service.kill()
            tick()
            time.sleep(0.02)


def up(folder: Path, port: int, progress: Progress, interrupts: Interrupts) -> None:
    """Check, then run until something ends it, which is what this raises."""
    began = time.monotonic()
    given = {part: os.environ[name] for part, name in VARIABLES.items() if os.environ.get(name)}
    progress.say(f"Headrace starts on this machine. Data and logs are in {relative(folder)}/\n")
    with progress.step("Folder and disk") as step:
        check_writable(folder)
        check_disk(folder)
        held = lock(folder, meanwhile=keep_showing(step, interrupts))
    with held:
        with progress.step(f"Port {port}"):
            check_port(port)
        for part, value in given.items():
            with progress.step(f"Given: {VARIABLES[part]}") as step:
                step.note = shown(value)
                CHECKS[VARIABLES[part]](value)
        keep_logs_of_last_run(folder)
        embedded = Embedded(folder, only=VARIABLES.keys() - given.keys())
        worker = Worker(folder, port, embedded.environ)
        docs = OwnDocs(folder, worker)
        write_addresses(folder, embedded.environ)
        run = Run(embedded.services, worker, inherit=held.fileno(), progress=progress, interrupts=interrupts)
        with tables_that_fit(worker, embedded):
            try:
                run.start()
                progress.say(welcome(worker, folder, time.monotonic() - began))
                docs.start([held.fileno()])
                run.watch()
            except ServiceFailed as error:
                progress.say(f"\n{error}\n")
                raise
            except Interrupted:
                progress.say()
                raise
            finally:
                docs.stop()
                run.stop()


@contextmanager
def tables_that_fit(worker: Worker, embedded: Embedded) -> Iterator[None]:
    """Remove the worker's tables unless the embedded broker had saved everything when it last ended.

    If it was killed, up to a second of its log is gone, and tables that have seen that second do not fit it any
    more. They are made anew from the log.
    """
    broker = next((each for each in embedded.services if isinstance(each, Broker) and "kafka" in each.ports), None)
    if broker is None:
        yield
        return
    saved = broker.data.with_name("broker.saved")
    if not saved.exists():
        shutil.rmtree(worker.data, ignore_errors=True)
    saved.unlink(missing_ok=True)
    try:
        yield
    finally:
        if broker.exit_code == 0:
            saved.touch()


def write_addresses(folder: Path, environ: Mapping[str, str]) -> None:
    """Leave what leads to the services that we start, for psql, curl or a second worker."""
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in environ.items()]
    (folder / "services.env").write_text("".join(lines))


def welcome(worker: Worker, folder: Path, took: float) -> str:
    """Return what someone who waits wants to know now."""
    ask = "make demo-question" if worker.port == PORT else f"HEADRACE_PORT={worker.port} make demo-question"
    return (
        f"\nReady after {took:.1f} s.\n\n"
        f"  Open  {worker.url}\n"
        f"  Ask   {ask} Q='How long are tokens kept?'\n"
        f"  Logs  {relative(folder)}/logs/\n"
        f"  Stop  Ctrl-C\n"
    )


def keep_logs_of_last_run(folder: Path) -> None:
    """Begin with empty logs, and keep those of the last run."""
    last = folder / "logs.previous"
    if (folder / "logs").exists():
        shutil.rmtree(last, ignore_errors=True)
        (folder / "logs").rename(last)


def relative(folder: Path) -> str:
    """Return a folder as someone in the current one would write it."""
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def port_number(text: str) -> int:
    """Return a port to listen on."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"a port (HEADRACE_PORT) is a number from 1 to 65535, not {text!r}")
    return int(text)


def main() -> int:
    """Run until someone stops it; return 1 if something else did."""
    parser = argparse.ArgumentParser(prog="python -m deploy.up", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=port_number, default=os.environ.get("HEADRACE_PORT") or str(PORT))
    kept = os.environ.get("HEADRACE_FOLDER") or PROJECT / ".headrace"
    parser.add_argument("--folder", type=Path, default=kept, help="where data and logs are kept")
    options = parser.parse_args()
    progress = Progress()
    with Interrupts() as interrupts:
        try:
            up(options.folder.resolve(), options.port, progress, interrupts)
        except Interrupted:
            progress.say("\nStopped. `make up` finds everything again.")
            return 0
        except (CannotStart, FileNotFoundError) as error:
            progress.say(f"\nHeadrace cannot start: {error}")
        except ServiceFailed:
            progress.say(f"\nHeadrace has stopped. The logs are in {relative(options.folder.resolve())}/logs/")
        return 1


if __name__ == "__main__":
    sys.exit(main())
