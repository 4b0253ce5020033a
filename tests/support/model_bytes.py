"""A model server that is only bytes: what it sends, cut where the test says, with an error where the test says."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import pairwise

import httpx2
from openai import AsyncOpenAI

Pieces = Iterable[bytes | Exception]


class ByteStream(httpx2.AsyncByteStream):
    """The body of a response, one read for each piece; an exception is raised by the read that meets it."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def aclose(self) -> None:
        self.closed = True


def client_over(answer: Callable[[httpx2.Request], httpx2.Response]) -> AsyncOpenAI:
    """Return the SDK's client over a transport that answers with what the function returns."""
    transport = httpx2.MockTransport(answer)
    return AsyncOpenAI(
        base_url="http://model/v1", api_key="none", max_retries=0, http_client=httpx2.AsyncClient(transport=transport)
    )


def client_hearing(pieces: Pieces, **headers: str) -> AsyncOpenAI:
    """Return a client that hears a stream of these pieces, whatever it asks."""
    all_headers = {"Content-Type": "text/event-stream", **headers}
    return client_over(lambda _: httpx2.Response(200, headers=all_headers, stream=ByteStream(pieces)))


def cut(whole: bytes, places: Sequence[int]) -> list[bytes]:
    """Return the bytes in pieces, cut at these places (modulo the length); none is empty."""
    ends = sorted({0, len(whole), *(place % (len(whole) + 1) for place in places)})
    return [whole[start:end] for start, end in pairwise(ends)]
