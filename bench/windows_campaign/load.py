"""Finished turns, and what users say of them, written straight to their topics: on time, late, out of order and twice.

They are plain JSON of our own making and not the product's records, so that a field it renames is found missing.
"""

import asyncio
import json
import math
import random
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Any, Final

from aiokafka.partitioner import murmur2
from confluent_kafka import KafkaError, Message, Producer

from domain.ids import new_turn_id, uuid7

TURNS: Final = "chat.turns.v1"
FEEDBACK: Final = "chat.feedback.v1"
CONVERSATIONS: Final = 300
TENANTS: Final = ("amber", "birch", "cedar | with = a name")
# What a million tokens cost, read and written. Nobody knows what a borrowed model costs.
PRICES: Final = {"small": ("2.5", "10"), "large": ("5", "15.125"), "borrowed": None}
PROMPTS: Final = {"small": "assistant/1", "large": "assistant/2", "borrowed": ""}
ARMS: Final = {"amber": ("a", "b")}
OUTCOMES: Final = ("completed", "stopped", "failed")
OUTCOME_WEIGHTS: Final = (90, 6, 4)
RETRIEVALS: Final = (None, "found", "weak", "empty", "unavailable")
RETRIEVAL_WEIGHTS: Final = (20, 60, 10, 5, 5)
CACHES: Final = (None, "miss", "hit", "exact")
CACHE_WEIGHTS: Final = (60, 25, 10, 5)
DOCUMENTS: Final = ("manual", "price list", 'a "name" of many words')
REFUSED_SHARE: Final = 0.25  # of those that failed
STATELESS_SHARE: Final = 0.1
SILENT_SHARE: Final = 0.3  # of those that failed: no token came
GAPS_SHARE: Final = 0.7
LATE_SHARE: Final = 0.03
LATE_SECONDS: Final = (3.0, 90.0)
TWICE_SHARE: Final = 0.02
TWICE_SECONDS: Final = (0.0, 6.0)
VOTED_SHARE: Final = 0.1
CHANGED_SHARE: Final = 0.3  # of the votes: of a turn of which something was said a moment ago
PACE_SECONDS: Final = 0.05
DDSKETCH_BINS: Final = 1 / math.log(1.01 / 0.99)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Whose turns they are."""

    id: str
    tenant: str
    user: str

    def partition(self, partitions: int) -> int:
        """Return its partition, as Kafka's default partitioner says."""
        return int(murmur2(self.id.encode()) & 0x7FFFFFFF) % partitions


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage that an answer was given as number ``n``, and whether it names it."""

    n: int
    document_id: str
    title: str
    url: str
    text: str
    named: bool


@dataclass(frozen=True, slots=True)
class Truth:
    """A turn as it was written. Times in Unix ms; ``gaps``: milliseconds between its tokens, if that is known."""

    turn_id: str
    conversation: Conversation
    asked_at: int
    ended_at: int
    first_token_ms: int
    input: str
    answer: str
    model: str
    outcome: str
    error: tuple[str, str] | None  # message and code
    input_tokens: int
    output_tokens: int
    claims: int
    experiment: str
    retrieval: str | None
    cache: str | None
    stateless: bool
    passages: tuple[Passage, ...]
    gaps: tuple[float, ...]
    metadata: Mapping[str, Any]

    @property
    def total_ms(self) -> int:
        """How long it took."""
        return self.ended_at - self.asked_at

    def record(self) -> dict[str, Any]:
        """Return it as its topic has it."""
        return {
            "turn_id": self.turn_id,
            "conversation_id": self.conversation.id,
            "tenant": self.conversation.tenant,
            "user": self.conversation.user,
            "input": self.input,
            "answer": self.answer,
            "model": self.model,
            "outcome": self.outcome,
            "usage": {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens},
            "timings": {"started_ms": 1, "first_token_ms": self.first_token_ms, "total_ms": self.total_ms},
            "claims": self.claims,
            "error": self.error and dict(zip(("message", "code"), self.error, strict=True)),
            "asked_at": self.asked_at,
            "ended_at": self.ended_at,
            "prompt": PROMPTS[self.model],
            "stateless": self.stateless,
            "citations": [
                {"n": each.n, "document_id": each.document_id, "title": each.title, "url": each.url, "text": each.text}
                for each in self.passages
            ],
            "retrieval": self.retrieval,
            "cache": self.cache,
            "gaps": Counter(math.ceil(math.log(gap) * DDSKETCH_BINS) for gap in self.gaps),
            "experiment": self.experiment,
            "metadata": self.metadata,
        }


@dataclass(frozen=True, slots=True)
class Vote:
    """What a user says of a turn, at a Unix time in ms."""

    turn: Truth
    at: int
    rating: int
    comment: str
    correction: str

    def record(self) -> dict[str, Any]:
        """Return it as its topic has it."""
        turn = self.turn
        return {
            "turn_id": turn.turn_id,
            "conversation_id": turn.conversation.id,
            "tenant": turn.conversation.tenant,
            "user": turn.conversation.user,
            "rating": self.rating,
            "at": self.at,
            "comment": self.comment,
            "correction": self.correction,
            "model": turn.model,
            "prompt": PROMPTS[turn.model],
            "outcome": turn.outcome,
            "cache": turn.cache,
            "experiment": turn.experiment,
        }


@dataclass
class Written:
    """All that was written. ``votes`` in the order of their log, with those that came twice."""

    turns: dict[str, Truth] = field(default_factory=dict)
    votes: list[Vote] = field(default_factory=list)


class Author:
    """Thinks up turns and what is said of them, from dice alone."""

    def __init__(self, dice: random.Random, partitions: int, now: int) -> None:
        self._dice = dice
        self._partitions = partitions
        self._number = 0
        self._recent: deque[Truth] = deque(maxlen=200)
        self._voted: deque[Truth] = deque(maxlen=20)
        self._conversations = [
            Conversation(uuid7(now, number, dice.getrandbits(62)), dice.choice(TENANTS), f"user-{dice.randrange(20)}")
            for number in range(CONVERSATIONS)
        ]

    def turn(self, now: int) -> Truth:
        """Return a turn that has just ended, or some time ago."""
        dice = self._dice
        self._number += 1
        conversation = dice.choice(self._conversations)
        ended_at = now - self._late(dice.randrange(200))
        outcome = dice.choices(OUTCOMES, OUTCOME_WEIGHTS)[0]
        failed = outcome == "failed"
        silent = failed and dice.random() < SILENT_SHARE
        asked_at = ended_at - dice.randint(1000, 4000)
        retrieval = dice.choices(RETRIEVALS, RETRIEVAL_WEIGHTS)[0]
        passages = self._passages() if retrieval in {"found", "weak"} else ()
        partition = conversation.partition(self._partitions)
        turn = Truth(
            turn_id=new_turn_id(asked_at, partition, dice.getrandbits(62)),
            conversation=conversation,
            asked_at=asked_at,
            ended_at=ended_at,
            first_token_ms=0 if silent else dice.randint(50, 900),
            input=f"question {self._number}",
            answer="" if silent else self._answer(passages),
            model=dice.choice(list(PRICES)),
            outcome=outcome,
            error=self._error() if failed else None,
            input_tokens=dice.randint(10, 2000),
            output_tokens=0 if silent else dice.randint(1, 600),
            claims=dice.choices((1, 2, 3), (95, 4, 1))[0],
            experiment=dice.choice(ARMS.get(conversation.tenant, ("",))),
            retrieval=retrieval,
            cache=dice.choices(CACHES, CACHE_WEIGHTS)[0],
            stateless=dice.random() < STATELESS_SHARE,
            passages=() if silent else passages,
            gaps=() if silent or dice.random() > GAPS_SHARE else self._gaps(),
            metadata={"page": "mill", "of": {"number": self._number}} if dice.random() < 0.5 else {},
        )
        self._recent.append(turn)
        return turn

    def vote(self, now: int) -> Vote | None:
        """Return what a user says of a recent turn, now or some time ago; of some turns again and otherwise."""
        dice = self._dice
        if not self._recent or dice.random() > VOTED_SHARE:
            return None
        changed = bool(self._voted) and dice.random() < CHANGED_SHARE
        turn = dice.choice(self._voted if changed else self._recent)
        self._voted.append(turn)
        comment, correction = dice.choice(("", "It is not\nso.")), dice.choice(("", "It is 4."))
        return Vote(turn, now - self._late(0), dice.choice((1, 1, -1)), comment, correction)

    def _late(self, usual: int) -> int:
        dice = self._dice
        return int(dice.uniform(*LATE_SECONDS) * 1000) if dice.random() < LATE_SHARE else usual

    def _passages(self) -> tuple[Passage, ...]:
        dice = self._dice
        return tuple(
            Passage(
                n=n,
                document_id=(document := dice.choice(DOCUMENTS)),
                title=document.title(),
                url=dice.choice(("", f"https://docs.example.org/{n}")),
                text=f"Passage {n} \t of {document}, größer als \\ 日本語. " * dice.randint(1, 5),
                named=dice.random() < 0.5,
            )
            for n in range(1, dice.randint(1, 4) + 1)
        )

    def _answer(self, passages: tuple[Passage, ...]) -> str:
        """Return an answer that names its passages, and one that it was not given."""
        dice = self._dice
        named = [each.n for each in passages if each.named]
        together = dice.random() < 0.3
        marks = [f" [{', '.join(map(str, named))}]"] if named and together else [f" [{n}]" for n in named]
        text = "An answer with a \ttab, a \\ and a naïve 日本語 🙂" * dice.randint(1, 20)
        return text + "".join(marks) + (" [77]" if dice.random() < 0.1 else "")

    def _error(self) -> tuple[str, str]:
        refused = self._dice.random() < REFUSED_SHARE
        return ("Another question is being answered.", "conversation_busy") if refused else ("It broke.", "model_error")

    def _gaps(self) -> tuple[float, ...]:
        dice = self._dice
        return tuple(dice.lognormvariate(3, 1) for _ in range(dice.randint(1, 8)))


class Load:
    """Writes at a rate, and knows what."""

    def __init__(self, bootstrap: str, partitions: int, dice: random.Random, *, prefix: str = "") -> None:
        self.written = Written()
        self.records = 0
        self._partitions = partitions
        self._prefix = prefix
        self._dice = dice
        self._author = Author(dice, partitions, int(time() * 1000))
        self._failed: list[str] = []
        self._again: list[tuple[float, Truth | Vote]] = []
        # It says nothing itself, not even at the end, when Kafka is gone: what is not delivered is in `_failed`.
        options = {"enable.idempotence": True, "linger.ms": 5, "log_level": 0}
        self._producer = Producer({"bootstrap.servers": bootstrap, **options})

    async def run(self, rate: float, least: int, over: asyncio.Event) -> None:
        """Write ``rate`` turns a second until it is over and there are so many; return when Kafka has all."""
        began, turns = monotonic(), 0
        while not over.is_set() or turns < least:
            due = int((monotonic() - began) * rate)
            while turns < due:
                now = int(time() * 1000)
                self._write(self._author.turn(now))
                if vote := self._author.vote(now):
                    self._write(vote)
                turns += 1
            self._write_again(monotonic())
            await asyncio.sleep(PACE_SECONDS)
        self._write_again(float("inf"))
        await asyncio.to_thread(self._producer.flush, 60)
        if self._failed:
            raise RuntimeError(f"Kafka did not take {len(self._failed)} records: {self._failed[0]}")

    def _write(self, each: Truth | Vote) -> None:
        self._send(each)
        if self._dice.random() < TWICE_SHARE:
            self._again.append((monotonic() + self._dice.uniform(*TWICE_SECONDS), each))

    def _write_again(self, now: float) -> None:
        due = [each for at, each in self._again if at <= now]
        self._again = [(at, each) for at, each in self._again if at > now]
        for each in due:
            self._send(each)

    def _send(self, each: Truth | Vote) -> None:
        if isinstance(each, Truth):
            topic, conversation = TURNS, each.conversation
            self.written.turns[each.turn_id] = each
        else:
            topic, conversation = FEEDBACK, each.turn.conversation
            self.written.votes.append(each)
        self._producer.produce(
            self._prefix + topic,
            json.dumps(each.record()).encode(),
            conversation.id.encode(),
            partition=conversation.partition(self._partitions),
            on_delivery=self._delivered,
        )
        self._producer.poll(0)
        self.records += 1

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is not None:
            self._failed.append(str(error))
