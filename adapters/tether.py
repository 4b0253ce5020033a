"""Runs a command that ends when whoever started it ends, even by SIGKILL.

    python tether.py PARENT SIGNAL COMMAND [ARGUMENT ...]

Linux sends SIGNAL to the command when PARENT (the process that starts us) is gone. It does so when the *thread*
that started us ends, so start services from a thread that outlives them. Elsewhere than on Linux the command
runs untied.

A program of its own, because the code that Popen would run between fork and exec (``preexec_fn``) can hang in a
process that has threads.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def tie(parent: int, signum: int) -> None:
    """Have the kernel send us this signal when our parent ends. It outlives exec, but not a change of user."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        # It ended before we asked for the signal, which will therefore never come.
        raise SystemExit(1)


if __name__ == "__main__":
    tie(int(sys.argv[1]), int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606 - the command comes from our own code
