"""A Faust consumer that never commits past unfinished work and never makes a rebalance wait for it.

What stock Faust does is in each method's comment; every one of them lost questions or stalled a group when
workers were killed. The invariant that this module keeps: **an offset is committed only when every question
below it is acknowledged in the current generation of the group.** So the questions in work are exactly the
uncommitted ones, and Kafka hands them to whoever owns the partition next.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import aiokafka
from aiokafka.consumer.fetcher import Fetcher
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, AppT
from faust.types.transports import TransportT
from faust.types.tuples import Message

# Faust asks brokers to hold an empty fetch for 1.5 s, and a rebalance waits for it.
FETCH_WAIT_MS = 100


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, with a fetch that returns soon."""

    def _create_worker_consumer(self, transport: driver.Transport) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class SafeConsumer(driver.Consumer):
    """See the module. ``hand_over`` is called once on shutdown; it ends the work without acknowledging it."""

    hand_over: Callable[[], Awaitable[None]]

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def ack(self, message: Message) -> bool:
        """Acknowledge a message of the current generation.

        One that was fetched before a rebalance is delivered again, and counts when that delivery is finished.
        """
        if message.generation_id != self.app.consumer_generation_id:
            return False
        return super().ack(message)

    def _new_offset(self, tp: TP) -> int | None:
        # Faust commits up to the highest run of acknowledged offsets, even when an older one is still in work
        # (faust-streaming #606). Hide what lies beyond the lowest unfinished offset while it computes.
        acked = self._acked[tp]
        lowest = min((m.offset for m in self._unacked_messages if m.tp == tp and not m.acked), default=None)
        if lowest is None or not acked:
            return super()._new_offset(tp)
        beyond = [offset for offset in acked if offset > lowest]
        acked[:] = [offset for offset in acked if offset < lowest]
        try:
            return super()._new_offset(tp) if acked else None
        finally:
            acked.extend(beyond)

    async def perform_seek(self) -> None:
        """Go back to the committed offsets; to the beginning where there is none.

        aiokafka leaves a partition without a committed offset where it stood, so what was fetched and thrown
        away during the rebalance would be skipped.
        """
        await super().perform_seek()
        fresh = [tp for tp in self.assignment() if not self._is_changelog_tp(tp) and not self._committed_offset.get(tp)]
        if fresh:
            await self.seek_wait(await self.earliest_offsets(*fresh))
            self._read_offset.update(dict.fromkeys(fresh))

    async def wait_empty(self) -> None:
        """Commit. On shutdown hand the work over first; on a rebalance it goes on.

        Faust waits here until all events are finished, without bound: one long answer stalls the whole group.
        """
        if self.app.should_stop:
            await self.hand_over()
        await self.commit_and_end_transactions()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Commit first, then forget. Faust forgets first, and finished questions are answered again."""
        if self._active_partitions is not None:
            self._active_partitions.difference_update(revoked)
        self._paused_partitions.difference_update(revoked)
        await self._on_partitions_revoked(revoked)
        per_partition: tuple[Any, ...] = (
            self._gap, self._acked, self._acked_index, self._read_offset, self._committed_offset
        )  # fmt: skip
        for tp in revoked:
            for state in per_partition:
                state.pop(tp, None)
        self._unacked_messages.clear()  # all of them are delivered again, here or elsewhere


class SafeTransport(driver.Transport):
    """Kafka transport whose consumer is a `SafeConsumer`."""

    Consumer = SafeConsumer


def safe_transport(app: AppT, hand_over: Callable[[], Awaitable[None]]) -> TransportT:
    """Return the transport for an app; ``hand_over`` ends its work in progress at shutdown, unacknowledged."""
    SafeConsumer.hand_over = staticmethod(hand_over)
    return SafeTransport(app.conf.broker_consumer, app)


def pause_after_empty_fetches(milliseconds: int) -> None:
    """Make aiokafka wait a little after a fetch that brought nothing.

    The embedded broker answers an empty fetch at once instead of holding it, and an idle consumer then fills
    a core. `asyncio.sleep` is where the fetcher may be cancelled, as it may be while it waits for a broker.
    """
    fetch = cast("Callable[..., Awaitable[bool]]", Fetcher._proc_fetch_request)

    async def paused(self: Fetcher, assignment: Any, node_id: int, request: Any) -> bool:
        found = await fetch(self, assignment, node_id, request)
        if not found:
            try:
                await asyncio.sleep(milliseconds / 1000)
            except asyncio.CancelledError:
                return False  # as the fetcher itself does when it is closed in the middle of a fetch
        return found

    Fetcher._proc_fetch_request = paused
