"""What is written to Kafka and read from it is, byte for byte, what aiokafka's own schemas would write and read."""

import struct

import pytest
from aiokafka.protocol.api import RequestHeader_v1, ResponseHeader_v0
from aiokafka.protocol.produce import ProduceRequest_v7, ProduceResponse_v7
from hypothesis import given
from hypothesis import strategies as st

from adapters.produce_request import CLIENT_ID, Written, answer, request

numbers = st.integers(0, 2**31 - 1)
topics = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=20)


def answered(number: int, *topics: tuple[str, list[tuple[int, int, int, int, int]]]) -> bytes:
    body: bytes = ResponseHeader_v0(number).encode() + ProduceResponse_v7(list(topics), 0).encode()
    return body


@given(numbers, topics, st.lists(st.tuples(numbers, st.binary(max_size=40)), max_size=5), numbers)
def test_a_request_is_what_aiokafka_writes(
    number: int, topic: str, batches: list[tuple[int, bytes]], patience: int
) -> None:
    theirs = ProduceRequest_v7(None, -1, patience, [(topic, batches)])
    head = RequestHeader_v1(theirs, number, CLIENT_ID.decode())

    assert request(number, topic, batches, patience) == head.encode() + theirs.encode()


@given(numbers, topics, st.dictionaries(numbers, st.tuples(st.integers(0, 100), st.integers(-1, 2**60)), max_size=5))
def test_an_answer_is_what_aiokafka_reads(number: int, topic: str, told: dict[int, tuple[int, int]]) -> None:
    theirs = answered(number, (topic, [(each, code, at, -1, 0) for each, (code, at) in told.items()]))

    assert answer(theirs) == (number, {each: Written(*of) for each, of in told.items()})


def test_an_answer_about_nothing_says_nothing() -> None:
    assert answer(answered(7)) == (7, {})


def test_an_answer_that_is_cut_is_not_read() -> None:
    whole = answered(7, ("tokens", [(0, 0, 5, -1, 0)]))

    with pytest.raises(struct.error):
        answer(whole[:-8])
