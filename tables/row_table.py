"""A table of raw rows in RocksDB, read and written by partition, from agents and views alike.

What Kafka's changelog has acknowledged is on whichever worker holds the row's partition next; a row that is only
in RocksDB is not promised. A worker whose disk fails steps back, and no record is given up for it. Every record says
under which epoch it was written, so that one of a worker that was replaced meanwhile does not count.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

from aiokafka.errors import KafkaError
from faust.tables import Table
from faust.types import TP, FutureMessage

from domain.errors import LogUnavailable, NotOwner, StoreUnavailable
from streams.app import ChatApp, app
from streams.table_store import EPOCH_HEADER, Check, Database, RowStore

CHANGELOG_SECONDS = 30.0


class RowTable(Table[bytes, bytes]):
    """A Faust table of raw bytes. ``check`` raises for a changelog's value that no reader could decode."""

    check: Check | None = None

    def row(self, partition: int, key: str) -> bytes | None:
        """Return a row; raises `NotOwner` and `StoreUnavailable`."""
        with self._stepping_back():
            return self._own(partition).get(key.encode())

    def rows(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the rows of this worker's partitions whose key begins with a prefix."""
        with self._stepping_back():
            for partition in self._owned():
                for key, value in self._own(partition).items(prefix.encode()):
                    yield key.decode(), value

    def after(self, partition: int, key: str) -> Iterator[tuple[str, bytes]]:
        """Yield the rows of a partition whose keys come after this one, in order."""
        with self._stepping_back():
            for found, value in self._own(partition).items(after=key.encode()):
                yield found.decode(), value

    def epoch(self, partition: int) -> int:
        """Return under which epoch this worker writes; under another one the rows may be others. Raises `NotOwner`."""
        return self._own(partition).own_epoch

    def put(self, partition: int, key: str, value: bytes | None) -> FutureMessage:
        """Write a row, or delete it; the result is done when the changelog has it.

        Raises `NotOwner` and `StoreUnavailable`.
        """
        with self._stepping_back():
            database = self._own(partition)
            database.put(key.encode(), value)
        return self.changelog_topic.send_soon(
            key=key.encode(),
            value=value,
            partition=partition,
            headers={EPOCH_HEADER: b"%d" % database.own_epoch},
            key_serializer="raw",
            value_serializer="raw",
            callback=self._on_changelog_sent,
            eager_partitioning=True,
        )

    def database(self, partition: int) -> Database:
        """Return a partition's database, opening it if it is not open yet. For recovery: the others take `put`."""
        return cast("RowStore", self.data).database(partition)

    def _owned(self) -> list[int]:
        return sorted(tp.partition for tp in self._actives() if tp.topic == self.changelog_topic_name)

    def _own(self, partition: int) -> Database:
        # A standby of another worker's partition is open here, too, and must not answer for it.
        if self.app.rebalancing or TP(self.changelog_topic_name, partition) not in self._actives():
            raise NotOwner("the conversation's partition is with another worker, or being recovered", retry_after=1)
        return self.database(partition)

    def _actives(self) -> set[TP]:
        return cast("ChatApp", self.app).recovery.active_tps

    def _new_store(self) -> RowStore:
        return RowStore(
            self.app.conf.store,
            self.app,
            self,
            table_name=self.name,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            loop=self.loop,
        )

    def _on_changelog_sent(self, fut: FutureMessage) -> None:
        sent = fut.result()
        # The acknowledgement can arrive after the partition has gone to another worker. Faust would then open
        # its database again, and hold its lock.
        database = cast("RowStore", self.data).opened(sent.topic_partition.partition)
        if database is not None:
            with suppress(NotOwner, StoreUnavailable), self._stepping_back():
                database.acknowledge(sent.offset)

    @contextmanager
    def _stepping_back(self) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable as error:
            cast("ChatApp", self.app).step_back(str(error))
            raise


def row_table(name: str, *, check: Check | None = None) -> RowTable:
    """Return a new table of raw rows, co-partitioned with the conversation topics.

    ``check`` raises for a value that the table's readers cannot decode.
    """
    table = RowTable(
        app,
        name=name,
        key_type=bytes,
        value_type=bytes,
        partitions=app.settings.partitions,
    )
    table.check = check
    app.tables.add(table)
    return table


async def acknowledged(*written: FutureMessage) -> None:
    """Return when the changelogs have these rows; raises `LogUnavailable`."""
    try:
        async with asyncio.timeout(CHANGELOG_SECONDS):
            for future in written:
                await future
    except (TimeoutError, KafkaError) as error:
        raise LogUnavailable(f"Kafka did not acknowledge a table's changelog: {error!r}") from error
