"""Bounded memory: what is heavy or old goes."""

from tests.support.clock import Clock
from web.caches import Cache


def test_what_was_used_last_stays() -> None:
    cache: Cache[int] = Cache(3, 60, Clock())
    for name, value in (("a", 1), ("b", 2), ("c", 3)):
        cache.put(name, value)
    cache.get("a")
    cache.put("d", 4)

    assert [cache.get(name) for name in "abcd"] == [1, None, 3, 4]


def test_weight_counts_not_number() -> None:
    cache: Cache[int] = Cache(100, 60, Clock())
    cache.put("a", 1, 60)
    cache.put("b", 2, 30)
    cache.put("a", 3, 10)
    assert len(cache) == 2

    cache.put("c", 4, 90)
    assert [cache.get(name) for name in "abc"] == [3, None, 4]

    cache.put("d", 5, 1000)
    assert [cache.get(name) for name in "acd"] == [None, None, 5]


def test_what_is_old_is_gone() -> None:
    clock = Clock()
    cache: Cache[int] = Cache(10, 60, clock)
    cache.put("a", 1)
    clock.now += 50
    cache.put("b", 2)

    clock.now += 11

    assert cache.values() == [2]
    assert cache.get("a") is None
    assert len(cache) == 1


def test_what_is_dropped_gives_its_room_back() -> None:
    cache: Cache[int] = Cache(2, 60, Clock())
    for number in range(10):
        cache.put("a", number)
        cache.drop("a")
    cache.put("b", 1)
    cache.put("c", 2)

    assert [cache.get("b"), cache.get("c")] == [1, 2]
