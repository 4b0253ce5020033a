"""What our librdkafka clients do about complaints."""

from itertools import pairwise

from confluent_kafka import KafkaError

from adapters.librdkafka import LeaderLook
from tests.support.clock import Clock


def test_leaders_are_looked_for_several_times_a_second_for_a_while_after_each_complaint() -> None:
    clock, passed_on = Clock(), list[KafkaError]()
    look = LeaderLook(passed_on.append, clock)
    assert not look.due()

    look.complained(KafkaError(KafkaError._TRANSPORT))
    began = clock.now
    looked = [at for at in range(20_000) if look_at(look, clock, began + at / 1000)]
    look.complained(KafkaError(KafkaError._TRANSPORT))

    assert looked[0] == 0
    assert looked[-1] < 15_000
    assert {later - sooner for sooner, later in pairwise(looked)} <= {100, 101}
    assert look.due()
    assert len(passed_on) == 2


def look_at(look: LeaderLook, clock: Clock, now: float) -> bool:
    clock.now = now
    return look.due()
