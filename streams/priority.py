"""A worker's place among the processes of its machine: its event loop before others, what computes beside it after it.

A token waits while another process has the core that it needs. Elasticsearch's compiler, for one, takes both of two
cores for 20 to 50 ms where it is started afresh.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

AUTOGROUP: Final = Path("/proc/self/autogroup")


def go_first(niceness: int) -> bool:
    """Give this thread, and those that it will start, a niceness of at most that; return whether we may.

    Lowering it is a right (CAP_SYS_NICE or RLIMIT_NICE). Linux shares its cores among sessions first and looks at
    niceness only within one (autogroups, sched(7)), so the session gets it too. In a container neither tells against
    another container: the containers' shares do.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, min(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
    except PermissionError:
        return False
    with suppress(OSError):  # a kernel without them
        AUTOGROUP.write_text(str(niceness), encoding="ascii")
    return True
