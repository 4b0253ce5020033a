"""A worker's place among the processes of its machine, and that of the processes beside it: they come after it.

A token waits while another process has the core that it needs. Elasticsearch's compiler, for one, takes both of two
cores for 20 to 50 ms where it is started afresh. Linux shares cores among sessions first and looks at niceness only
within one (autogroups, sched(7)), so what is to count against others is given to the session, too (docs/adr/0020).
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

THREADS: Final = Path("/proc/self/task")
AUTOGROUP: Final = Path("/proc/self/autogroup")
AFTER: Final = 10
LAST: Final = 19


def go_first(niceness: int) -> bool:
    """Give this process's threads, and those that they will start, a niceness of at most that; return whether we may.

    Lowering it is a right (CAP_SYS_NICE or RLIMIT_NICE). In a container it does not tell against another container: the
    containers' shares do.
    """
    threads = [int(thread.name) for thread in THREADS.iterdir()] if THREADS.is_dir() else [0]
    try:
        for thread in threads:
            with suppress(ProcessLookupError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, thread, min(niceness, os.getpriority(os.PRIO_PROCESS, thread)))
    except PermissionError:
        return False
    _give_session(niceness)
    return True


def come_after() -> None:
    """Have a niceness of at least 10, whatever the worker's is that we come from."""
    os.setpriority(os.PRIO_PROCESS, 0, max(AFTER, os.getpriority(os.PRIO_PROCESS, 0)))


def come_last() -> None:
    """Run as idle work, on cores that nobody else wants, in a session of its own that comes last. Linux only."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.setsid()
    _give_session(LAST)


def _give_session(niceness: int) -> None:
    with suppress(OSError):  # a kernel that shares cores among no sessions
        AUTOGROUP.write_text(str(niceness), encoding="ascii")
