"""Has the worker learn Headrace's own documentation, so that the first question can be about Headrace."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.service import PROJECT, Service
from deploy.worker import Worker

OURS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs")


class OwnDocs(Service):
    """`faust -A streams.app learn` with our files. It ends by itself, and nothing depends on it."""

    name = "learn"
    title = "Learning Headrace's own documentation"

    def __init__(self, folder: Path, worker: Worker) -> None:
        super().__init__(folder)
        self._worker = worker

    @property
    def environ(self) -> Mapping[str, str]:
        """Nothing that another process would need."""
        return {}

    def variables(self) -> Mapping[str, str]:
        """Return what leads to the same services as the worker."""
        return self._worker.variables()

    def command(self) -> Sequence[str | Path]:
        """Return the command, with those of our files that are here."""
        paths = [PROJECT / name for name in OURS if (PROJECT / name).exists()]
        return [sys.executable, "-m", "faust", "-A", "streams.app", "learn", *paths]

    def ready(self) -> bool:
        """Return whether it is done."""
        return not self.running
