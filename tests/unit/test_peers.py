"""Who is silent is judged by the log alone: no outage, freeze or order of beats makes others look dead."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.peers import BEAT_SECONDS, FORGIVEN_SECONDS, Beat, Peers, Silent

LIMIT = 1.5


@dataclass
class Log:
    """One partition of beats, and a worker ``me`` that reads it. Time is that of the machine where everyone runs."""

    peers: Peers = field(default_factory=lambda: Peers("me", LIMIT))
    now: float = 1000.0
    evicted: list[Silent] = field(default_factory=list)

    def run(self, seconds: float, *alive: str) -> list[str]:
        """Let these workers beat for so long; return the members that are to be evicted, in order."""
        before = len(self.evicted)
        for _ in range(round(seconds / BEAT_SECONDS)):
            self.now += BEAT_SECONDS
            for worker in alive:
                self.write(worker)
        return [silent.member for silent in self.evicted[before:]]

    def write(self, worker: str, **more: str) -> None:
        """Have a worker write a beat, which is read at once."""
        beat = Beat(worker, more.get("member", f"{worker}-member"), self.now, "alive")
        self.evicted += self.peers.hear(beat)

    def tell(self, worker: str, member: str, kind: str) -> None:
        """Have someone write that a worker left or was evicted."""
        assert kind in {"left", "evicted"}
        self.evicted += self.peers.hear(Beat(worker, member, self.now, "left" if kind == "left" else "evicted"))


@pytest.fixture
def log() -> Log:
    """A log in which everyone has been heard for a while."""
    log = Log()
    assert log.run(3, "me", "a", "b") == []
    return log


def test_a_peer_that_falls_silent_is_evicted_once_by_its_member_id(log: Log) -> None:
    assert log.run(LIMIT, "me", "b") == []
    assert log.run(3 * BEAT_SECONDS, "me", "b") == ["a-member"]
    assert log.run(60, "me", "b") == []
    assert log.evicted[0].seconds == pytest.approx(LIMIT, abs=3.1 * BEAT_SECONDS)


def test_who_was_never_heard_is_never_evicted(log: Log) -> None:
    assert log.run(60, "me", "a", "b") == []


def test_who_left_in_order_is_not_evicted(log: Log) -> None:
    log.tell("a", "", "left")

    assert log.run(60, "me", "b") == []


def test_who_was_evicted_by_another_is_not_evicted_again(log: Log) -> None:
    log.run(LIMIT - BEAT_SECONDS, "me", "b")
    log.tell("a", "a-member", "evicted")

    assert log.run(60, "me", "b") == []


def test_a_new_life_under_the_same_client_id_is_another_worker(log: Log) -> None:
    evicted = log.run(60, "me", "b", "a-reborn")

    assert evicted == ["a-member"]


def test_a_worker_outside_the_group_has_nothing_to_be_evicted_from(log: Log) -> None:
    log.write("joining", member="")

    assert log.run(60, "me", "a", "b") == []


def test_the_member_id_of_the_last_beat_counts(log: Log) -> None:
    log.write("a", member="a-again")

    assert log.run(4, "me", "b") == ["a-again"]


def test_an_outage_of_the_broker_evicts_nobody(log: Log) -> None:
    log.run(30)  # nobody gets a beat into the log

    assert log.run(2 * LIMIT, "me") == []  # and the others find the broker again a while later
    assert log.run(60, "me", "a", "b") == []


def test_a_peer_that_died_in_an_outage_is_found_after_it(log: Log) -> None:
    log.run(30)

    assert log.run(2 * LIMIT + 1, "me", "b") == ["a-member"]


def test_a_watcher_that_was_frozen_evicts_nobody_when_it_wakes(log: Log) -> None:
    log.run(4, "a")  # what happened meanwhile, and is read in one go: b fell silent too

    assert log.run(LIMIT, "me", "a") == []
    assert log.run(2 * LIMIT, "me", "a") == ["b-member"]


def test_each_eviction_doubles_the_patience_until_it_is_forgiven(log: Log) -> None:
    def silence() -> float:
        """Return how long it takes until a is evicted, on whose behalf the others are told."""
        began = log.now
        while not log.run(BEAT_SECONDS, "me", "b"):
            assert log.now < began + 60
        log.tell("a", "a-member", "evicted")
        log.write("a")
        return log.now - began

    took = [silence() for _ in range(3)]
    assert took == pytest.approx([LIMIT, 2 * LIMIT, 4 * LIMIT], abs=3.1 * BEAT_SECONDS)

    log.run(FORGIVEN_SECONDS + 1, "me", "a", "b")
    assert silence() == pytest.approx(LIMIT, abs=3.1 * BEAT_SECONDS)


@pytest.mark.parametrize("count", [2, 5, 20])
def test_peers_take_turns_so_that_one_of_them_is_first(count: int) -> None:
    names = [f"worker-{number}" for number in range(count)]
    logs = [Log(Peers(name, LIMIT)) for name in names]

    def beat(*alive: str) -> list[int]:
        """Let everyone read a round of beats; return how many of them want to evict."""
        wanting = []
        for number, log in enumerate(logs):
            log.now += BEAT_SECONDS
            before = len(log.evicted)
            for worker in alive:
                log.write(worker)
            wanting += [number] * (len(log.evicted) - before)
        return wanting

    for _ in range(10):
        beat(*names, "dead")
    rounds = [beat(*names) for _ in range(6 + count)]

    first, *later = [wanting for wanting in rounds if wanting]
    assert len(first) == 1
    assert sorted(first + [number for wanting in later for number in wanting]) == list(range(count))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["me", "a", "b"]),
            st.sampled_from([0.0, 0.1, 0.3, 0.3, 0.6, 0.8, 1.2, 5.0]),
            st.sampled_from(["alive", "alive", "alive", "alive", "left", "evicted"]),
        ),
        max_size=200,
    )
)
def test_nobody_is_evicted_who_was_not_silent_on_our_clock(history: list[tuple[str, float, str]]) -> None:
    peers, now, own = Peers("me", LIMIT), 0.0, 0.0
    heard: dict[str, float] = {}
    for worker, passed, kind in history:
        now += passed
        if kind != "alive":
            peers.hear(Beat(worker, f"{worker}-member", now, "left" if kind == "left" else "evicted"))
            continue
        silent = peers.hear(Beat(worker, f"{worker}-member", now))
        if worker == "me":
            own = now
        else:
            heard[worker] = own
        for each in silent:
            assert worker == "me"
            assert each.member == f"{each.worker}-member"
            assert own - heard[each.worker] > LIMIT
