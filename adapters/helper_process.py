"""What the processes beside a worker have in common: they end with who started them, and come after the worker."""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

NICENESS: Final = 10
"""Whoever reads tokens goes first."""

LAST: Final = "19"
AUTOGROUP: Final = Path("/proc/self/autogroup")
PR_SET_PDEATHSIG: Final = 1


def end_with(parent: int) -> None:
    """End when our parent does, in the middle of whatever it is. Does nothing elsewhere than on Linux."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before we asked for the signal
            raise SystemExit(1)


def come_after() -> None:
    """Have a niceness of at least 10, whatever the worker's is that we come from."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


def come_last() -> None:
    """Run as idle work, on cores that nobody else wants. Linux only.

    Among the processes of its session, that is: Linux shares cores among sessions first (sched(7)). So it leaves the
    worker's, which goes before others, for one of its own, which comes after them.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.setsid()
    with suppress(OSError):  # a kernel that knows no such groups
        AUTOGROUP.write_text(LAST, encoding="ascii")
