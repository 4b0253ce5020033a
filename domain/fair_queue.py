"""Who is next, when many tenants wait for a few places: the one that has the fewest now, then who waited longest.

So a tenant with a thousand questions waiting holds up another's first one by no more than it takes one place to
become free. Nobody starves: whoever waits has its share of the places, or is next when one becomes free.
"""

from collections import Counter, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """What waits for a place, by tenant, and how many places each tenant has. What is one tenant's keeps its order."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}  # a tenant moves to the end when it is served
        self._places: Counter[str] = Counter()

    def push(self, tenant: str, item: T) -> None:
        """Let something wait behind what its tenant has waiting."""
        self._waiting.setdefault(tenant, deque()).append(item)

    def pop(self) -> T | None:
        """Give the next place to whoever is due; None if nobody waits."""
        if not self._waiting:
            return None
        tenant = min(self._waiting, key=self._places.__getitem__)  # of several, the one that stands first
        queue = self._waiting.pop(tenant)
        item = queue.popleft()
        if queue:
            self._waiting[tenant] = queue
        self._places[tenant] += 1
        return item

    def release(self, tenant: str) -> None:
        """Take back a place that `pop` gave."""
        self._places[tenant] -= 1
        if not self._places[tenant]:
            del self._places[tenant]

    def discard(self, tenant: str, item: T) -> None:
        """Let something wait no longer, if it does."""
        queue = self._waiting.get(tenant)
        if queue is not None and item in queue:
            queue.remove(item)
            if not queue:
                del self._waiting[tenant]
