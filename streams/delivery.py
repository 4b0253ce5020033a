"""A Faust consumer that never commits past unfinished work and never makes a rebalance wait for it.

What stock Faust does is in each method's comment; every one of them lost questions or stalled a group when
workers were killed, and `tests/unit/test_faust_faults.py` shows each. The invariant that this module keeps: **an
offset is committed only when every record below it that this assignment delivered is acknowledged.** So the
questions in work are exactly the uncommitted ones, and Kafka hands them to whoever owns the partition next.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partialmethod
from typing import Any, cast

import aiokafka
import structlog
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, AppT
from faust.types.transports import TransportT
from faust.types.tuples import Message

log = structlog.get_logger(__name__)

# Faust asks brokers to hold an empty fetch for 1.5 s, and a rebalance waits for it.
FETCH_WAIT_MS = 100


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, with a fetch that returns soon, and commits that may fail."""

    def _create_worker_consumer(self, transport: driver.Transport) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit; return False if Kafka did not take it, which costs nothing: Faust ends the process for it."""
        owned = {tp: offset for tp, offset in offsets.items() if tp in self.assignment()}
        try:
            await self._ensure_consumer().commit({driver.ensure_aiokafka_TP(tp): at for tp, at in owned.items()})
        except KafkaError as error:
            log.warning("commit not taken", partitions=len(owned), reason=repr(error))
            return False
        self.tp_last_committed_at.update(dict.fromkeys(owned, time.monotonic()))
        return True

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Go to the committed offsets. aiokafka asks for one partition after the other: half a second for a hundred."""
        found: Mapping[TP, int] = await self.call_thread(self._seek_to_committed)  # None for none, as Faust's
        return found

    async def _seek_to_committed(self) -> dict[TP, int | None]:
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        known = await consumer._coordinator.fetch_committed_offsets(list(assigned))
        committed = {tp: known[tp].offset if tp in known else None for tp in assigned}
        for tp, offset in committed.items():
            if offset:
                consumer.seek(tp, offset)
        return {TP(*tp): offset for tp, offset in committed.items()}


class SafeConsumer(driver.Consumer):
    """See the module. ``hand_over`` is called once on shutdown; it ends the work without acknowledging it."""

    hand_over: Callable[[], Awaitable[None]]
    delivers_from: dict[TP, int]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.delivers_from = {}
        self._left = False
        # Faust holds what is in work weakly: a question that was cancelled on shutdown, and so let go, no longer held
        # the last commit back, and was lost if a later one had been answered.
        self._unacked_messages = set()

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def ack(self, message: Message) -> bool:
        """Acknowledge a message that this assignment delivered; any other is delivered again, and counts then.

        Faust counts it whenever it was fetched, and with that moves the commit past what has not come again yet.
        """
        if message not in self._unacked_messages:
            return False
        return super().ack(message)

    def _new_offset(self, tp: TP) -> int | None:
        """Return what can be committed: the lowest offset in work, else the one after the last acknowledged.

        Faust commits the first run of acknowledged offsets, even when an older one is still in work
        (faust-streaming #606), and what it takes for gaps in the log reaches into that, too.
        """
        acked = self._acked[tp]
        lowest = min((m.offset for m in self._unacked_messages if m.tp == tp and not m.acked), default=None)
        done = [offset for offset in acked if lowest is None or offset < lowest]
        if not done:
            return None
        acked[:] = [offset for offset in acked if lowest is not None and offset > lowest]
        self._acked_index[tp].difference_update(done)
        return max(done) + 1 if lowest is None else lowest

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        """Commit, and keep in mind what Kafka did not take. Faust counts it as committed, and never tries again."""
        if self._left:
            return False
        before = {tp: self._committed_offset.get(tp) for tp in offsets}
        taken = await super()._commit_offsets(offsets, start_new_transaction)
        for tp in () if taken else offsets:
            if tp in self.delivers_from:  # else it was revoked meanwhile
                self._committed_offset[tp] = before[tp]
                self._acked[tp].append(offsets[tp] - 1)
            else:
                self._committed_offset.pop(tp, None)
        return taken

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Do nothing: what the log does not have is never in work, so `_new_offset` passes it by itself."""

    async def perform_seek(self) -> None:
        """Go back to the committed offsets; to the beginning where there is none.

        aiokafka leaves a partition without a committed offset where it stood, so what was fetched and thrown
        away during the rebalance would be skipped.
        """
        await super().perform_seek()
        streams = [tp for tp in self.assignment() if not self._is_changelog_tp(tp)]
        fresh = [tp for tp in streams if not self._committed_offset.get(tp)]
        if fresh:
            earliest = await self.earliest_offsets(*fresh)
            await self.seek_wait(earliest)
            self._read_offset.update(dict.fromkeys(fresh))
            self.delivers_from.update(earliest)
        self.delivers_from.update({tp: committed for tp in streams if (committed := self._committed_offset.get(tp))})

    def on_buffer_drop(self, tp: TP) -> None:
        """Fetch a partition again. Faust does so even if another worker has it by now, and then fetches nothing."""
        if tp in self.assignment():
            super().on_buffer_drop(tp)

    async def wait_empty(self) -> None:
        """Commit. On shutdown hand the work over first, and leave the group after; on a rebalance the work goes on.

        Faust waits here until all events are finished, without bound: one long answer stalls the whole group. And it
        leaves the group last of all: for the 0.4 s that closing the tables took, nobody had the partitions.
        """
        if self.app.should_stop and not self._left:
            await self.hand_over()
            await self.commit_and_end_transactions()
            self._left = True
            await self._thread.stop()
        else:
            await self.commit_and_end_transactions()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Commit first, then forget. Faust forgets first, and finished questions are answered again."""
        if self._active_partitions is not None:
            self._active_partitions.difference_update(revoked)
        self._paused_partitions.difference_update(revoked)
        await self._on_partitions_revoked(revoked)
        per_partition: tuple[Any, ...] = (
            self._acked, self._acked_index, self._read_offset, self._committed_offset, self.delivers_from
        )  # fmt: skip
        for tp in revoked:
            for state in per_partition:
                state.pop(tp, None)
        self._buffered_partitions.difference_update(revoked)
        self._unacked_messages.clear()  # all of them are delivered again, here or elsewhere


class SafeTransport(driver.Transport):
    """Kafka transport whose consumer is a `SafeConsumer`."""

    Consumer = SafeConsumer


def safe_transport(app: AppT, hand_over: Callable[[], Awaitable[None]]) -> TransportT:
    """Return the transport for an app; ``hand_over`` ends its work in progress at shutdown, unacknowledged."""
    SafeConsumer.hand_over = staticmethod(hand_over)
    return SafeTransport(app.conf.broker_consumer, app)


def follow_moved_leaders() -> None:
    """Make aiokafka ask who leads a partition when the broker that it asked for offsets does not.

    It asks the same broker again, for up to five minutes, and fetches nothing else from it meanwhile: after a broker's
    death conversations were silent until the next rebalance.
    """
    ask = cast("Callable[..., Awaitable[Any]]", Fetcher._proc_offset_request)
    Fetcher._proc_offset_request = partialmethod(_ask_anew, ask)


async def _ask_anew(fetcher: Fetcher, ask: Callable[..., Awaitable[Any]], node_id: int, topics: Any) -> Any:
    try:
        return await ask(fetcher, node_id, topics)
    except KafkaError as error:
        if error.invalid_metadata:
            fetcher._client.force_metadata_update()
        raise


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
