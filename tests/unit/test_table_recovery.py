"""Recovery around the copying: what stops stock Faust's for ever, and what ends the process when nothing moves."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any, cast

import faust
import pytest
from faust.exceptions import ValueDecodeError
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from adapters.changelog import Progress, Replica
from streams.table_recovery import Still, TableRecovery

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
        standby_tps=set(),
    )

    await TableRecovery._follow(cast("TableRecovery", recovery), 2)
    await TableRecovery._follow(cast("TableRecovery", recovery), 3)

    assert followed == [3]
