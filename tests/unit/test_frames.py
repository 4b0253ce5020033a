"""Frames carry tokens unchanged, and whatever else stands on the topic is refused with its reason."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.frames import VERSION, decode, encode, mentions
from domain.errors import BadRecord
from domain.tokens import Token

tokens = st.lists(
    st.builds(
        Token,
        st.uuids().map(str),
        st.integers(0, 1 << 60),
        st.integers(0, 1 << 31),
        st.sampled_from(["claim", "token", "tool", "end"]),
        st.text(),
    ),
    max_size=20,
)


@given(tokens)
def test_a_frame_brings_back_what_went_in(some: list[Token]) -> None:
    back = decode(encode(some))

    assert back == some
    assert all(type(token) is Token for token in back)


@given(tokens)
def test_a_frame_mentions_its_turns_and_no_other(some: list[Token]) -> None:
    raw = encode(some)

    assert all(mentions(raw, token.turn_id) for token in some)
    assert not mentions(raw, "0194c5e4-1c2d-7001-8000-00000000000g")


def test_a_token_takes_about_65_bytes() -> None:
    some = [Token("0194c5e4-1c2d-7001-8000-000000000001", 7 << 16, seq, "token", " hello") for seq in range(100)]

    assert len(encode(some)) < 65 * len(some)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_frame_are_refused_and_nothing_worse(raw: bytes) -> None:
    with contextlib.suppress(BadRecord):
        assert all(isinstance(token, Token) for token in decode(raw))


@pytest.mark.parametrize("body", [[], [["whole", "new", "shape"]], {"tokens": []}])
def test_a_frame_of_a_newer_version_says_so(body: object) -> None:
    raw = msgspec.msgpack.encode([VERSION + 1, body])

    with pytest.raises(BadRecord, match="version 2, where 1 is known"):
        decode(raw)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (["t", 1, 0, "shout", "x"], "Invalid enum value 'shout'"),
        (["t", "1", 0, "token", "x"], "Expected `int`"),
        (["t", 1, 0, "token"], "length"),
    ],
)
def test_a_frame_with_a_wrong_token_says_what_is_wrong(token: list[object], reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        decode(msgspec.msgpack.encode([VERSION, [token]]))


def test_a_record_without_a_value_is_refused() -> None:
    with pytest.raises(BadRecord, match="without a value"):
        decode(None)
    assert not mentions(None, "t")
