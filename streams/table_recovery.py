"""Recovery of Faust's tables past Faust: `adapters.changelog` copies, Faust is told when its tables are back.

Faust reads changelogs through its consumer, an event a record: 100,000 rows of 2 kB take it half a minute, and a
record that it cannot decode or apply stops it for ever. Here nothing of Faust reads a changelog. What is left of
its recovery is the order of things around one: flush, restore, call the tables back, seek, resume.

Before a store is restored, its changelog is claimed under the group's generation: what a worker that slept through its
replacement writes after that counts for nobody (`domain.fence`). A store that its worker had in the generation right
before needs neither: nobody else was given it since.

Two rules: **never inside the callback of a rebalance**, where no heartbeats are sent; and **no copying while
partitions change hands**, so that a store that is closed has no other user.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import structlog
from aiokafka.errors import IllegalStateError, KafkaError
from confluent_kafka import Message
from faust.exceptions import ProducerSendError
from faust.tables.manager import TableManager
from faust.tables.recovery import RebalanceAgain, Recovery, ServiceStopped
from faust.types import TP, AppT, CollectionT
from mode import Service

from adapters.changelog import CLAIM_KEY, EPOCH_HEADER, Changelogs, Check, Progress, Replica
from adapters.rocksdb import Database
from config import metrics
from domain.backoff import pause
from domain.errors import BadRecord, NotOwner, StoreUnavailable

if TYPE_CHECKING:
    from streams.app import ChatApp

log = structlog.get_logger(__name__)

SAY_SECONDS = 2.0
FLUSH_SECONDS = 15.0
NEWER_OWNER_SECONDS = 15.0  # a replaced worker that is awake hears of it within a session


class CopiedTable(Protocol):
    """What a table needs so that it can be recovered here."""

    check: Check | None

    def database(self, partition: int) -> Database:
        """Return a partition's store, opening it if it is not open yet."""
        ...


@dataclass(frozen=True, slots=True)
class Membership:
    """The group's count of assignments, and what it calls us, which changes whenever it took us for gone."""

    generation: int
    member_id: str

    def follows(self, other: "Membership") -> bool:
        """Return whether there was no assignment in between, so that nobody was given what was ours in both."""
        return (self.generation, self.member_id) == (other.generation + 1, other.member_id)


class Still:
    """Tells for how long something has been the same."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: object = None
        self._since = clock()

    def seconds(self, now: object) -> float:
        """Return for how many seconds it has been as it is now."""
        if now != self._seen:
            self._seen, self._since = now, self._clock()
        return self._clock() - self._since


class TableRecovery(Recovery):
    """Brings the tables of a new assignment up to their changelogs, then keeps the standbys near them."""

    chat: "ChatApp"

    def __init__(self, app: AppT, tables: Any, **options: Any) -> None:
        super().__init__(app, tables, **options)
        self.chat = cast("ChatApp", app)
        self.progress = Progress()
        self._changelogs = Changelogs(
            self.chat.settings.kafka_bootstrap_servers, self.chat.settings.partitions, self._on_bad_record
        )
        self._restored = False
        self._is_halted = False
        self._membership = self._restored_in = Membership(-1, "")
        self._kept: set[TP] = set()  # whose stores were restored in that one, and claimed in it or before
        self._standbys = Progress()
        metrics.recovery_left.set_function(lambda: self.progress.left)
        metrics.standbys_left.set_function(lambda: self._standbys.left)

    def describe(self) -> str:
        """Return how far a running recovery is, "" if there is nothing to read."""
        if not self.progress.left:
            return ""
        return f"{self.progress.left:,} changelog records left, {self.progress.rate:,.0f} a second"

    # -- while partitions change hands

    def stop_soon(self) -> None:
        """Ask the copying to stop, without waiting; none begins before partitions are assigned again."""
        self._is_halted = True
        self._changelogs.stop_soon()

    async def halt(self) -> None:
        """Return when no store is in use here any more, nor will be before `on_rebalance`."""
        self._is_halted = True
        await self._changelogs.cancel()

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Note what is to be recovered. Faust's own wakes the task below."""
        self._is_halted = False
        self._membership = Membership(generation_id, self.chat.member_id)
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)

    def _add(self, table: CollectionT, tp: TP, offsets: Any) -> None:
        """Note whose changelog this is. Faust's opens the store, too, and a standby's can wait until answers go on."""
        self.tp_to_table[tp] = table

    async def on_stop(self) -> None:
        """End the thread before Faust closes the stores. Faust would write what it had buffered here."""
        await self._changelogs.close()

    # -- Faust's tasks, each in place of the one of the same name

    @Service.task
    async def _restart_recovery(self) -> None:
        # Faust's reads through its consumer, with time-outs that a long copy does not fit into.
        while not self.should_stop:
            # mode's annotation asks for an Event of its own, and takes any.
            if await self.wait_for_stopped(cast("Any", self.signal_recovery_start)):
                return
            self.signal_recovery_start.clear()
            try:
                await self._recover(self._membership)
            except (RebalanceAgain, IllegalStateError, NotOwner):
                log.info("recovery begins anew: partitions are assigned again")
            except ServiceStopped:
                return
            except StoreUnavailable as error:
                self.chat.step_back(str(error))

    @Service.task
    async def _slurp_changelogs(self) -> None:
        # Faust's applies what its consumer fetched. Changelogs stay paused there, so there is nothing to apply.
        pass

    @Service.task
    async def _publish_stats(self) -> None:
        # Faust's looks at what only its own recovery counts.
        async for _ in self.itertimer(SAY_SECONDS, name="TableRecovery.progress"):
            for topic, left, partitions in _by_topic(self.progress.replicas):
                log.info(
                    "tables are being recovered",
                    topic=topic,
                    partitions=partitions,
                    records_done=self.progress.records,
                    records_left=left,
                    records_per_second=round(self.progress.rate),
                    seconds_left=round(self.progress.left / self.progress.rate) if self.progress.rate else None,
                )

    @Service.task
    async def _end_when_stuck(self) -> None:
        """End the process when nothing moves: Faust's own part of a rebalance has hung, too."""
        still, patience = Still(), self.chat.settings.recovery_stall_seconds
        async for _ in self.itertimer(1.0, name="TableRecovery.stuck"):
            is_waiting = self.chat.rebalancing or not self.tables.actives_ready
            seconds = still.seconds((is_waiting, self.chat.generation, self.progress.records, self.progress.left))
            if is_waiting and seconds > patience:
                self.chat.step_back(f"no progress for {patience:.0f} s: {self.chat.ready()}")

    # -- one recovery

    async def _recover(self, membership: Membership) -> None:
        generation = membership.generation
        self._set_recovery_started()
        # Rows that this worker sent before are then in the changelog that it reads.
        await self._wait(self.chat.producer.flush(), timeout=FLUSH_SECONDS)
        self._restored = False
        await self._wait(self._restore(membership))
        if not self._restored:
            return  # it was halted, and the assignment that halted it brings the next one
        # Faust's own: calls the tables back, seeks to the committed offsets, resumes, and ends the rebalance.
        await self._wait(self.on_recovery_completed(generation))
        self.tables.on_standbys_ready()
        if self.standby_tps:
            _ = self.add_future(self._follow(generation))

    async def _restore(self, membership: Membership) -> None:
        self._keep(membership)
        actives = set(self.active_tps)
        replicas = self._replicas(actives - self._kept)
        restored, epoch = False, membership.generation
        while not restored and not self._is_halted:
            await self._claim(replicas, epoch)
            restored = await self._copy(replicas)
            newer = max((replica.database.epoch for replica in replicas), default=epoch)
            if restored and newer > epoch:
                restored, epoch = False, await self._outlive(newer)
        if restored:
            for replica in replicas:
                replica.database.own(epoch)
            await self._mend(replicas, epoch)
            self._kept = actives
        self._restored = restored

    def _keep(self, membership: Membership) -> None:
        """Note which stores need no restoring: they were ours all the time, and hold what their changelogs do.

        Of a worker that was replaced before, a late row may stand behind our last one: it is no row here, and the next
        owner reads it. Once it stands before one of ours there is a gap, and the store is claimed and read again.
        """
        was_ours = self._kept if membership.follows(self._restored_in) else set()
        self._kept = {tp for tp in was_ours & self.active_tps if not self._table(tp).database(tp.partition).has_gap}
        self._restored_in = membership

    async def _claim(self, replicas: Sequence[Replica], epoch: int) -> None:
        """Claim the changelogs; note where the claims stand."""
        claims = [(replica, CLAIM_KEY, b"") for replica in replicas]
        for replica, offset in zip(replicas, await self._write(claims, epoch), strict=True):
            replica.claim, replica.epoch = offset, epoch

    async def _outlive(self, newer: int) -> int:
        """Return an epoch above one that stands in a changelog, once nobody can be behind it any more.

        Either this worker was replaced, and hears of it meanwhile; or the group has begun to count anew.
        """
        log.warning("a newer owner has claimed the tables", epoch=newer, waits_seconds=NEWER_OWNER_SECONDS)
        await self.sleep(NEWER_OWNER_SECONDS)
        return newer + 1

    async def _mend(self, replicas: Sequence[Replica], epoch: int) -> None:
        """Write the rows again that a record hides which does not count: compaction would keep that record alone."""
        hidden = [(replica, key, replica.database.get(key)) for replica in replicas for key in replica.database.fenced]
        await self._write(hidden, epoch)
        for replica, key, _ in hidden:
            replica.database.mended(key)

    async def _write(self, records: Sequence[tuple[Replica, bytes, bytes | None]], epoch: int) -> list[int]:
        """Write records to changelogs; return their offsets. Waits for Kafka for ever."""
        headers = {EPOCH_HEADER: b"%d" % epoch}
        attempt = 0
        while True:
            attempt += 1
            try:
                sent = [
                    await self.chat.producer.send(replica.topic, key, value, replica.partition, None, headers)
                    for replica, key, value in records
                ]
                return [int((await each).offset) for each in sent]
            except (KafkaError, ProducerSendError) as error:
                log.warning("changelogs will be written again", reason=repr(error))
                await self.sleep(pause(attempt))

    async def _copy(self, replicas: Sequence[Replica]) -> bool:
        await self._changelogs.cancel()  # a follower of an older assignment would keep the thread for ever
        if self._is_halted:
            return False
        self.progress = Progress(replicas)
        restored = await self._changelogs.restore(self.progress)
        if self.progress.records:
            metrics.recovered_records.inc(self.progress.records)
            log.info(
                "tables recovered" if restored else "recovery of tables halted",
                records=self.progress.records,
                records_per_second=round(self.progress.rate),
            )
        return restored

    async def _follow(self, generation: int) -> None:
        replicas: list[Replica] = []
        try:
            for tp in sorted(self.standby_tps):
                await asyncio.sleep(0)  # opening a store takes milliseconds, and answers go on
                # Partitions may have been assigned anew meanwhile, or since this was asked for.
                if self._is_halted or generation != self._generation_id:
                    return
                replicas += self._replicas((tp,))
            self._standbys = Progress(replicas)
            await self._changelogs.follow(self._standbys)
        except StoreUnavailable as error:
            self.chat.step_back(str(error))

    def _replicas(self, tps: Iterable[TP]) -> list[Replica]:
        tables = {tp: self._table(tp) for tp in tps}
        return [
            Replica(tp.topic, tp.partition, table.database(tp.partition), table.check) for tp, table in tables.items()
        ]

    def _table(self, tp: TP) -> CopiedTable:
        return cast("CopiedTable", self.tp_to_table[tp])

    def _on_bad_record(self, record: Message, reason: str) -> None:
        """Set a record aside; returns once Kafka has the dead letter. Called in the copying thread."""
        letter = self.chat.dead_letter(
            topic=record.topic() or "",
            partition=record.partition() or 0,
            offset=record.offset() or 0,
            error=BadRecord(reason),
            key=record.key(),
            value=record.value(),
        )
        asyncio.run_coroutine_threadsafe(letter, self.loop).result()


class ChangelogTables(TableManager):
    """Faust's table manager with our recovery, which is halted before any store is closed."""

    @property
    def recovery(self) -> TableRecovery:
        """Return the recovery."""
        if self._recovery is None:
            self._recovery = TableRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return cast("TableRecovery", self._recovery)

    async def on_start(self) -> None:
        """Register the tables, which the consumer waits for before it joins the group.

        Faust waits a second here for tables that agents make as they start; ours are made with the app.
        """
        await self._update_channels()
        await self.recovery.start()

    def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Begin to halt. Faust writes here what it buffered of changelogs, which is nothing now."""
        self.recovery.stop_soon()

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Let go of the stores, before the tables close those that are gone."""
        await self.recovery.halt()
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)


def _by_topic(replicas: Iterable[Replica]) -> list[tuple[str, int, list[int]]]:
    """Return of each topic that is behind: its name, the records left, the partitions."""
    behind: dict[str, list[Replica]] = {}
    for replica in replicas:
        if replica.left:
            behind.setdefault(replica.topic, []).append(replica)
    return [
        (topic, sum(replica.left for replica in each), sorted(replica.partition for replica in each))
        for topic, each in behind.items()
    ]
