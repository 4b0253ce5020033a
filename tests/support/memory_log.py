"""A token topic in memory, with a tail that moves when the test says so and a reader that can be held up."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import Message

from adapters.frames import encode
from adapters.token_tail import Batch, Cut, Read
from domain.errors import LogUnavailable
from domain.tokens import Token


class MemoryLog:
    """Partitions as lists of frames. ``beginning``: the offset below which retention has deleted everything.

    ``open``: clear it to hold up whoever reads the log. ``down``: fail them instead. ``leaderless``: partitions that
    nobody can tell the end of. ``reads``: how often somebody read it back; ``shown``: how many records that took.
    """

    def __init__(self) -> None:
        self.frames: dict[int, list[list[Token]]] = defaultdict(list)
        self.beginning: dict[int, int] = defaultdict(int)
        self.open = asyncio.Event()
        self.open.set()
        self.down = False
        self.leaderless: set[int] = set()
        self.reads = 0
        self.shown = 0

    def write(self, partition: int, *tokens: Token) -> int:
        """Append a frame; return its offset."""
        self.frames[partition].append(list(tokens))
        return len(self.frames[partition]) - 1

    async def ends_told(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        if self.down:
            raise LogUnavailable("the memory log is down")
        led = [partition for partition in partitions if partition not in self.leaderless]
        return {partition: len(self.frames[partition]) for partition in led}

    async def scan(self, topic: str, partition: int, start: int, stop: int, visit: Callable[[Message], bool]) -> None:
        self.reads += 1
        await self.open.wait()
        if self.down:
            raise LogUnavailable("the memory log is down")
        for offset in range(max(start, self.beginning[partition]), min(stop, len(self.frames[partition]))):
            self.shown += 1
            if visit(Message(partition=partition, offset=offset, value=encode(self.frames[partition][offset]))):
                return


class MemoryTail:
    """A tail of a `MemoryLog`. Reads nothing until `advance`."""

    def __init__(self, log: MemoryLog, on_batch: Callable[[Batch], None]) -> None:
        self._log = log
        self._on_batch = on_batch
        self.positions: dict[int, int] = {}

    def follow(self, positions: Mapping[int, int]) -> None:
        self.positions.update(positions)

    def leave(self, partition: int) -> None:
        del self.positions[partition]

    def look(self) -> None:
        """Do nothing: a log in memory has no leaders."""

    def advance(self, limit: int = 1_000_000) -> None:
        """Hand over the next ``limit`` records of each partition, in one batch."""
        batch: Batch = []
        for partition, position in self.positions.items():
            stop = min(position + limit, len(self._log.frames[partition]))
            batch += [Read(partition, at, self._log.frames[partition][at]) for at in range(position, stop)]
            self.positions[partition] = max(stop, position)
        self._on_batch(batch)

    def lose(self, partition: int) -> None:
        """Find that the position is not in the log."""
        self._on_batch([Cut(partition)])

    async def close(self) -> None:
        self.positions.clear()


class MemoryTails:
    """The two tails of a hub, moved together."""

    eager: MemoryTail
    patient: MemoryTail

    @property
    def positions(self) -> dict[int, int]:
        assert not self.eager.positions.keys() & self.patient.positions.keys()
        return self.eager.positions | self.patient.positions

    def look(self) -> None:
        """Do nothing: a log in memory has no leaders."""

    def advance(self, limit: int = 1_000_000) -> None:
        """Hand over what both have next."""
        self.eager.advance(limit)
        self.patient.advance(limit)

    def lose(self, partition: int) -> None:
        """Find that the position is not in the log."""
        (self.patient if partition in self.patient.positions else self.eager).lose(partition)
