"""`headrace worker` on real processes: what it does when its child dies, when it is told to end, and when it dies."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from streams import supervisor
from streams.supervisor import LONGEST_PAUSE_SECONDS, parse, pause_before, worker_command

ROOT = Path(__file__).parents[2]
# Says its process id, and lives until a signal ends it.
LIVE = "import os, signal; print('child', os.getpid(), flush=True); signal.pause()"
# Says which signal it got, and ends in order.
OBEY = """
import os, signal, sys
def end(signum, frame):
    print('got', signal.Signals(signum).name, flush=True)
    sys.exit(7)
for each in (signal.SIGTERM, signal.SIGINT): signal.signal(each, end)
print('child', os.getpid(), flush=True)
while True: signal.pause()
"""
DEAF = "import signal\nfor each in (signal.SIGTERM, signal.SIGINT): signal.signal(each, signal.SIG_IGN)\n" + LIVE


class Supervised:
    """A supervisor in a process of its own, and what it and its child say."""

    def __init__(self, child: str, *, stop_seconds: float = 10, pause: float = 0) -> None:
        command = [sys.executable, "-m", "tests.support.supervised", str(stop_seconds), str(pause), child]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        self.out: IO[str] = self.process.stdout

    def says(self) -> str:
        """Return the next line, "" at the end."""
        return self.out.readline().strip()

    def child(self) -> int:
        """Return the id that the child says."""
        said, _, pid = self.says().partition(" ")
        assert said == "child"
        return int(pid)

    def ends(self) -> int:
        """Return the exit code."""
        return self.process.wait(20)


Supervise = Callable[..., Supervised]


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    """Starts supervisors that are gone at the end, with what they started."""
    started: list[Supervised] = []

    def start(child: str, **options: float) -> Supervised:
        started.append(Supervised(child, **options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.wait()
        each.out.close()


# -- the child dies


def test_a_child_that_is_killed_is_evicted_first_and_then_started_again(supervise: Supervise) -> None:
    supervised = supervise(LIVE)
    first = supervised.child()

    os.kill(first, signal.SIGKILL)

    assert supervised.says() == "evicted"
    assert supervised.says() == "deaths 1"
    assert supervised.child() != first


def test_a_child_that_dies_again_and_again_is_waited_for_longer(supervise: Supervise) -> None:
    supervised = supervise("raise SystemExit(1)")

    said = [supervised.says() for _ in range(6)]

    assert said == ["evicted", "deaths 1", "evicted", "deaths 2", "evicted", "deaths 3"]


def test_a_child_that_asks_for_a_while_gets_it_at_once(supervise: Supervise) -> None:
    supervised = supervise(f"raise SystemExit({os.EX_TEMPFAIL})")

    assert supervised.says() == "evicted"
    assert supervised.says() == "deaths 2"


def test_a_child_with_a_wrong_setting_is_not_started_again(supervise: Supervise) -> None:
    supervised = supervise(f"print('no such setting', flush=True); raise SystemExit({os.EX_CONFIG})")

    assert supervised.ends() == os.EX_CONFIG
    assert supervised.out.read() == "no such setting\n"


def test_a_child_that_left_in_order_by_itself_is_started_again_without_eviction(supervise: Supervise) -> None:
    supervised = supervise("raise SystemExit(0)", pause=60)

    assert supervised.says() == "deaths 1"


@pytest.mark.parametrize(
    ("deaths", "least", "most"),
    [(1, 0, 0), (2, 0.5, 1), (3, 1, 2), (6, 8, 16), (7, 15, 30), (1000, 15, LONGEST_PAUSE_SECONDS)],
)
def test_pauses_double_up_to_a_bound_and_half_of_each_is_chance(deaths: int, least: float, most: float) -> None:
    pauses = {pause_before(deaths) for _ in range(100)}

    assert all(least <= pause <= most for pause in pauses)
    assert len(pauses) > 50 or most == 0


# -- it is told to end


@pytest.mark.parametrize(
    ("signum", "passed_on"),
    [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT"), (signal.SIGHUP, "SIGTERM")],
    ids=lambda value: getattr(value, "name", "as " + str(value)),
)
def test_a_signal_is_passed_on_and_the_childs_exit_code_is_its_own(
    supervise: Supervise, signum: signal.Signals, passed_on: str
) -> None:
    supervised = supervise(OBEY)
    supervised.child()

    supervised.process.send_signal(signum)

    assert supervised.says() == f"got {passed_on}"
    assert supervised.ends() == 7


def test_a_child_that_does_not_end_is_killed_and_evicted(supervise: Supervise) -> None:
    supervised = supervise(DEAF, stop_seconds=0.2)
    supervised.child()

    supervised.process.terminate()

    assert supervised.ends() == 128 + signal.SIGKILL
    assert supervised.says() == "evicted"


def test_it_ends_at_once_where_there_is_no_child_at_this_moment(supervise: Supervise) -> None:
    supervised = supervise("raise SystemExit(3)", pause=3600)
    while not supervised.says().startswith("deaths"):
        pass

    supervised.process.terminate()

    assert supervised.ends() == 3


def test_it_starts_nobody_any_more_when_it_is_told_to_end_between_two_children(supervise: Supervise) -> None:
    supervised = supervise("raise SystemExit(3)", pause=-1)

    assert supervised.ends() == 3
    assert supervised.out.read() == "evicted\ndeaths 1\n"


# -- it dies itself


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
def test_a_child_whose_supervisor_is_killed_is_told_to_hand_over(supervise: Supervise) -> None:
    supervised = supervise(OBEY)
    supervised.child()

    supervised.process.kill()

    assert supervised.says() == "got SIGTERM"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt orphans that is not the first")
def test_orphans_are_reaped(supervise: Supervise) -> None:
    leave = "import subprocess; print('orphan', subprocess.Popen(['sleep', '0.2']).pid, flush=True)"
    supervised = supervise(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {leave!r}])\n{LIVE}")
    orphan = int(supervised.says().removeprefix("orphan "))
    supervised.child()

    deadline = time.monotonic() + 20
    while psutil.pid_exists(orphan):
        assert time.monotonic() < deadline, "it is a zombie"
        time.sleep(0.02)


# -- the command


def test_options_go_to_faust_and_the_port_is_known_to_both() -> None:
    options, rest = parse(["worker", "--web-host", "10.0.0.1", "-D", "/data", "--web-port", "7000", "-l", "debug"])
    command = worker_command(options, rest)

    assert command[command.index("-A") - 2 :] == [
        *("--datadir", "/data", "-A", "streams.app", "worker", "-l", "info"),
        *("--web-port", "7000", "--web-host", "10.0.0.1", "-l", "debug"),
    ]


@pytest.mark.parametrize(
    ("arguments", "environ", "port"),
    [([], {}, 6066), ([], {"WEB_PORT": "7001"}, 7001), (["-p", "7002"], {"WEB_PORT": "7001"}, 7002)],
)
def test_the_port_is_that_of_the_worker(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], environ: dict[str, str], port: int
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    options, _ = parse(["worker", *arguments])

    assert options == argparse.Namespace(command="worker", datadir=None, web_port=port)


def test_it_does_without_faust_and_the_app() -> None:
    code = f"import {supervisor.__name__}, sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert not loaded & {"faust", "mode", "aiohttp", "torch", "rocksdict", "openai", "confluent_kafka"}
