"""The bench's reader counts every token once, however the network cuts the stream."""

from hypothesis import given
from hypothesis import strategies as st

from bench.load import Heard, Question, Reader
from tests.support.model_bytes import cut

STAMPS = st.lists(st.integers(0, 10**13).map(lambda micros: micros / 1e6), min_size=1, max_size=20)


@given(STAMPS, st.lists(st.integers(0, 1 << 12), max_size=20))
def test_every_stamp_is_found_once_and_in_order(stamps: list[float], places: list[int]) -> None:
    events = "".join(
        f'id: {number}\nevent: token\ndata: {{"text":" t={at:.6f}"}}\n\n' for number, at in enumerate(stamps)
    )
    reader = Reader(Question("http://127.0.0.1/v1", {}))

    for piece in cut(f"HTTP/1.1 200 OK\r\n\r\n{events}".encode(), places):
        reader.data_received(piece)

    assert [f"{at:.6f}" for at in reader.sent] == [f"{at:.6f}" for at in stamps]
    assert len(reader.came) == len(stamps)


def test_quantiles_are_in_milliseconds() -> None:
    heard = Heard([number / 1000 for number in range(100)])

    assert (heard.quantile(0.5), heard.quantile(0.99)) == (50, 99)
