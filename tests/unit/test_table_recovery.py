"""Recovery around the copying: what stops stock Faust's for ever, and what ends the process when nothing moves."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any, cast

import faust
import hypothesis.strategies as st
import pytest
from faust.exceptions import ValueDecodeError
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from hypothesis import given

from adapters.changelog import Progress, Replica
from streams.table_recovery import ChangelogTables, Membership, Still, TableRecovery

CHANGELOG = TP("stock-rows-changelog", 0)


def changelog_message(offset: int, value: bytes) -> ConsumerMessage:
    """Return a record of the changelog as Faust's consumer hands it on."""
    return ConsumerMessage(CHANGELOG.topic, CHANGELOG.partition, offset, 0.0, 0, [], b'"key"', value, None)


async def test_stock_faust_never_ends_a_recovery_whose_last_record_it_cannot_decode(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ours sets it aside: see `test_changelog.py`, and `tests/integration/test_table_recovery.py` on a whole worker."""
    stock = faust.App("stock", broker="kafka://127.0.0.1:1", store="memory://")
    table = stock.Table("rows")
    tables = cast("TableManager", stock.tables)
    recovery = tables.recovery
    recovery.add_active(table, CHANGELOG)
    recovery.active_offsets[CHANGELOG] = -1
    recovery.active_highwaters[CHANGELOG] = 1  # two records, and Kafka will bring no third
    recovery._set_recovery_started()
    changelog = table.changelog_topic.clone_using_queue(tables.changelog_queue)
    stock.flow_control.resume()
    applying = asyncio.ensure_future(Recovery._slurp_changelogs.fun(recovery))

    await changelog.put(await changelog.decode(changelog_message(0, b'{"n":1}')))
    bad = changelog_message(1, b"{broken")
    with pytest.raises(ValueDecodeError):
        await changelog.decode(bad, propagate=True)
    await changelog.on_value_decode_error(ValueDecodeError("as Faust's conductor does"), bad)
    while "Error in recovery" not in caplog.text or recovery.active_offsets[CHANGELOG] < 0:
        await asyncio.sleep(0)

    assert recovery.need_recovery()
    assert not recovery.signal_recovery_end.is_set()
    applying.cancel()


@pytest.mark.parametrize(("manager", "waits"), [(TableManager, [1.0]), (ChangelogTables, [])])
async def test_tables_are_registered_as_the_worker_starts_and_not_a_second_later(
    manager: type[TableManager], waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = faust.App("starting", broker="kafka://127.0.0.1:1", store="memory://", TableManager=manager)
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async def start() -> None:
        assert tables._tables_registered.is_set()
        started.append(True)

    started: list[bool] = []
    tables = cast("TableManager", app.tables)
    monkeypatch.setattr(tables, "sleep", sleep)
    monkeypatch.setattr(tables, "_recovery", SimpleNamespace(start=start))
    monkeypatch.setattr(app, "consumer", SimpleNamespace(assignment=set, pause_partitions=lambda _: None))

    await tables.on_start()

    assert started
    assert waited == waits


def test_what_changes_does_not_stand_still() -> None:
    times: Iterator[int] = iter([0, 10, 10, 20, 30, 30, 45])
    still = Still(lambda: next(times))

    assert [still.seconds(state) for state in ("a", "a", "b", "b")] == [0, 10, 0, 15]


class StuckWorker:
    """What the watch over recovery looks at: ``ticks`` looks, each after a minute, with the records read by then."""

    def __init__(self, records: list[int], *, rebalancing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self._records = records
        self._now = 0.0
        self.reasons: list[str] = []
        self.progress = Progress([])
        self.tables = SimpleNamespace(actives_ready=not rebalancing)
        self.chat = SimpleNamespace(
            rebalancing=rebalancing,
            generation=7,
            settings=SimpleNamespace(recovery_stall_seconds=150),
            ready=lambda: "tables are being recovered",
            step_back=self.reasons.append,
        )
        monkeypatch.setattr(Still.__init__, "__defaults__", (lambda: self._now,))

    async def itertimer(self, *_: Any, **__: Any) -> AsyncIterator[float]:
        """Yield as the clock goes on."""
        for records in self._records:
            self.progress.records = records
            self._now += 60
            yield 60


@pytest.mark.parametrize(
    ("records", "rebalancing", "ends"),
    [
        ([0, 0, 0, 0], True, True),
        ([0, 10, 10, 20, 20, 30], True, False),
        ([5, 5, 5, 5, 5, 5], False, False),
    ],
    ids=["nothing moves", "records come in", "nothing to wait for"],
)
async def test_a_recovery_without_progress_ends_the_process_and_no_other_does(
    monkeypatch: pytest.MonkeyPatch, records: list[int], *, rebalancing: bool, ends: bool
) -> None:
    worker = StuckWorker(records, rebalancing=rebalancing, monkeypatch=monkeypatch)

    await TableRecovery._end_when_stuck.fun(worker)

    assert worker.reasons == (["no progress for 150 s: tables are being recovered"] if ends else [])


def test_readiness_says_how_far_a_recovery_is() -> None:
    recovery = SimpleNamespace(progress=Progress([]))
    assert TableRecovery.describe(recovery) == ""  # type: ignore[arg-type]

    recovery.progress = Progress([Replica("t", 0, None, position=1000, end=12_345)])  # type: ignore[arg-type]
    recovery.progress.records = 1000
    assert TableRecovery.describe(recovery).startswith("11,345 changelog records left, ")  # type: ignore[arg-type]


async def test_a_follower_of_an_older_assignment_does_not_begin() -> None:
    followed: list[int] = []

    async def follow(_: Progress) -> None:
        followed.append(recovery._generation_id)

    recovery = SimpleNamespace(
        _is_halted=False,
        _generation_id=3,
        _changelogs=SimpleNamespace(follow=follow),
        _replicas=lambda _: [],
        standby_tps={CHANGELOG},
    )

    await TableRecovery._follow(cast("TableRecovery", recovery), 2)
    await TableRecovery._follow(cast("TableRecovery", recovery), 3)

    assert followed == [3]


async def test_standbys_are_opened_one_after_the_other_and_no_more_once_partitions_are_assigned_anew() -> None:
    opened: list[int] = []

    def open_store(tps: tuple[TP]) -> list[Replica]:
        opened.append(tps[0].partition)
        asyncio.get_running_loop().call_soon(assign_anew if len(opened) == 2 else int)
        return []

    def assign_anew() -> None:
        recovery._generation_id = 4

    recovery = SimpleNamespace(
        _is_halted=False,
        _generation_id=3,
        _changelogs=None,  # which is not come to
        _replicas=open_store,
        standby_tps={TP("rows-changelog", partition) for partition in range(3)},
    )

    await TableRecovery._follow(cast("TableRecovery", recovery), 3)

    assert opened == [0, 1]


def test_no_store_is_opened_while_partitions_are_assigned() -> None:
    recovery = cast("TableRecovery", SimpleNamespace(tp_to_table={}))
    table = cast("Any", object())  # which has nothing that could be opened

    TableRecovery._add(recovery, table, CHANGELOG, None)

    assert recovery.tp_to_table == {CHANGELOG: table}


CHANGELOGS = [TP("rows-changelog", partition) for partition in range(3)]


class Restored:
    """A worker's recovery, as far as it says which stores need none. ``restored`` is when each was read last."""

    def __init__(self) -> None:
        self.gaps: set[TP] = set()
        self.restored: dict[TP, int] = {}
        self.active_tps: set[TP] = set()
        self._restored_in, self._kept = Membership(-1, ""), set[TP]()

    def assign(self, tps: set[TP], membership: Membership, *, ends: bool = True) -> set[TP]:
        """Restore what needs it, unless it is interrupted; return what needed nothing."""
        self.active_tps = tps
        TableRecovery._keep(cast("TableRecovery", self), membership)
        kept = self._kept
        if ends:
            self.restored |= dict.fromkeys(tps - kept, membership.generation)
            self._kept = tps
        return kept

    def _table(self, tp: TP) -> Any:
        return SimpleNamespace(database=lambda _: SimpleNamespace(has_gap=tp in self.gaps))


@pytest.mark.parametrize(
    ("membership", "kept"),
    [
        (Membership(8, "a"), {CHANGELOGS[0]}),
        (Membership(9, "a"), set()),
        (Membership(7, "a"), set()),
        (Membership(8, "b"), set()),
    ],
    ids=["the next assignment", "one in between", "the same once more", "taken for gone meanwhile"],
)
def test_a_store_needs_no_restoring_if_nobody_else_can_have_had_it(membership: Membership, kept: set[TP]) -> None:
    worker = Restored()
    assert worker.assign({CHANGELOGS[0], CHANGELOGS[1]}, Membership(7, "a")) == set()

    assert worker.assign({CHANGELOGS[0], CHANGELOGS[2]}, membership) == kept


def test_a_store_with_something_unread_before_its_own_rows_is_restored() -> None:
    worker = Restored()
    worker.assign({CHANGELOGS[0], CHANGELOGS[1]}, Membership(7, "a"))
    worker.gaps = {CHANGELOGS[1]}

    assert worker.assign({CHANGELOGS[0], CHANGELOGS[1]}, Membership(8, "a")) == {CHANGELOGS[0]}


def test_what_was_not_restored_to_its_end_is_not_kept() -> None:
    worker = Restored()
    worker.assign({CHANGELOGS[0]}, Membership(7, "a"))
    worker.assign({CHANGELOGS[0], CHANGELOGS[1]}, Membership(8, "a"), ends=False)

    assert worker.assign({CHANGELOGS[0], CHANGELOGS[1]}, Membership(9, "a")) == {CHANGELOGS[0]}


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), min_size=3, max_size=3),  # the owner of each partition
            st.lists(
                st.sampled_from(["hears", "hears", "hears", "is interrupted", "misses it", "is gone"]),
                min_size=3,
                max_size=3,
            ),
        ),
        max_size=30,
    )
)
def test_whatever_is_kept_was_given_to_nobody_else_since_it_was_restored(
    assignments: list[tuple[list[int], list[str]]],
) -> None:
    workers = [Restored() for _ in range(3)]
    lives = [0, 0, 0]
    owners: list[list[int]] = []
    for generation, (owner_of, hears) in enumerate(assignments):
        owners.append(owner_of)
        for number, (worker, how) in enumerate(zip(workers, hears, strict=True)):
            lives[number] += how == "is gone"
            if how in {"misses it", "is gone"}:
                continue
            mine = {tp for tp in CHANGELOGS if owner_of[tp.partition] == number}
            membership = Membership(generation, f"{number}-{lives[number]}")
            for tp in worker.assign(mine, membership, ends=how == "hears"):
                assert {past[tp.partition] for past in owners[worker.restored[tp] :]} == {number}
