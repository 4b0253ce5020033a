"""How Headrace is run: `make up` on one machine, and what a container engine or a cluster needs."""

import sys


def check_python(version: tuple[object, ...]) -> None:
    """End the process if this Python is too old. It comes first: our other modules would fail with a riddle."""
    if version < (3, 11):
        sys.exit(f"Headrace needs Python 3.11 or newer, and this is {'.'.join(map(str, version[:3]))}.")


check_python(sys.version_info)
