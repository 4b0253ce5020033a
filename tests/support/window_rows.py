"""A partition of a table of rows on a disk and in a changelog, either of which can stop where a test wants it to."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from aiokafka.errors import KafkaError
from faust.types import FutureMessage

from domain.errors import NotOwner


class Died(Exception):
    """The process came to its end here."""


@dataclass
class WindowRows:
    """``disk`` has every row that was written, ``log`` those that the changelog has.

    After ``room`` more writes the changelog fails: ``loses`` says whether it takes what it does not acknowledge. Or
    the process dies, or another worker becomes the owner and this one again: ``then``.
    """

    disk: dict[str, bytes] = field(default_factory=dict)
    log: dict[str, bytes] = field(default_factory=dict)
    own_epoch: int = 1
    room: int | None = None
    loses: bool = True
    then: str = "fail"

    def epoch(self, partition: int) -> int:
        """Return the epoch."""
        return self.own_epoch

    def row(self, partition: int, key: str) -> bytes | None:
        """Return a row from the disk."""
        return self.disk.get(key)

    def after(self, partition: int, key: str) -> Iterator[tuple[str, bytes]]:
        """Yield what comes after a key."""
        return iter([(found, self.disk[found]) for found in sorted(self.disk) if found > key])

    def put(self, partition: int, key: str, value: bytes | None) -> FutureMessage:
        """Write to the disk, and to the changelog while it works."""
        failing = self.room == 0
        if failing and self.then == "move":
            self.take_over(self.log)
            raise NotOwner("moved")
        _set(self.disk, key, value)
        if not (failing and self.loses):
            _set(self.log, key, value)
        if failing and self.then == "die":
            raise Died
        if self.room:
            self.room -= 1
        sent = asyncio.get_running_loop().create_future()
        if failing:
            sent.set_exception(KafkaError("not now"))
            sent.exception()  # it may be one of several, and only the first is looked at
        else:
            sent.set_result(None)
        return sent  # type: ignore[return-value]  # what is awaited of Faust's is a future

    def take_over(self, rows: dict[str, bytes]) -> None:
        """Begin a new assignment, with these rows."""
        self.disk = dict(rows)
        self.own_epoch += 1
        self.room = None


def _set(rows: dict[str, bytes], key: str, value: bytes | None) -> None:
    if value is None:
        rows.pop(key, None)
    else:
        rows[key] = value
