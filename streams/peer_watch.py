"""Workers that watch over each other: who falls silent is evicted from the group, and its answers go on elsewhere.

For what no supervisor can report, because it is gone as well or does not see it: a machine, its network, a process
that is frozen. Kafka's session time-out stands behind it (HEADRACE_SESSION_SECONDS), and 0 in HEADRACE_PEER_SECONDS
leaves it all to that. Safety does not rest here: who is evicted wrongly joins again, and what it wrote meanwhile is
fenced like any zombie's.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from secrets import token_hex

import structlog

from adapters.group import Members
from adapters.peers import Beats
from config import metrics
from config.settings import Settings
from domain.errors import LogUnavailable
from domain.peers import Silent

log = structlog.get_logger(__name__)


class PeerWatch:
    """This worker's part in it. ``member`` returns its id in the group, "" outside; any thread may ask."""

    def __init__(self, settings: Settings, topic: str, *, client_id: str, member: Callable[[], str]) -> None:
        self._members = Members(settings.kafka_bootstrap_servers, settings.group)
        self._beats = Beats(
            settings.kafka_bootstrap_servers,
            topic,
            # A life, not a client id: who was evicted must not be taken for who was started in its place.
            worker=f"{client_id}/{token_hex(4)}",
            limit=settings.peer_seconds,
            member=member,
            on_silent=self._on_silent,
            rest=settings.idle_fetch_pause_ms > 0,
        )
        self._evictions: set[asyncio.Task[None]] = set()

    def accompany(self, in_company: bool) -> None:
        """Take part while there are other workers."""
        self._beats.accompany(in_company)

    async def close(self) -> None:
        """Tell the others that this worker leaves in order."""
        await self._beats.close()
        for eviction in self._evictions:
            eviction.cancel()
        await self._members.aclose()

    def _on_silent(self, silent: Silent) -> None:
        eviction = asyncio.create_task(self._evict(silent))
        self._evictions.add(eviction)
        eviction.add_done_callback(self._evictions.discard)

    async def _evict(self, silent: Silent) -> None:
        try:
            evicted = await self._members.evict(silent.member)
        except LogUnavailable as error:
            log.warning("silent peer not evicted", peer=silent.worker, reason=str(error))
            return
        self._beats.tell_evicted(silent)
        if evicted:  # else its supervisor, another peer or Kafka was quicker
            metrics.peer_evictions.inc()
            log.warning("peer evicted", peer=silent.worker, member=silent.member, silent=round(silent.seconds, 1))


@asynccontextmanager
async def open_peer_watch(
    settings: Settings, topic: str, *, client_id: str, member: Callable[[], str]
) -> AsyncIterator[PeerWatch]:
    """Yield a peer watch; close it at the end."""
    watch = PeerWatch(settings, topic, client_id=client_id, member=member)
    try:
        yield watch
    finally:
        await watch.close()
