"""A partition's rows on disk: damage is set aside, and the offset never says more than the rows."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.rocksdb import Database, Origin
from domain.errors import NotOwner, StoreUnavailable

ORIGIN = Origin(topic="t-changelog", topic_id="abc", partitions=8)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A database with a hundred rows, some of them in a file of their own."""
    found = filled(tmp_path / "t-0.db")
    yield found
    found.close()


def filled(path: Path) -> Database:
    """Return a database with a hundred rows up to offset 99; half of them have left RocksDB's log for a file."""
    database = Database(path)
    database.copy([(b"row-%02d" % n, os.urandom(500)) for n in range(50)], 49)
    database._rocks.flush()
    database.copy([(b"row-%02d" % n, os.urandom(500)) for n in range(50, 100)], 99)
    return database


def set_aside(path: Path) -> list[Path]:
    """Return the folders that were set aside for this one."""
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


def test_rows_and_their_offset_are_there_after_a_restart(database: Database) -> None:
    database.made_of(ORIGIN)
    database.copy([(b"row-00", None), (b"row-01", b"changed")], 101)
    database.close()

    again = Database(database.path)

    assert (again.offset, again.origin) == (101, ORIGIN)
    assert (again.get(b"row-00"), again.get(b"row-01")) == (None, b"changed")
    again.close()


def test_only_rows_are_listed(database: Database) -> None:
    database.made_of(ORIGIN)

    assert [key for key, _ in database.items(b"row-1")] == [b"row-%d" % n for n in range(10, 20)]
    assert [key for key, _ in database.items(after=b"row-97")] == [b"row-98", b"row-99"]
    assert len(list(database.items())) == 100


def truncate(pattern: str, size: int = 0) -> Callable[[Path], None]:
    """Return a way to damage a store."""

    def damage(folder: Path) -> None:
        for file in folder.glob(pattern):
            os.truncate(file, size)

    damage.__name__ = f"truncated {pattern}"
    return damage


def without(pattern: str) -> Callable[[Path], None]:
    """Return a way to damage a store."""

    def damage(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    damage.__name__ = f"without {pattern}"
    return damage


def is_a_file(folder: Path) -> None:
    """Put a file where the folder was."""
    shutil.rmtree(folder)
    folder.write_text("not a database")


@pytest.mark.parametrize(
    "damage",
    [
        *(truncate("CURRENT"), truncate("MANIFEST-*"), truncate("*.sst", 100)),
        *(without("CURRENT"), without("MANIFEST-*"), without("*.sst"), is_a_file),
    ],
    ids=lambda damage: damage.__name__,
)
def test_damaged_files_are_set_aside_and_the_store_begins_anew(
    database: Database, damage: Callable[[Path], None]
) -> None:
    database.close()
    damage(database.path)

    again = Database(database.path)

    assert again.offset is None
    assert list(again.items()) == []
    assert len(set_aside(database.path)) == 1
    again.close()


def test_a_torn_log_keeps_a_beginning_of_the_rows_and_the_offset_that_fits_them(tmp_path: Path) -> None:
    filled(tmp_path / "whole.db").close()
    database = Database(tmp_path / "t-0.db")
    for n in range(100):
        database.copy([(b"row-%02d" % n, os.urandom(500))], n)
    shutil.copytree(database.path, tmp_path / "killed.db")  # as after kill -9: nothing was flushed
    database.close()
    (log,) = (tmp_path / "killed.db").glob("*.log")
    os.truncate(log, log.stat().st_size * 2 // 3)

    again = Database(tmp_path / "killed.db")

    assert again.offset is not None
    assert 10 < again.offset < 99
    assert [key for key, _ in again.items()] == [b"row-%02d" % n for n in range(again.offset + 1)]
    again.close()


def test_damage_that_shows_in_a_read_is_set_aside_for_the_next_start(database: Database) -> None:
    database.close()
    for file in database.path.glob("*.sst"):
        with file.open("r+b") as handle:
            handle.seek(10_000)
            handle.write(os.urandom(4000))
    damaged = Database(database.path)

    with pytest.raises(StoreUnavailable):
        [damaged.get(b"row-%02d" % n) for n in range(100)]
    damaged.close()

    again = Database(database.path)
    assert again.offset is None
    assert len(set_aside(database.path)) == 1
    again.close()


def test_only_the_latest_damaged_files_are_kept(database: Database) -> None:
    for _ in range(3):
        database.renew("a test wants it", "damaged")

    assert len(set_aside(database.path)) == 1


def test_a_store_that_another_one_holds_is_left_alone(database: Database) -> None:
    with pytest.raises(StoreUnavailable, match="--datadir"):
        Database(database.path)

    assert set_aside(database.path) == []
    assert database.get(b"row-00")


def test_a_closed_store_says_that_the_partition_is_gone(database: Database) -> None:
    database.close()

    with pytest.raises(NotOwner):
        database.get(b"row-00")


class FullDisk:
    """RocksDB on a disk without room."""

    def put(self, *_: object) -> None:
        raise Exception("IO error: No space left on device: While appending to file: /data/000004.log")  # noqa: TRY002

    def close(self) -> None:
        """Nothing to close."""


def test_a_full_disk_is_no_damage(database: Database) -> None:
    database.close()
    database._rocks = FullDisk()  # type: ignore[assignment]

    with pytest.raises(StoreUnavailable, match="No space left"):
        database.put(b"row-00", b"changed")

    assert database.path.exists()
    assert set_aside(database.path) == []


def test_our_own_mistakes_are_no_damage(database: Database) -> None:
    with pytest.raises(ValueError, match="bytes"):
        database.put(b"row-00", object())  # type: ignore[arg-type]

    assert set_aside(database.path) == []


def test_the_offset_follows_acknowledgements_in_any_order_but_over_no_gap(database: Database) -> None:
    reached = []
    for offset in (101, 100, 103, 102, 105, 99):
        database.acknowledge(offset)
        reached.append(database.offset)

    assert reached == [99, 101, 101, 103, 103, 103]  # 104 is another owner's: the next recovery has to read it
    database.copy([(b"theirs", b"row")], 105)
    database.acknowledge(106)
    assert database.offset == 106
