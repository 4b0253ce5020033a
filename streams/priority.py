"""A worker's place among the processes of its machine: before others, where an operator wants it to be.

A token waits while another process has the core that it needs. Elasticsearch's compiler, for one, takes both of two
cores for 20 to 50 ms where it is started afresh.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

THREADS: Final = Path("/proc/self/task")
AUTOGROUP: Final = Path("/proc/self/autogroup")


def go_first(niceness: int) -> bool:
    """Give this process's threads, and those that they will start, a niceness of at most that; return whether we may.

    Lowering it is a right (CAP_SYS_NICE or RLIMIT_NICE). Linux shares its cores among sessions first and looks at
    niceness only within one (autogroups, sched(7)), so the session gets it too. In a container neither tells against
    another container: the containers' shares do.
    """
    threads = [int(thread.name) for thread in THREADS.iterdir()] if THREADS.is_dir() else [0]
    try:
        for thread in threads:
            with suppress(ProcessLookupError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, thread, min(niceness, os.getpriority(os.PRIO_PROCESS, thread)))
    except PermissionError:
        return False
    with suppress(OSError):  # a kernel without them
        AUTOGROUP.write_text(str(niceness), encoding="ascii")
    return True
