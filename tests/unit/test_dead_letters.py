"""What cannot be handled finds a place among the dead letters: a record that is too large for it holds up nothing."""

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka.errors import MessageSizeTooLargeError
from faust.exceptions import ProducerSendError

from domain.errors import BadRecord, LogUnavailable, Rejected
from streams.app import app as chat
from streams.records import Control, DeadLetter, decode

MOST_BYTES = 1_000_000  # Kafka's default is 1,048,588, for a batch with its head


class FakeProducer:
    """Keeps what it is given; or refuses it as Kafka does, or as Kafka's client does before it sends anything."""

    def __init__(self, *, refuses: Exception | None = None, raises: Exception | None = None) -> None:
        self.sent: list[tuple[bytes, bytes]] = []
        self._refuses = refuses
        self._raises = raises

    async def send(self, _topic: str, key: bytes, value: bytes, *_: object) -> "asyncio.Future[SimpleNamespace]":
        self.sent.append((key, value))
        acknowledged: asyncio.Future[SimpleNamespace] = asyncio.get_running_loop().create_future()
        if self._raises is not None:
            raise self._raises from MessageSizeTooLargeError()
        if self._refuses is not None:
            acknowledged.set_exception(self._refuses)
        else:
            acknowledged.set_result(SimpleNamespace(offset=0))
        return acknowledged


async def letter_of(monkeypatch: pytest.MonkeyPatch, key: bytes, value: bytes, reason: str) -> DeadLetter:
    """Set a record aside; return its letter, which Kafka must be able to take."""
    producer = FakeProducer()
    monkeypatch.setattr(chat, "_producer", producer)
    await chat.dead_letter(topic="questions", partition=1, offset=2, error=BadRecord(reason), key=key, value=value)
    ((sent_key, sent),) = producer.sent
    assert len(sent_key) + len(sent) < MOST_BYTES
    return decode(sent, DeadLetter)


async def test_a_record_is_kept_whole_if_it_is_not_large(monkeypatch: pytest.MonkeyPatch) -> None:
    letter = await letter_of(monkeypatch, b"c", b"{broken", "it is broken")

    assert (letter.topic, letter.partition, letter.offset) == ("questions", 1, 2)
    assert (letter.key, letter.value, letter.reason, letter.code) == ("c", b"{broken", "it is broken", "bad_record")


async def test_of_a_large_record_the_beginning_is_kept_and_the_letter_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    value = b"{broken" + b"x" * 800_000

    letter = await letter_of(monkeypatch, b"c", value, "it is broken")

    assert letter.value == value[:500_000]
    assert letter.reason == "it is broken (here are 500000 of the 800007 bytes of its value)"


@pytest.mark.parametrize("byte", [b"\x00", b"\xff", b"x"], ids=repr)
async def test_whatever_is_large_in_a_record_its_letter_is_not(monkeypatch: pytest.MonkeyPatch, byte: bytes) -> None:
    letter = await letter_of(monkeypatch, byte * 900_000, byte * 12_000_000, byte.decode(errors="replace") * 900_000)

    assert letter.value == byte * 500_000


@pytest.mark.parametrize(
    "producer",
    [FakeProducer(refuses=MessageSizeTooLargeError()), FakeProducer(raises=ProducerSendError("too large"))],
    ids=["by the broker", "by its client"],
)
async def test_a_record_that_is_too_large_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, producer: FakeProducer
) -> None:
    monkeypatch.setattr(chat, "_producer", producer)

    with pytest.raises(Rejected, match="larger than Kafka takes"):
        await publish()


async def test_whatever_else_goes_wrong_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_producer", FakeProducer(refuses=ConnectionError("no broker")))

    with pytest.raises(LogUnavailable, match="no broker"):
        await publish()


async def publish() -> int:
    """Publish any record."""
    control = Control(action="stop", conversation_id="c", tenant="t", user="u", at=0)
    return await chat.publish(chat.topics_of.controls, "c", control)
