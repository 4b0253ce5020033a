"""The rows of one table partition on this worker's disk, in RocksDB, and how far they follow their changelog.

The changelog in Kafka is the truth and these files are a copy, so nothing here is ever repaired: files that are
damaged, or were made from another log, are set aside and the copy is made anew. The offset is written with
the rows that it stands for, in one batch, so that a crash leaves both or neither. Beside the rows stands what the
fence needs to know (`domain.fence`): the epoch that owns the partition, the one that this store was last written
under, and the keys whose latest record in the changelog does not count.
"""

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, overload

import msgspec
import structlog
from rocksdict import BlockBasedOptions, Cache, DbClosedError, Options, Rdict, WriteBatch

from config import metrics
from domain.errors import NotOwner, StoreUnavailable

log = structlog.get_logger(__name__)

FORMAT: Final = 2  # goes up when older rows cannot be read any more; stores of another format are rebuilt
OFFSET_KEY: Final = b"__faust\0offset__"  # Faust's own name, as good as any
OURS: Final = b"__headrace\0"
ORIGIN_KEY: Final = OURS + b"origin__"
EPOCH_KEY: Final = OURS + b"epoch__"
OWN_EPOCH_KEY: Final = OURS + b"own_epoch__"
FENCED: Final = OURS + b"fenced__"  # followed by the key of a row
NOT_ROWS: Final = (OFFSET_KEY, OURS)
SET_ASIDE: Final = ".damaged-"
# What Linux says when the disk or the process is at fault. The files are whole, and other files would fare no better.
NOT_THE_FILES: Final = tuple(
    os.strerror(number)
    for number in (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    )
)
# Of the lock that RocksDB takes: held by another process, or by this one.
LOCKED: Final = (os.strerror(errno.EAGAIN), os.strerror(errno.ENOLCK))


class Origin(msgspec.Struct, frozen=True):
    """Which log a store is a copy of. Kafka gives a topic that is made anew another ``topic_id``."""

    topic: str
    topic_id: str
    partitions: int
    format: int = FORMAT


def options() -> Options:
    """Return RocksDB's options. Its defaults are for one large database; here every partition of a table is one."""
    blocks = BlockBasedOptions()
    blocks.set_block_cache(Cache(8 << 20))
    blocks.set_bloom_filter(10, block_based=False)
    found = Options(raw_mode=True)
    found.create_if_missing(True)
    found.set_write_buffer_size(4 << 20)
    found.set_max_write_buffer_number(2)
    found.set_max_open_files(64)
    found.set_keep_log_file_num(2)
    found.set_block_based_table_factory(blocks)
    return found


class Database:
    """A partition's rows. Whatever fails raises `StoreUnavailable`; a closed one raises `NotOwner`.

    After a failed write RocksDB takes no other until it is opened again, and damage that shows in a read is set
    aside at once. Either way the process has to end: it finds a new or a working store when it starts again.
    """

    _rocks: Rdict

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset: int | None = None
        self._epoch = self._own_epoch = -1
        self._fenced: set[bytes] = set()
        self._acknowledged: set[int] = set()
        try:
            self._open()
        except Exception as error:
            if _is_not_the_files(error):
                raise StoreUnavailable(_explained(path, error)) from error
            self.renew(f"damaged: {error}", "damaged")

    @property
    def offset(self) -> int | None:
        """The changelog's offset up to which the rows are complete, None in a new store."""
        return self._offset

    @property
    def epoch(self) -> int:
        """The epoch that owns the partition as far as the changelog was read, -1 if nobody has claimed it."""
        return self._epoch

    @property
    def own_epoch(self) -> int:
        """The epoch under which this worker wrote here last, -1 if it never did."""
        return self._own_epoch

    @property
    def has_gap(self) -> bool:
        """Whether the changelog has something before one of our own rows that was not read here."""
        return bool(self._acknowledged)

    @property
    def fenced(self) -> frozenset[bytes]:
        """The keys whose latest record in the changelog is one that does not count."""
        return frozenset(self._fenced)

    def own(self, epoch: int) -> None:
        """Note that this worker writes here from now on, under this epoch."""
        with self._failures():
            self._rocks.put(OWN_EPOCH_KEY, b"%d" % epoch)
        self._own_epoch = epoch

    def mended(self, key: bytes) -> None:
        """Note that the changelog has the row itself again after the record that did not count."""
        with self._failures():
            self._rocks.delete(FENCED + key)
        self._fenced.discard(key)

    @property
    def origin(self) -> Origin | None:
        """Which log the rows are from, None if nobody has said yet."""
        try:
            found = self.get(ORIGIN_KEY)
            return None if found is None else msgspec.json.decode(found, type=Origin)
        except msgspec.MsgspecError:
            return None

    def made_of(self, origin: Origin) -> None:
        """Remember which log the rows are from."""
        with self._failures():
            self._rocks.put(ORIGIN_KEY, msgspec.json.encode(origin))

    def get(self, key: bytes) -> bytes | None:
        """Return a row."""
        with self._failures():
            found: bytes | None = self._rocks.get(key)
            return found

    def put(self, key: bytes, value: bytes | None) -> None:
        """Write a row, or delete it if the value is None."""
        with self._failures():
            if value is None:
                self._rocks.delete(key)
            else:
                self._rocks.put(key, value)

    def items(self, prefix: bytes = b"", *, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows whose key begins with ``prefix`` and comes after another, in order."""
        with self._failures():
            rows: Iterator[tuple[Any, bytes]] = self._rocks.items(from_key=max(prefix, after))  # raw mode: bytes
            for key, value in rows:
                if not key.startswith(prefix):
                    return
                if key != after and not key.startswith(NOT_ROWS):
                    yield key, value

    def copy(
        self,
        rows: Iterable[tuple[bytes, bytes | None]],
        offset: int,
        *,
        epoch: int | None = None,
        fenced: Iterable[bytes] = (),
    ) -> None:
        """Write what the changelog says up to and with ``offset``, all of it or nothing.

        ``epoch`` is the partition's owner by then, unchanged if None; ``fenced`` are the keys whose latest record here
        does not count.
        """
        batch = WriteBatch(raw_mode=True)
        hidden = set(self._fenced)
        for key, value in rows:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
            if key in self._fenced:
                batch.delete(FENCED + key)
                hidden.discard(key)
        for key in fenced:
            batch.put(FENCED + key, b"")
            hidden.add(key)
        if epoch is not None:
            batch.put(EPOCH_KEY, b"%d" % epoch)
        batch.put(OFFSET_KEY, b"%d" % offset)
        with self._failures():
            self._rocks.write(batch)
        self._offset, self._fenced = offset, hidden
        self._epoch = self._epoch if epoch is None else epoch
        self._acknowledged.clear()

    def acknowledge(self, offset: int) -> None:
        """Note that the changelog has one of our own rows at ``offset``.

        The offset that is kept goes up without gaps only: behind a gap are rows that another owner wrote while this
        worker was paused, and the next recovery has to read them.
        """
        reached = had = -1 if self._offset is None else self._offset
        self._acknowledged.add(offset)
        while reached + 1 in self._acknowledged:
            reached += 1
            self._acknowledged.discard(reached)
        if reached > had:
            with self._failures():
                self._rocks.put(OFFSET_KEY, b"%d" % reached)
            self._offset = reached

    def renew(self, why: str, reason: str) -> None:
        """Set the files aside and begin an empty store. ``reason`` is the metric's label, ``why`` is for people."""
        self.close()
        set_aside(self.path, why, reason)
        try:
            self._open()
        except Exception as error:
            raise StoreUnavailable(_explained(self.path, error)) from error

    def close(self) -> None:
        """Give up the files and their lock. May be called again."""
        with suppress(AttributeError, DbClosedError):  # it was never opened, or is closed
            self._rocks.close()

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._rocks = Rdict(str(self.path), options())
        self._acknowledged.clear()
        self._offset = self._number(OFFSET_KEY)
        self._epoch, self._own_epoch = self._number(EPOCH_KEY, -1), self._number(OWN_EPOCH_KEY, -1)
        self._fenced = set()
        keys: Iterator[Any] = self._rocks.keys(from_key=FENCED)  # raw mode: bytes
        for key in keys:
            if not key.startswith(FENCED):
                break
            self._fenced.add(key.removeprefix(FENCED))

    @overload
    def _number(self, key: bytes) -> int | None: ...
    @overload
    def _number(self, key: bytes, default: int) -> int: ...
    def _number(self, key: bytes, default: int | None = None) -> int | None:
        found: Any = self._rocks.get(key)
        return default if found is None else int(found)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except DbClosedError as error:
            raise NotOwner("the partition has just gone to another worker", retry_after=1) from error
        except Exception as error:
            if type(error) is not Exception:
                raise  # rocksdict has no class of its own for RocksDB's errors, so any other is a mistake of ours
            if not _is_not_the_files(error):
                set_aside(self.path, f"damaged: {error}", "damaged")
            raise StoreUnavailable(_explained(self.path, error)) from error


def set_aside(path: Path, why: str, reason: str) -> None:
    """Rename a store's folder, so that it can be looked into. Only the latest one of each is kept."""
    if not path.exists():
        return
    for older in path.parent.iterdir():
        if older.name.startswith(path.name + SET_ASIDE):
            shutil.rmtree(older, ignore_errors=True)
    kept = path.with_name(f"{path.name}{SET_ASIDE}{time.time_ns() // 1_000_000}")
    path.rename(kept)
    metrics.stores_set_aside.labels(reason).inc()
    log.error("store set aside, to be rebuilt from its changelog", store=str(path), kept_as=kept.name, reason=why)


def _is_not_the_files(error: Exception) -> bool:
    return any(words in str(error) for words in (*NOT_THE_FILES, *LOCKED))


def _explained(path: Path, error: Exception) -> str:
    if any(words in str(error) for words in LOCKED):
        return f"another process uses {path}; give each worker a --datadir of its own"
    return f"this worker's disk does not work for {path}: {error}"
