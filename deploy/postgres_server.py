"""The embedded PostgreSQL: makes the database on first use, then becomes its server.

    python -m deploy.postgres_server PROGRAMS FOLDER SOCKETS

PROGRAMS is the folder with postgres and initdb, of the `pgserver` wheel. We run them ourselves, because the
wheel's own start detaches the server from us, makes a system user when run by root, and opens every folder above
the data to everyone.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

DATABASE: Final = "headrace"
SUPERUSER: Final = "postgres"
NOBODY: Final = 65534
"""The user `nobody` on every common Linux."""


def as_owner(folder: Path) -> list[str]:
    """Return what goes before a command so that it does not run as root, which PostgreSQL refuses.

    The owner of the data runs it. It keeps root's right to pass any folder, because the data and the wheel may
    lie below a folder such as /root that others cannot enter.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SystemExit("PostgreSQL does not run as root, and there is no setpriv (util-linux): be another user")
    owner = folder.stat().st_uid or NOBODY
    os.chown(folder, owner, -1)
    return [
        setpriv,
        f"--reuid={owner}",
        f"--regid={owner}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        "--pdeathsig=INT",  # A change of user clears what tether.py has set.
        "--",
    ]


def adopt(sockets: Path, owner: int) -> None:
    """Give the folder of the socket to the server's user. Ends the process if it is someone else's.

    It then is in the system's temporary folder, where anyone could have made it before us.
    """
    found = sockets.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.geteuid(), owner}:
        raise SystemExit(f"{sockets} belongs to another user: remove it")
    os.chown(sockets, owner, -1)
    sockets.chmod(0o700)


def create(programs: Path, cluster: Path, prefix: Sequence[str]) -> None:
    """Make the data folder with our database in it. Appears under its name only when it is complete."""
    unfinished = cluster.with_name("unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    # The locale must not depend on who starts it first: indexes on text are sorted by it.
    initdb = [programs / "initdb", "-D", unfinished, "-U", SUPERUSER, "--auth=trust", "--locale=C", "--encoding=UTF8"]
    subprocess.run([*prefix, *map(str, initdb)], check=True)
    single = [programs / "postgres", "--single", "-D", unfinished, "postgres"]
    subprocess.run([*prefix, *map(str, single)], input=f"CREATE DATABASE {DATABASE};\n", text=True, check=True)
    unfinished.rename(cluster)


def main(programs: Path, folder: Path, sockets: Path) -> None:
    """Become the server. Data in ``folder``, reached over a Unix socket in ``sockets`` and in no other way."""
    for needed in (folder, sockets):
        needed.mkdir(mode=0o700, parents=True, exist_ok=True)
    prefix = as_owner(folder)
    if sockets != folder:
        adopt(sockets, folder.stat().st_uid)
    cluster = folder / "cluster"
    if not cluster.exists():
        create(programs, cluster, prefix)
    server = [programs / "postgres", "-D", cluster, "-k", sockets, "-h", "", "-c", "unix_socket_permissions=0700"]
    command = [*prefix, *map(str, server)]
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
