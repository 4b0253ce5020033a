"""A turn id says when and where its turn began, and is a proper uuid7."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.ids import MAX_PARTITIONS, new_turn_id, place_of, uuid7

times = st.integers(0, (1 << 48) - 1)
partitions = st.integers(0, MAX_PARTITIONS - 1)
randoms = st.integers(0, (1 << 62) - 1)


@given(times, partitions, randoms)
def test_a_turn_id_leads_back_to_its_place(milliseconds: int, partition: int, random: int) -> None:
    assert place_of(new_turn_id(milliseconds, partition, random)) == (milliseconds, partition)


@given(times, partitions, randoms)
def test_a_turn_id_is_a_uuid7_of_rfc_9562(milliseconds: int, partition: int, random: int) -> None:
    value = UUID(new_turn_id(milliseconds, partition, random))

    assert value.version == 7
    assert value.variant == "specified in RFC 4122"


@given(times, times, partitions, partitions, randoms, randoms)
def test_ids_sort_by_time(early: int, late: int, a: int, b: int, c: int, d: int) -> None:
    if early < late:
        assert uuid7(early, a, c) < uuid7(late, b, d)


@given(times, partitions, randoms, randoms)
def test_the_random_bits_tell_two_turns_apart(milliseconds: int, partition: int, one: int, other: int) -> None:
    same = new_turn_id(milliseconds, partition, one) == new_turn_id(milliseconds, partition, other)

    assert same == (one == other)


@pytest.mark.parametrize("partition", [-1, MAX_PARTITIONS])
def test_a_partition_that_does_not_fit_is_refused(partition: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        new_turn_id(0, partition, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "turn",
        "0194c5e4-1c2d-4001-8000-000000000001",
        "0194C5E4-1C2D-7001-8000-000000000001",
        "0194c5e41c2d70018000000000000001",
        "{0194c5e4-1c2d-7001-8000-000000000001}",
    ],
)
def test_what_is_no_turn_id_has_no_place(text: str) -> None:
    assert place_of(text) is None


@given(st.text(max_size=40))
def test_no_text_breaks_the_reading_of_ids(text: str) -> None:
    place = place_of(text)

    assert place is None or 0 <= place.partition < MAX_PARTITIONS
