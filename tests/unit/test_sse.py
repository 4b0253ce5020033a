"""Events come out of a byte stream the same, wherever it was cut and however its lines end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.sse import MAX_EVENT_BYTES, EventStream
from domain.errors import ModelBusy
from tests.support.model_bytes import cut

LINES = st.sampled_from(
    [
        "",
        "",
        "data: one",
        "data:two",
        "data: ",
        "data",
        ": comment",
        "event: x",
        "id: 7",
        "data: ñ🙂",
        "other: y",
        "data:  z",
    ]
)


def read(*pieces: bytes) -> list[bytes]:
    stream = EventStream()
    return [data for piece in pieces for data in stream.feed(piece)]


@given(st.lists(LINES), st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(0, 1 << 10)))
def test_cuts_and_line_ends_change_nothing(lines: list[str], end: str, places: list[int]) -> None:
    whole = "".join(line + end for line in lines).encode()

    assert read(*cut(whole, places)) == read("".join(line + "\n" for line in lines).encode())


@given(st.lists(st.text("d:\n\r atx\ufeff", max_size=12)), st.lists(st.integers(0, 1 << 10)))
def test_an_event_in_one_read_is_what_it_is_in_several(texts: list[str], places: list[int]) -> None:
    events = [f"data: {text}\n\n".encode() for text in texts]

    assert read(*events) == read(*cut(b"".join(events), places))


def test_a_read_that_brings_nothing_changes_nothing() -> None:
    assert read(b"data: one\r", b"", b"\n\r", b"", b"\n") == [b"one"]


def test_the_data_of_each_event_is_returned_when_its_blank_line_has_come() -> None:
    stream = EventStream()

    assert stream.feed(b"data: one\n") == []
    assert stream.feed(b"\ndata: two\n\ndata: thr") == [b"one", b"two"]
    assert stream.feed(b"ee\n\n") == [b"three"]


def test_a_character_cut_in_two_is_whole_in_the_end() -> None:
    first, second = "data: 🙂\n\n".encode()[:8], "data: 🙂\n\n".encode()[8:]

    assert read(first, second) == ["🙂".encode()]


def test_one_space_after_the_colon_belongs_to_the_format_and_a_second_to_the_data() -> None:
    assert read(b"data:a\n\ndata: b\n\ndata:  c\n\n") == [b"a", b"b", b" c"]


def test_several_data_lines_are_one_event() -> None:
    assert read(b'data: {"a":\ndata: 1}\n\n') == [b'{"a":\n1}']
    assert read(b"data:  a \ndata: b\n\n") == [b" a \nb"]


def test_comments_names_ids_and_events_without_data_are_skipped() -> None:
    assert read(b": ping\n\nevent: x\nid: 1\nretry: 5\n\nevent: y\ndata: kept\n: and\n\n") == [b"kept"]


def test_a_mark_of_the_byte_order_at_the_start_is_no_part_of_the_first_line() -> None:
    assert read(b"\xef\xbb\xbfdata: one\n\n") == [b"one"]
    assert read(b"\xef", b"\xbb\xbfda", b"ta: one\n\ndata: two\n\n") == [b"one", b"two"]


def test_an_event_without_its_blank_line_is_only_seen_by_close() -> None:
    stream = EventStream()

    assert stream.feed(b"data: one\n\ndata: [DONE]\n") == [b"one"]
    assert stream.close() == b"[DONE]"


def test_an_event_beyond_all_bounds_is_not_waited_for() -> None:
    stream = EventStream()
    stream.feed(b"data: " + b"x" * (MAX_EVENT_BYTES - 100))

    with pytest.raises(ModelBusy, match="more than"):
        stream.feed(b"x" * 200)
