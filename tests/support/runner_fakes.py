"""A consumer group, a stream and events, as far as the turn runner sees them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from streams.records import Question, encode


@dataclass(eq=False)
class FakeMessage:
    """A Kafka message."""

    partition: int
    offset: int
    generation_id: int | None
    topic: str = "chat.questions.v1"


@dataclass(eq=False)
class FakeEvent:
    """A Faust event."""

    key: bytes
    value: bytes
    message: FakeMessage


@dataclass
class FakeGroup:
    """A consumer group whose log is a list: a rebalance delivers everything uncommitted again."""

    generation: int = 1
    rebalancing: bool = False
    log: list[tuple[int, int, bytes, bytes]] = field(default_factory=list)
    acked: list[int] = field(default_factory=list)
    queue: "asyncio.Queue[FakeEvent | None]" = field(default_factory=asyncio.Queue)
    begins: dict[int, int] = field(default_factory=dict)
    held_back: bool = False

    async def events(self) -> AsyncIterator[FakeEvent]:
        """Yield what was delivered, until `close`."""
        while (event := await self.queue.get()) is not None:
            yield event

    async def ack(self, event: FakeEvent) -> None:
        """Take an acknowledgement; one of an older generation would be refused by the consumer."""
        assert event.message.generation_id == self.generation
        self.acked.append(event.message.offset)

    def delivers_from(self, partition: int, topic: str = "") -> int:
        """Return where the delivery of a partition began."""
        return -1 if self.rebalancing else self.begins.get(partition, 0)

    def hold_back(self) -> None:
        """Note that no more is wanted."""
        self.held_back = True

    def go_on(self) -> None:
        """Note that more is wanted."""
        self.held_back = False

    def deliver(self, value: bytes, *, key: str = "c", partition: int = 0) -> int:
        """Append a record to the log and deliver it."""
        offset = len(self.log)
        self.log.append((partition, offset, key.encode(), value))
        self._put(offset)
        return offset

    def ask(self, turn_id: str, conversation_id: str = "c", *, partition: int = 0, **fields: Any) -> int:
        """Deliver a question."""
        return self.deliver(
            encode(question(turn_id, conversation_id, **fields)), key=conversation_id, partition=partition
        )

    def rebalance(self, kept: set[int]) -> None:
        """Begin a new generation, and deliver again what was not acknowledged in the partitions that are kept."""
        self.generation += 1
        for partition, offset, _, _ in self.log:
            if partition in kept and offset not in self.acked:
                self._put(offset)

    def close(self) -> None:
        """End the stream."""
        self.queue.put_nowait(None)

    def _put(self, offset: int) -> None:
        partition, _, key, value = self.log[offset]
        self.queue.put_nowait(FakeEvent(key, value, FakeMessage(partition, offset, self.generation)))


def question(turn_id: str, conversation_id: str = "c", *, tenant: str = "t", **fields: Any) -> Question:
    """Return a question."""
    return Question(
        turn_id=turn_id,
        conversation_id=conversation_id,
        tenant=tenant,
        user="u",
        input="what is a partition?",
        model="",
        tokens_from=0,
        **fields,
    )
