"""A supervisor over a child of a test's own.

    python -m tests.support.supervised STOP_SECONDS PAUSE CHILD

CHILD is Python code. A process of its own, because a supervisor reaps every child of its process. Says on stdout
what it would do to Kafka and how often the child had died when it chose a pause. A PAUSE below 0: there is none, and a
SIGTERM comes in that very moment.
"""

import asyncio
import ctypes
import signal
import sys

from config import logging
from streams.supervisor import Supervisor

PR_SET_CHILD_SUBREAPER = 36


def say(line: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def evict() -> None:
    """Stand in for Kafka."""
    say("evicted")


async def main(stop_seconds: str, pause: str, child: str) -> int:
    """Run until the supervisor ends."""

    def pause_before(deaths: int) -> float:
        say(f"deaths {deaths}")
        if float(pause) < 0:
            signal.raise_signal(signal.SIGTERM)
        return max(0.0, float(pause))

    command = [sys.executable, "-c", child]
    return await Supervisor(command, evict, stop_seconds=float(stop_seconds), pause=pause_before).run()


if __name__ == "__main__":
    logging.configure()  # to stderr
    # Orphans come to us then, as to the first process of a container.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sys.exit(asyncio.run(main(*sys.argv[1:])))
