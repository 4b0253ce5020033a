"""Which workers have fallen silent, judged by the log alone.

Every worker writes beats to one partition and reads everyone's, its own included. **The clock is our own beats as
they come back**: a peer has been silent for as long as we have heard ourselves since. So whatever keeps us from
writing or reading, a broker that is away or a process that was frozen, stops that clock too and makes nobody look
dead. After such a gap everyone begins anew, with twice the time, because they have to find the broker again too.

A wrong judgement costs one rebalance, and is made less and less often: each eviction doubles the patience with that
worker, for five minutes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal
from zlib import crc32

BEAT_SECONDS: Final = 0.3
GAP_SECONDS: Final = 3 * BEAT_SECONDS
FORGIVEN_SECONDS: Final = 300.0

Kind = Literal["alive", "left", "evicted"]


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life, or of death, of a worker.

    ``worker`` names one life of one process, ``member`` what it is in the consumer group at that moment ("" if it is
    in none). ``at`` is the writer's clock in seconds, which means something to the writer alone.
    """

    worker: str
    member: str
    at: float
    kind: Kind = "alive"


@dataclass(frozen=True, slots=True)
class Silent:
    """A member that is to be evicted, because its worker has not been heard for so many seconds."""

    worker: str
    member: str
    seconds: float


@dataclass(slots=True)
class _Peer:
    member: str
    heard: float


class Peers:
    """What worker ``me`` knows of the others. ``limit`` is how long they may be silent, in seconds."""

    def __init__(self, me: str, limit: float) -> None:
        self._me = me
        self._limit = limit
        self._now: float | None = None
        self._peers: dict[str, _Peer] = {}
        self._evictions: dict[str, tuple[int, float]] = {}

    def hear(self, beat: Beat) -> list[Silent]:
        """Take the next beat of the log; return who is to be evicted now. Each is returned once."""
        if beat.worker == self._me:
            return self._tick(beat.at) if beat.kind == "alive" else []
        if beat.kind == "alive":
            self._peers[beat.worker] = _Peer(beat.member, self._now or 0.0)
        elif beat.kind == "left":
            self._peers.pop(beat.worker, None)
        elif beat.kind == "evicted":
            self._note_eviction(beat)
        return []

    def forget(self) -> None:
        """Forget everyone: what comes next in the log does not follow on what was heard."""
        self._now = None
        self._peers.clear()

    def _tick(self, now: float) -> list[Silent]:
        last, self._now = self._now, now
        if last is None or not 0 <= now - last <= GAP_SECONDS:
            for peer in self._peers.values():
                peer.heard = now + self._limit
            return []
        silent = list(self._silent(now))
        for each in silent:
            del self._peers[each.worker]
        return [each for each in silent if each.member]

    def _silent(self, now: float) -> Iterator[Silent]:
        awake = [worker for worker, peer in self._peers.items() if now - peer.heard <= self._limit / 2]
        for worker, peer in self._peers.items():
            if now - peer.heard > self._patience(worker, now) + self._turn(peer.member, awake) * BEAT_SECONDS:
                yield Silent(worker, peer.member, now - peer.heard)

    def _patience(self, worker: str, now: float) -> float:
        times, last = self._evictions.get(worker, (0, 0.0))
        if times and now - last > FORGIVEN_SECONDS:
            del self._evictions[worker]
            times = 0
        return self._limit * 2.0**times

    def _turn(self, member: str, awake: list[str]) -> int:
        """Return how many others come before us in evicting this member: a beat later each, if nobody has by then."""
        return sum(_lot(member, worker) < _lot(member, self._me) for worker in awake)

    def _note_eviction(self, beat: Beat) -> None:
        times, _ = self._evictions.get(beat.worker, (0, 0.0))
        self._evictions[beat.worker] = (times + 1, self._now or 0.0)
        peer = self._peers.get(beat.worker)
        if peer is not None and peer.member == beat.member:
            del self._peers[beat.worker]


def _lot(member: str, worker: str) -> tuple[int, str]:
    return crc32(f"{member} {worker}".encode()), worker
