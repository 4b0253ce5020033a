"""What is written to Kafka and read from it is, byte for byte, what aiokafka's own schemas would write and read."""

import io

import pytest
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.produce import ProduceRequest_v7, ProduceResponse_v7
from hypothesis import given
from hypothesis import strategies as st

from adapters.produce_request import Answer, ProduceRequest, Written

partitions = st.integers(0, 2**31 - 1)
topics = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=20)


@given(topics, st.lists(st.tuples(partitions, st.binary(max_size=40)), max_size=5), st.integers(0, 2**31 - 1))
def test_a_request_is_what_aiokafka_writes(topic: str, batches: list[tuple[int, bytes]], patience: int) -> None:
    theirs = ProduceRequest_v7(None, -1, patience, [(topic, batches)])

    assert ProduceRequest(topic, batches, patience).encode() == theirs.encode()


@given(topics, st.dictionaries(partitions, st.tuples(st.integers(0, 100), st.integers(-1, 2**60)), max_size=5))
def test_an_answer_is_what_aiokafka_reads(topic: str, told: dict[int, tuple[int, int]]) -> None:
    theirs = ProduceResponse_v7([(topic, [(each, code, at, -1, 0) for each, (code, at) in told.items()])], 0)

    assert Answer.decode(io.BytesIO(theirs.encode())) == {each: Written(*of) for each, of in told.items()}


def test_an_answer_about_nothing_says_nothing() -> None:
    assert Answer.decode(io.BytesIO(ProduceResponse_v7([], 0).encode())) == {}


def test_a_broker_that_speaks_another_version_is_refused() -> None:
    request = ProduceRequest("tokens", [], 1000)

    assert request.prepare({0: (3, 12)}) is request
    with pytest.raises(IncompatibleBrokerVersion, match="8 to 12"):
        request.prepare({0: (8, 12)})
