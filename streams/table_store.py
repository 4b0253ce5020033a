"""Faust's RocksDB store with databases of our own, opened and closed when a partition comes and goes."""

from typing import TYPE_CHECKING, Any, cast

from faust.stores import rocksdb
from faust.types import TP, CollectionT

from adapters.changelog import EPOCH_HEADER, Check
from adapters.rocksdb import Database
from domain.errors import StoreUnavailable

if TYPE_CHECKING:
    from streams.app import ChatApp

__all__ = ["EPOCH_HEADER", "Check", "Database", "RowStore"]  # what tables need of them


class RowStore(rocksdb.Store):
    """The open databases of one table, by partition: those that this worker owns, and its standbys."""

    def database(self, partition: int) -> Database:
        """Return a partition's database, opening it if it is not open yet."""
        return cast("Database", self._db_for_partition(partition))

    def opened(self, partition: int) -> Database | None:
        """Return a partition's database if it is open."""
        return cast("Database | None", self._dbs.get(partition))

    def _open_for_partition(self, partition: int) -> Any:
        try:
            return Database(self.partition_path(partition))
        except StoreUnavailable as error:
            cast("ChatApp", self.app).step_back(str(error))
            raise

    async def _try_open_db_for_partition(self, partition: int, *_: Any, **__: Any) -> Any:
        # Faust tries a locked database again for 30 s, in the rebalance's callback, where no heartbeats are sent.
        return self._db_for_partition(partition)

    def revoke_partitions(self, table: CollectionT, tps: set[TP]) -> None:
        """Close the databases of these partitions. Faust leaves that to a garbage collection of its own."""
        for tp in tps:
            if tp.topic in table.changelog_topic.topics and tp.partition in self._dbs:
                self._dbs.pop(tp.partition).close()

    async def stop(self) -> None:
        """Close all."""
        for partition in list(self._dbs):
            self._dbs.pop(partition).close()
