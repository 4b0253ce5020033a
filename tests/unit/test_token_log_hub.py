"""Whoever attaches to a turn, whenever and as often as they like, sees what stands in the log, all of it and once."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from adapters.logged_turn import LoggedTurn
from adapters.token_hub import TokenHub
from adapters.token_tail import Batch, Read
from domain.errors import LogUnavailable
from domain.tokens import Fold, Token
from tests.support.memory_log import MemoryLog, MemoryTail, MemoryTails
from tests.support.turns import claim, whole, words

FAR = 1e9


class Desk:
    """A hub on a log in memory, its tail in our hands. ``bad``: what the hub reported."""

    def __init__(self, *, keep_turn: float = FAR, keep_partition: float = FAR, max_tokens: int = 1000) -> None:
        self.log = MemoryLog()
        self.bad: list[tuple[int, int, bytes, str]] = []
        self.tail = MemoryTails()

        def open_tail(on_batch: Callable[[Batch], None], patient: bool) -> MemoryTail:
            tail = MemoryTail(self.log, on_batch)
            setattr(self.tail, "patient" if patient else "eager", tail)
            return tail

        self.hub = TokenHub(
            "tokens",
            self.log,
            open_tail,
            on_bad_frame=lambda *what: self.bad.append(what),
            keep_turn=keep_turn,
            keep_partition=keep_partition,
            max_tokens=max_tokens,
        )

    def later(self, seconds: float) -> None:
        """Sweep as if this much time had passed."""
        self.hub.sweep(asyncio.get_running_loop().time() + seconds)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    yield desk
    await desk.hub.close()


async def settled() -> None:
    """Let everything run that can run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_turn_that_is_attached_before_it_begins_is_seen_as_it_grows(desk: Desk) -> None:
    await desk.hub.own({0})
    async with desk.hub.attach("t", 0, 0) as turn:
        assert turn.pieces == []

        desk.log.write(0, claim("t"), *words("t", 1, 2))
        desk.tail.advance()
        assert turn.text == "w1 w2 "

        desk.log.write(0, *words("t", 3, 3))
        desk.tail.advance()
        assert turn.text == "w1 w2 w3 "
    assert desk.log.reads == 0


async def test_a_turn_that_the_tail_saw_from_its_first_record_is_not_read_back(desk: Desk) -> None:
    await desk.hub.own({0})
    desk.log.write(0, *whole("t", 3))
    desk.tail.advance()

    async with desk.hub.attach("t", 0, 0) as turn:
        assert turn.pieces == whole("t", 3)
    assert desk.log.reads == 0


async def test_what_the_tail_did_not_see_is_read_back_and_goes_before_what_it_saw(desk: Desk) -> None:
    desk.log.write(0, claim("t"), *words("t", 1, 2))
    desk.log.write(0, *whole("other", 2))
    await desk.hub.own({0})
    desk.log.write(0, *words("t", 3, 4))
    desk.tail.advance()

    async with desk.hub.attach("t", 0, 0) as turn:
        assert turn.text == "w1 w2 w3 w4 "
        assert turn.fold.next == 5


async def test_records_that_arrive_while_the_past_is_read_wait_their_turn(desk: Desk) -> None:
    desk.log.write(0, claim("t"), *words("t", 1, 2))
    await desk.hub.own({0})
    desk.log.open.clear()
    attached = asyncio.create_task(held(desk, "t", 0, 0))
    await settled()

    desk.log.write(0, *words("t", 3, 5))
    desk.tail.advance()
    desk.log.open.set()

    assert (await attached).text == "w1 w2 w3 w4 w5 "


async def held(desk: Desk, turn_id: str, partition: int, since: int) -> LoggedTurn:
    async with desk.hub.attach(turn_id, partition, since) as turn:
        return turn


async def test_many_who_attach_at_once_share_one_reading(desk: Desk) -> None:
    desk.log.write(0, *whole("t", 3))
    desk.log.open.clear()
    attached = [asyncio.create_task(held(desk, "t", 0, 0)) for _ in range(50)]
    await settled()
    desk.log.open.set()

    turns = await asyncio.gather(*attached)

    assert all(turn is turns[0] for turn in turns)
    assert turns[0].pieces == whole("t", 3)
    assert desk.log.reads == 1


async def test_one_who_leaves_in_the_middle_of_the_reading_does_not_disturb_the_others(desk: Desk) -> None:
    desk.log.write(0, *whole("t", 3))
    desk.log.open.clear()
    first, second = (asyncio.create_task(held(desk, "t", 0, 0)) for _ in range(2))
    await settled()

    first.cancel()
    await settled()
    desk.log.open.set()

    assert (await second).pieces == whole("t", 3)
    assert desk.log.reads == 1


async def test_one_who_names_a_later_offset_while_the_past_is_read_waits_for_it_too(desk: Desk) -> None:
    desk.log.write(0, *whole("other", 1))
    await desk.hub.own({0})
    desk.log.open.clear()
    early = asyncio.create_task(held(desk, "t", 0, 0))
    await settled()
    late = asyncio.create_task(held(desk, "t", 0, 1))
    desk.log.write(0, *whole("t", 3))
    desk.tail.advance()
    await settled()
    desk.log.open.set()

    assert (await early).pieces == whole("t", 3)
    assert (await late).pieces == whole("t", 3)


async def test_a_log_that_cannot_be_read_is_said_to_all_who_wait_and_tried_again_by_the_next(desk: Desk) -> None:
    desk.log.write(0, *whole("t", 3))
    await desk.hub.own({0})
    desk.log.down = True
    outcomes = await asyncio.gather(*(held(desk, "t", 0, 0) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LogUnavailable] * 3

    desk.log.down = False
    assert (await held(desk, "t", 0, 0)).pieces == whole("t", 3)


async def test_a_partition_is_followed_as_soon_as_kafka_is_back(desk: Desk) -> None:
    desk.log.down = True
    owning = asyncio.create_task(desk.hub.own({0, 1}))
    await settled()
    assert not owning.done()

    desk.log.down = False
    await owning
    assert desk.tail.positions == {0: 0, 1: 0}


async def test_a_partition_without_a_leader_holds_up_no_other_one_and_goes_on_when_it_has_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.token_hub.RETRY_SECONDS", 0.0)
    desk.log.leaderless = {1}
    desk.log.write(1, claim("late"), *words("late", 1, 2))

    await desk.hub.own({0, 1}, within=0.01)
    assert desk.tail.positions == {0: 0}
    late = asyncio.create_task(held(desk, "late", 1, 0))
    desk.log.write(0, *whole("t", 2))
    desk.tail.advance()
    assert (await held(desk, "t", 0, 0)).pieces == whole("t", 2)
    assert desk.hub.position(1) is None
    assert not late.done()

    desk.log.leaderless.clear()
    assert (await late).text == "w1 w2 "
    assert desk.tail.positions == {0: 1, 1: 1}


async def test_whoever_assigns_partitions_does_not_wait_for_a_kafka_that_is_away(desk: Desk) -> None:
    desk.log.down = True

    await desk.hub.own({0, 1}, within=0.01)

    assert desk.tail.positions == {}


async def test_what_this_worker_wrote_is_there_once_it_is_acknowledged(desk: Desk) -> None:
    await desk.hub.own({0})
    async with desk.hub.attach("t", 0, 0) as turn:
        for tokens in ([claim("t")], words("t", 1, 2), words("t", 3, 4)):
            desk.hub.wrote([(0, desk.log.write(0, *tokens), tokens)])

        assert turn.text == "w1 w2 w3 w4 "
        assert desk.hub.position(0) == 3
        desk.tail.advance()
        assert turn.text == "w1 w2 w3 w4 "


async def test_what_was_acknowledged_behind_a_record_of_somebody_else_waits_for_that_record(desk: Desk) -> None:
    await desk.hub.own({0})
    async with desk.hub.attach("t", 0, 0) as turn:
        desk.hub.wrote([(0, desk.log.write(0, claim("t", 1)), [claim("t", 1)])])
        desk.log.write(0, claim("t", 2))  # another worker has taken over, and this one does not know it yet
        desk.hub.wrote([(0, desk.log.write(0, *words("t", 1, 1, 1)), words("t", 1, 1, 1))])
        assert turn.text == ""
        assert turn.fold.epoch == 1

        desk.tail.advance(2)

    assert turn.fold.epoch == 2
    assert turn.text == ""
    assert desk.hub.position(0) == 3


async def test_what_others_wrote_in_between_delays_what_was_acknowledged_and_no_more(desk: Desk) -> None:
    await desk.hub.own({0})
    async with desk.hub.attach("t", 0, 0) as turn:
        desk.log.write(0, *whole("other", 1))
        for tokens in ([claim("t")], words("t", 1, 2)):
            desk.hub.wrote([(0, desk.log.write(0, *tokens), tokens)])
        assert turn.text == ""

        desk.tail.advance(1)

        assert turn.text == "w1 w2 "


async def test_more_than_may_wait_for_the_tail_comes_with_the_tail(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.token_hub.MAX_AHEAD", 3)
    await desk.hub.own({0})
    async with desk.hub.attach("t", 0, 0) as turn:
        desk.log.write(0, *whole("other", 1))
        for tokens in ([claim("t")], *([word] for word in words("t", 1, 9))):
            desk.hub.wrote([(0, desk.log.write(0, *tokens), tokens)])
        desk.tail.advance()

        assert turn.text == "".join(f"w{number} " for number in range(1, 10))


async def test_a_partition_that_is_owned_has_the_patient_tail_and_one_that_is_only_read_the_eager_one(
    desk: Desk,
) -> None:
    async with desk.hub.attach("t", 0, 0) as turn:
        desk.log.write(0, claim("t"))
        assert desk.tail.eager.positions == {0: 0}
        await desk.hub.own({0})
        assert desk.tail.patient.positions == {0: 0}

        desk.hub.wrote([(0, 0, [claim("t")])])
        await desk.hub.own(set())

        assert desk.tail.eager.positions == {0: 1}
        assert not desk.tail.patient.positions
        assert turn.fold.epoch == 1


async def test_the_owner_waits_until_its_claim_has_come_back(desk: Desk) -> None:
    await desk.hub.own({0})
    offset = desk.log.write(0, claim("t"))
    waiting = asyncio.create_task(desk.hub.until(0, offset))
    await settled()
    assert not waiting.done()

    desk.tail.advance()
    await waiting


async def test_an_offset_that_was_passed_is_not_waited_for(desk: Desk) -> None:
    desk.log.write(0, claim("t"))
    await desk.hub.own({0})

    await desk.hub.until(0, 0)


async def test_readers_keep_a_partition_that_its_owner_gives_up() -> None:
    desk = Desk(keep_partition=30)
    await desk.hub.own({0, 1})
    async with desk.hub.attach("t", 0, 0) as turn:
        await desk.hub.own(set())
        desk.later(31)
        assert set(desk.tail.positions) == {0}

        desk.log.write(0, *whole("t", 2))
        desk.tail.advance()
        assert turn.fold.ended

    desk.later(29)
    assert set(desk.tail.positions) == {0}
    desk.later(31)
    assert desk.tail.positions == {}
    await desk.hub.close()


async def test_a_partition_that_is_followed_again_is_complete_again() -> None:
    desk = Desk(keep_partition=0)
    desk.log.write(0, claim("t"))
    assert (await held(desk, "t", 0, 0)).fold.next == 1
    desk.later(1)
    assert desk.tail.positions == {}
    desk.log.write(0, *words("t", 1, 3))

    assert (await held(desk, "t", 0, 0)).text == "w1 w2 w3 "
    await desk.hub.close()


async def test_a_turn_that_was_forgotten_is_read_back_whole() -> None:
    desk = Desk(keep_turn=60)
    await desk.hub.own({0})
    desk.log.write(0, claim("t"), *words("t", 1, 2))
    desk.tail.advance()
    desk.later(61)
    desk.log.write(0, *words("t", 3, 3))
    desk.tail.advance()

    assert (await held(desk, "t", 0, 0)).text == "w1 w2 w3 "
    assert desk.log.reads == 1
    await desk.hub.close()


async def test_a_turn_that_nobody_reads_any_more_is_forgotten() -> None:
    desk = Desk(keep_turn=60)
    await desk.hub.own({0})
    desk.log.write(0, *whole("t", 2))
    desk.tail.advance()
    first = await held(desk, "t", 0, 0)
    assert await held(desk, "t", 0, 0) is first

    desk.later(61)

    again = await held(desk, "t", 0, 0)
    assert again is not first
    assert again.pieces == first.pieces
    await desk.hub.close()


async def test_an_old_turn_is_read_back_to_its_end_and_no_further(desk: Desk) -> None:
    desk.log.write(0, *whole("t", 2))
    for _ in range(50):
        desk.log.write(0, *whole("other", 2))

    assert (await held(desk, "t", 0, 0)).fold.ended
    assert desk.log.shown == 1


async def test_a_turn_whose_beginning_was_deleted_is_known_to_be_expired(desk: Desk) -> None:
    desk.log.write(0, *whole("t", 2))
    desk.log.write(0, *whole("kept", 2))
    desk.log.beginning[0] = 1

    assert (await held(desk, "t", 0, 0)).expired
    assert not (await held(desk, "kept", 0, 1)).expired


async def test_what_was_read_before_a_partition_was_left_does_not_come_twice() -> None:
    desk = Desk(keep_partition=0)
    await held(desk, "t", 0, 0)
    desk.later(1)
    desk.log.write(0, claim("t"), *words("t", 1, 1))
    async with desk.hub.attach("t", 0, 0) as turn:
        desk.hub.take([Read(0, 0, [claim("other")])])

        async with desk.hub.attach("other", 0, 1) as other:
            assert other.pieces == []
        assert turn.text == "w1 "
    await desk.hub.close()


async def test_what_a_zombie_writes_is_counted_when_it_comes_and_once(desk: Desk) -> None:
    def fenced() -> float:
        return REGISTRY.get_sample_value("headrace_fenced_records_total") or 0

    before = fenced()
    await desk.hub.own({0})
    async with desk.hub.attach("t", 0, 0):
        desk.log.write(0, claim("t", epoch=1), claim("t", epoch=2), *words("t", 1, 3, epoch=1))
        desk.tail.advance()
        assert fenced() == before + 3

        desk.log.write(0, *words("t", 1, 2, epoch=2))
        desk.tail.advance()
    desk.later(FAR + 1)

    assert fenced() == before + 3


async def test_the_owner_alone_reports_a_record_that_is_no_frame(desk: Desk) -> None:
    await desk.hub.own({0})
    async with desk.hub.attach("t", 1, 0) as turn:
        desk.hub.take([Read(0, 0, [], b"!", "not a frame"), Read(1, 0, [], b"?", "not a frame")])
        desk.hub.take([Read(1, 1, [claim("t")])])

        assert turn.fold.next == 1
    assert desk.bad == [(0, 0, b"!", "not a frame")]


async def test_forgetting_one_turn_costs_its_neighbours_nothing() -> None:
    desk = Desk(max_tokens=10)
    await desk.hub.own({0})
    for turn_id in "abc":
        desk.log.write(0, *whole(turn_id, 5))
        desk.tail.advance()
        await asyncio.sleep(0.001)
    desk.later(0)

    assert (await held(desk, "c", 0, 0)).pieces == whole("c", 5)
    assert desk.log.reads == 0
    assert (await held(desk, "a", 0, 0)).pieces == whole("a", 5)
    assert desk.log.reads == 1
    await desk.hub.close()


async def test_a_turn_that_somebody_reads_is_never_forgotten() -> None:
    desk = Desk(keep_turn=0, max_tokens=0)
    await desk.hub.own({0})
    async with desk.hub.attach("t", 0, 0) as turn:
        desk.log.write(0, *whole("t", 5))
        desk.tail.advance()
        desk.later(FAR)

        async with desk.hub.attach("t", 0, 0) as same:
            assert same is turn
    assert desk.log.reads == 0
    await desk.hub.close()


async def test_a_tail_that_lost_its_place_sends_its_readers_back_to_the_log(desk: Desk) -> None:
    await desk.hub.own({0})
    desk.log.write(0, claim("t"))
    desk.tail.advance()
    async with desk.hub.attach("t", 0, 0) as turn:
        waiting = asyncio.create_task(turn.changed(1))
        await settled()
        desk.log.write(0, *words("t", 1, 1))

        desk.tail.lose(0)

        with pytest.raises(LogUnavailable):
            await waiting
        async with desk.hub.attach("t", 0, 0) as again:
            assert again is not turn
            assert again.text == "w1 "


async def test_closing_lets_everyone_go(desk: Desk) -> None:
    async with desk.hub.attach("t", 0, 0) as turn:
        waiting = [asyncio.create_task(turn.changed(0)), asyncio.create_task(desk.hub.until(0, 9))]
        await settled()

        await desk.hub.close()

        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LogUnavailable] * 2
    with pytest.raises(LogUnavailable, match="closed"):
        await desk.hub.own({0})


async def test_a_reader_is_woken_by_a_new_owner_though_there_is_no_new_piece(desk: Desk) -> None:
    await desk.hub.own({0})
    async with desk.hub.attach("t", 0, 0) as turn:
        desk.log.write(0, claim("t"))
        desk.tail.advance()
        waiting = asyncio.create_task(turn.changed(1))
        await settled()

        desk.log.write(0, claim("t", epoch=2))
        desk.tail.advance()

        await waiting
        assert turn.fold.epoch == 2


async def test_nothing_is_waited_for_after_the_end(desk: Desk) -> None:
    await desk.hub.own({0})
    desk.log.write(0, *whole("t", 1))
    desk.tail.advance()

    async with desk.hub.attach("t", 0, 0) as turn:
        await turn.changed(len(turn.pieces))


async def test_a_reader_that_gives_up_waiting_leaves_nothing_behind(desk: Desk) -> None:
    async with desk.hub.attach("t", 0, 0) as turn:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(turn.changed(0), 0)
        waiting = asyncio.create_task(turn.changed(0))
        await settled()
        desk.log.write(0, claim("t"))
        desk.tail.advance()

        await waiting


class Play:
    """One partition with a few turns. Each method is a move of somebody; ``which`` says who."""

    def __init__(self) -> None:
        self.desk = Desk(keep_turn=0, keep_partition=0, max_tokens=5)
        self.turns = ["a", "b", "c", "d"]
        self.epochs = dict.fromkeys(self.turns, 0)
        self.unacknowledged: list[int] = []
        self.readers: list[asyncio.Task[None]] = []
        self.seen: list[LoggedTurn] = []

    def claim(self, which: int) -> None:
        turn_id = self.turns[which]
        self.epochs[turn_id] += 1
        self.unacknowledged.append(self.desk.log.write(0, claim(turn_id, self.epochs[turn_id])))

    def write(self, which: int, behind: int = 0) -> None:
        turn_id = self.turns[which]
        seq = len(self.folded(turn_id))
        offset = self.desk.log.write(0, *words(turn_id, seq, seq, self.epochs[turn_id] - behind), *words("a", 1, 1, 0))
        if not behind:
            self.unacknowledged.append(offset)

    def zombie(self, which: int) -> None:
        self.write(which, behind=1)

    def rival(self, which: int) -> None:
        """Have another worker claim a turn and write to it."""
        (self.claim if which % 2 else self.write)(which)
        self.unacknowledged.pop()

    def acknowledge(self, which: int) -> None:
        """Have the worker's own writes acknowledged, but for the newest."""
        done = len(self.unacknowledged) - which
        for offset in self.unacknowledged[: max(0, done)]:
            self.desk.hub.wrote([(0, offset, self.desk.log.frames[0][offset])])
        del self.unacknowledged[: max(0, done)]

    def advance(self, which: int) -> None:
        self.desk.tail.advance(which + 1)

    def attach(self, which: int) -> None:
        self.readers.append(asyncio.create_task(self.read(self.turns[which])))

    def detach(self, which: int) -> None:
        if self.readers:
            self.readers.pop(which % len(self.readers)).cancel()

    def sweep(self, which: int) -> None:
        self.desk.later(which)

    async def own(self, which: int) -> None:
        await self.desk.hub.own({0} if which else set())

    def cut(self, _: int) -> None:
        if self.desk.hub.position(0) is not None:
            self.desk.tail.lose(0)

    async def read(self, turn_id: str) -> None:
        async with self.desk.hub.attach(turn_id, 0, 0) as turn:
            self.seen.append(turn)
            await asyncio.Event().wait()

    def folded(self, turn_id: str) -> list[Token]:
        """Return what the log says, folded without a hub."""
        fold = Fold()
        tokens = (token for frame in self.desk.log.frames[0] for token in frame)
        return [token for token in tokens if token.turn_id == turn_id and fold.feed(token) is not None]

    async def close(self) -> None:
        for reader in self.readers:
            reader.cancel()
        await asyncio.gather(*self.readers, return_exceptions=True)
        await self.desk.hub.close()


moves = ["write", "write", "write", "claim", "zombie", "rival", "acknowledge", "acknowledge", "advance"]
moves += ["attach", "attach", "detach", "sweep", "own", "cut"]


@given(st.lists(st.tuples(st.sampled_from(moves), st.integers(0, 3), st.booleans()), max_size=60))
def test_every_reader_sees_the_log_whatever_happens_around_it(script: list[tuple[str, int, bool]]) -> None:
    """A worker writes and hears of it or not, tails move, readers come and go, the hub forgets, places are lost."""

    async def run() -> None:
        play = Play()
        for move, which, pause in script:
            made = getattr(play, move)(which)
            if made is not None:
                await made
            if pause:
                await settled()
        for which in range(4):
            play.attach(which)
        await settled()
        play.desk.tail.advance()

        held = [turn for turn in play.seen if turn.readers and not turn.cut]
        assert {turn.turn_id for turn in held} == set(play.turns)
        for turn in held:
            assert turn.pieces == play.folded(turn.turn_id)
        await play.close()

    asyncio.run(run())


owners_moves = ["write", "write", "claim", "rival", "rival", "zombie", "acknowledge", "advance"]


@given(st.lists(st.tuples(st.sampled_from(owners_moves), st.integers(0, 3)), max_size=30))
def test_an_owner_shows_nothing_that_the_log_does_not_begin_with(script: list[tuple[str, int]]) -> None:
    """It hears of its own writes early or late, and of others' by its tail; what it shows is never taken back."""

    async def run() -> None:
        play = Play()
        await play.desk.hub.own({0})
        for which in range(4):
            play.claim(which)
            play.attach(which)
        await settled()
        for move, which in script:
            getattr(play, move)(which)
            for turn in play.seen:
                assert turn.pieces == play.folded(turn.turn_id)[: len(turn.pieces)]
        play.acknowledge(0)
        play.desk.tail.advance()
        for turn in play.seen:
            assert turn.pieces == play.folded(turn.turn_id)
        await play.close()

    asyncio.run(run())
