"""What a campaign is going to do is known before it starts, and the same for a seed."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.campaign.faults import FAULTS
from bench.campaign.schedule import KINDS, MODEL_FAULTS, SHORT, Fault, errand, length, schedule, short_schedule
from tests.support.scripted_answer import script_of

seeds = st.integers(0, 2**32)


def of_machines(faults: list[Fault]) -> list[Fault]:
    """Return those of the lane in which faults follow one another."""
    return [fault for fault in faults if KINDS[fault.kind].lane == "machines"]


@given(seed=seeds, count=st.integers(0, 400))
def test_the_same_seed_gives_the_same_schedule(seed: int, count: int) -> None:
    assert schedule(seed, count) == schedule(seed, count)


@given(seed=seeds, count=st.integers(1, 400))
def test_there_are_as_many_faults_as_asked_for_in_the_order_of_their_times(seed: int, count: int) -> None:
    faults = schedule(seed, count)

    assert [fault.number for fault in faults] == list(range(count))
    assert all(earlier.at <= later.at for earlier, later in pairwise(faults))
    assert faults[-1].at < length(faults)


@given(seed=seeds)
def test_faults_of_machines_leave_each_other_the_time_to_recover(seed: int) -> None:
    for earlier, later in pairwise(of_machines(schedule(seed, 300))):
        assert later.at - earlier.at >= 0.89 * KINDS[earlier.kind].takes


@given(seed=seeds)
def test_a_worker_is_removed_after_it_was_added_and_never_added_twice(seed: int) -> None:
    comings = [fault.kind for fault in schedule(seed, 300) if fault.kind in {"worker added", "worker removed"}]

    assert comings[::2] == ["worker added"] * len(comings[::2])
    assert comings[1::2] == ["worker removed"] * len(comings[1::2])


@given(seed=seeds)
def test_a_full_campaign_has_every_kind_and_each_with_a_goal_often(seed: int) -> None:
    done = Counter(fault.kind for fault in schedule(seed, 300))

    assert set(done) == set(KINDS)
    assert min(done["worker SIGKILL"], done["host lost"], done["worker SIGTERM"]) >= 15
    assert sum(count for kind, count in done.items() if kind.startswith("broker killed")) >= 15


def test_a_full_campaign_takes_less_than_forty_minutes() -> None:
    assert all(length(schedule(seed, 300)) < 2400 for seed in range(20))


@given(seed=seeds)
def test_the_short_campaign_has_ten_kinds_and_the_same_order_for_a_seed(seed: int) -> None:
    faults = short_schedule(seed)

    assert faults == short_schedule(seed)
    assert sorted(fault.kind for fault in faults) == sorted(SHORT)
    assert length(faults) < 110


def test_different_seeds_differ() -> None:
    assert len({tuple(schedule(seed, 50)) for seed in range(20)}) == 20


def test_every_kind_can_be_done_and_nothing_else() -> None:
    assert set(FAULTS) == set(KINDS)


@pytest.mark.parametrize("directives", MODEL_FAULTS.values(), ids=MODEL_FAULTS)
def test_the_scripted_server_knows_every_fault_of_the_model(directives: str) -> None:
    assert script_of(f"question [{directives}]").fault


def test_only_kinds_that_are_asked_for_are_drawn() -> None:
    assert {fault.kind for fault in schedule(1, 30, only=["host", "clock"])} == {"host lost", "clock jump"}


def test_a_kind_that_does_not_exist_is_told() -> None:
    with pytest.raises(ValueError, match="no fault is called meteorite"):
        schedule(1, 10, only=["meteorite"])


@given(seed=seeds, number=st.integers(0, 20_000))
def test_what_a_client_does_is_the_same_for_a_seed_and_possible(seed: int, number: int) -> None:
    job = errand(seed, number, slots=80, tenants=6)

    assert job == errand(seed, number, slots=80, tenants=6)
    assert job.stop_after < job.tokens
    assert not job.repeats or job.keyed
    assert all(0 < place < job.tokens for place in job.drop_after)
