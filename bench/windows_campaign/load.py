"""Finished turns as workers publish them, written straight to their topic: on time, late, out of order and twice.

They are plain JSON of our own making and not the product's records, so that a field it renames is found missing.
"""

import asyncio
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic, time
from typing import Any, Final

from aiokafka.partitioner import murmur2
from confluent_kafka import KafkaError, Message, Producer

from domain.ids import new_turn_id, uuid7

TOPIC: Final = "chat.turns.v1"
CONVERSATIONS: Final = 300
TENANTS: Final = ("amber", "birch", "cedar | with = a name")
MODELS: Final = ("small", "large")
OUTCOMES: Final = ("completed", "stopped", "failed")
OUTCOME_WEIGHTS: Final = (90, 6, 4)
LATE_SHARE: Final = 0.03
LATE_SECONDS: Final = (3.0, 90.0)
TWICE_SHARE: Final = 0.02
TWICE_SECONDS: Final = (0.0, 6.0)
PACE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Truth:
    """A turn as it was written. Times in Unix ms."""

    turn_id: str
    ended_at: int
    tenant: str
    model: str
    outcome: str
    answer: str
    input_tokens: int
    output_tokens: int
    first_token_ms: int
    claims: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """Whose turns they are."""

    id: str
    tenant: str
    user: str

    def partition(self, partitions: int) -> int:
        """Return its partition, as Kafka's default partitioner says."""
        return int(murmur2(self.id.encode()) & 0x7FFFFFFF) % partitions


class Load:
    """Writes turns at a rate, and knows which."""

    def __init__(self, bootstrap: str, partitions: int, dice: random.Random, *, prefix: str = "") -> None:
        self.truth: dict[str, Truth] = {}
        self.records = 0
        self._partitions = partitions
        self._topic = prefix + TOPIC
        self._dice = dice
        self._failed: list[str] = []
        self._again: list[tuple[float, Conversation, bytes]] = []
        self._producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5})
        now = int(time() * 1000)
        self._conversations = [
            Conversation(uuid7(now, number, dice.getrandbits(62)), dice.choice(TENANTS), f"user-{dice.randrange(20)}")
            for number in range(CONVERSATIONS)
        ]

    async def run(self, rate: float, least: int, over: asyncio.Event) -> None:
        """Write at ``rate`` a second until it is over and there are at least so many; return when Kafka has all."""
        began, written = monotonic(), 0
        while not over.is_set() or written < least:
            due = int((monotonic() - began) * rate)
            while written < due:
                self._write_new()
                written += 1
            self._write_again(monotonic())
            await asyncio.sleep(PACE_SECONDS)
        self._write_again(float("inf"))
        await asyncio.to_thread(self._producer.flush, 60)
        if self._failed:
            raise RuntimeError(f"Kafka did not take {len(self._failed)} turns: {self._failed[0]}")

    def _write_new(self) -> None:
        dice, now = self._dice, int(time() * 1000)
        conversation = dice.choice(self._conversations)
        late = int(dice.uniform(*LATE_SECONDS) * 1000) if dice.random() < LATE_SHARE else dice.randrange(200)
        turn = self._turn(now - late, conversation)
        value = json.dumps(turn).encode()
        self._send(conversation, value)
        if dice.random() < TWICE_SHARE:
            self._again.append((monotonic() + dice.uniform(*TWICE_SECONDS), conversation, value))

    def _turn(self, ended_at: int, conversation: Conversation) -> Mapping[str, Any]:
        dice = self._dice
        first, rest = dice.randint(50, 900), dice.randint(100, 3000)
        truth = Truth(
            turn_id=new_turn_id(
                ended_at - first - rest, conversation.partition(self._partitions), dice.getrandbits(62)
            ),
            ended_at=ended_at,
            tenant=conversation.tenant,
            model=dice.choice(MODELS),
            outcome=dice.choices(OUTCOMES, OUTCOME_WEIGHTS)[0],
            answer="An answer with a \ttab, a \\ and a naïve 日本語 🙂 " * dice.randint(1, 20),
            input_tokens=dice.randint(10, 2000),
            output_tokens=dice.randint(1, 600),
            first_token_ms=first,
            claims=dice.choices((1, 2, 3), (95, 4, 1))[0],
        )
        self.truth[truth.turn_id] = truth
        return {
            "turn_id": truth.turn_id,
            "conversation_id": conversation.id,
            "tenant": truth.tenant,
            "user": conversation.user,
            "input": f"question {len(self.truth)}",
            "answer": truth.answer,
            "model": truth.model,
            "outcome": truth.outcome,
            "usage": {"input_tokens": truth.input_tokens, "output_tokens": truth.output_tokens},
            "timings": {"started_ms": 1, "first_token_ms": first, "total_ms": first + rest},
            "claims": truth.claims,
            "asked_at": ended_at - first - rest,
            "ended_at": ended_at,
            "prompt": "assistant/1",
        }

    def _write_again(self, now: float) -> None:
        due = [each for each in self._again if each[0] <= now]
        self._again = [each for each in self._again if each[0] > now]
        for _, conversation, value in due:
            self._send(conversation, value)

    def _send(self, conversation: Conversation, value: bytes) -> None:
        partition = conversation.partition(self._partitions)
        self._producer.produce(
            self._topic, value, conversation.id.encode(), partition=partition, on_delivery=self._delivered
        )
        self._producer.poll(0)
        self.records += 1

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failed.append(str(error))
