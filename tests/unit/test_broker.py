"""A broker's answers are read however they were cut, and whatever else comes loses the connection and nothing more."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.api import ResponseHeader_v0
from aiokafka.protocol.produce import ProduceResponse_v7

from adapters.leaders import Address, Broker
from adapters.produce_request import Written

BATCHES = [(3, b"three"), (5, b"five")]
WRITTEN = {3: Written(0, 30), 5: Written(6, -1)}


def answered(number: int) -> bytes:
    """Return the answer to the request of this number, with its size."""
    told = [("tokens", [(each, *of, -1, 0) for each, of in WRITTEN.items()])]
    body: bytes = ResponseHeader_v0(number).encode() + ProduceResponse_v7(told, 0).encode()
    return struct.pack(">i", len(body)) + body


@asynccontextmanager
async def broker(*answers: Callable[[int], list[bytes]], patience: float = 5.0) -> AsyncIterator[Broker]:
    """Serve one who answers each request in turn with these pieces; an empty one closes the connection."""
    coming = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                _, _, number = struct.unpack_from(">hhi", await reader.readexactly(size))
                for piece in coming.pop(0)(number):
                    writer.write(piece)
                    if not piece:
                        return
                    await asyncio.sleep(0.001)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        tested = Broker(Address(*server.sockets[0].getsockname()), patience)
        yield tested
        tested.cut()


def whole(number: int) -> list[bytes]:
    return [answered(number)]


def in_single_bytes(number: int) -> list[bytes]:
    return [bytes([byte]) for byte in answered(number)]


def to_another(number: int) -> list[bytes]:
    return [answered(number + 1)]


def cut_short(number: int) -> list[bytes]:
    return [struct.pack(">i", 20) + answered(number)[4:24]]


def gone(_: int) -> list[bytes]:
    return [b""]


def silent(_: int) -> list[bytes]:
    return []


@pytest.mark.parametrize("form", [whole, in_single_bytes])
async def test_an_answer_is_read_however_it_was_cut(form: Callable[[int], list[bytes]]) -> None:
    async with broker(form, form) as tested:
        assert await tested.produce("tokens", BATCHES) == WRITTEN
        assert await tested.produce("tokens", BATCHES) == WRITTEN


@pytest.mark.parametrize(
    ("form", "error"),
    [
        (to_another, KafkaConnectionError),
        (gone, KafkaConnectionError),
        (silent, KafkaConnectionError),
        (cut_short, struct.error),
    ],
)
async def test_without_its_answer_a_request_fails_and_the_next_one_is_sent_anew(
    form: Callable[[int], list[bytes]], error: type[Exception]
) -> None:
    async with broker(form, whole, patience=0.2) as tested:
        with pytest.raises(error):
            await tested.produce("tokens", BATCHES)
        tested.cut()

        assert await tested.produce("tokens", BATCHES) == WRITTEN


async def test_a_connection_that_ended_while_nothing_was_asked_is_opened_again() -> None:
    async with broker(lambda number: [answered(number), b""], whole) as tested:
        await tested.produce("tokens", BATCHES)
        await asyncio.sleep(0.05)

        assert await tested.produce("tokens", BATCHES) == WRITTEN


async def test_a_request_that_is_given_up_fails_at_once() -> None:
    async with broker(silent) as tested:
        asked = asyncio.create_task(tested.produce("tokens", BATCHES))
        await asyncio.sleep(0.05)
        tested.cut()

        with pytest.raises(KafkaConnectionError):
            await asked


async def test_nobody_there_is_told() -> None:
    async with broker() as tested:
        pass

    with pytest.raises(ConnectionRefusedError):
        await tested.produce("tokens", BATCHES)
