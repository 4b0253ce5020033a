"""A worker's place among other processes, in a process and a session of its own: lowering niceness is not undone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.priority import AUTOGROUP

ROOT = Path(__file__).parents[2]
GO_FIRST = """
import os, threading
from pathlib import Path
from adapters.priority import AUTOGROUP, go_first

{before}
gone = threading.Event()
told = lambda: gone.wait() and print(os.getpriority(os.PRIO_PROCESS, 0))
early = threading.Thread(target=told)
early.start()
print(go_first(-7))
print(os.getpriority(os.PRIO_PROCESS, 0))
gone.set()
early.join()
late = threading.Thread(target=told)
late.start()
late.join()
print(AUTOGROUP.read_text().split()[-1] if AUTOGROUP.exists() else "none")
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to lower a niceness, and to give it up")


def went(before: str = "") -> list[str]:
    """Return what came of it, and the niceness: of the thread, of one before and one after it, and of the session."""
    ran = subprocess.run(
        [sys.executable, "-c", GO_FIRST.format(before=before)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
    )
    return ran.stdout.split()


@as_root
def test_whoever_may_goes_first_with_all_threads_and_the_session() -> None:
    assert went() == ["True", "-7", "-7", "-7", "-7" if AUTOGROUP.exists() else "none"]


@as_root
def test_whoever_may_not_stays_where_it_is() -> None:
    assert went("os.setuid(65534)") == ["False", "0", "0", "0", "0" if AUTOGROUP.exists() else "none"]


@as_root
def test_whoever_was_started_before_others_stays_there() -> None:
    assert went("os.nice(-15)")[:4] == ["True", "-15", "-15", "-15"]
