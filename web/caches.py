"""Bounded memory of what was seen here before. Nothing in it is needed: the log and the tables have it all."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Cache(Generic[V]):
    """The latest values by key, as many as fit a weight, none older than ``seconds`` by this clock."""

    def __init__(self, weight: int, seconds: float, clock: Callable[[], float]) -> None:
        self._limit = weight
        self._seconds = seconds
        self._clock = clock
        self._weight = 0
        self._kept: OrderedDict[str, tuple[float, int, V]] = OrderedDict()

    def get(self, key: str) -> V | None:
        """Return a value, which is then the latest used."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        since, _, value = kept
        if self._clock() - since > self._seconds:
            self.drop(key)
            return None
        self._kept.move_to_end(key)
        return value

    def put(self, key: str, value: V, weight: int = 1) -> None:
        """Keep a value, and drop those that were not used for longest if it gets too heavy."""
        self.drop(key)
        self._kept[key] = (self._clock(), weight, value)
        self._weight += weight
        while self._weight > self._limit and len(self._kept) > 1:
            self.drop(next(iter(self._kept)))

    def drop(self, key: str) -> None:
        """Forget a value."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._weight -= kept[1]

    def values(self) -> list[V]:
        """Return what is kept and not too old, oldest first."""
        now = self._clock()
        return [value for since, _, value in self._kept.values() if now - since <= self._seconds]

    def __len__(self) -> int:
        return len(self._kept)
