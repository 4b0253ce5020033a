"""Says whether the promise was kept, from four sides: readers, log, finished turns, and what the API tells.

Shares no code with the product: the records are decoded and folded by the few lines here, and every right answer is
known beforehand, because the model's text is a function of the question.
"""

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import aiohttp
import msgspec
from confluent_kafka import Consumer, Message, TopicPartition

from bench.campaign.clients import Turn
from bench.campaign.cluster import api_key

REFUSED: Final = frozenset({"conversation_busy", "duplicate_request"})
NUMBER: Final = re.compile(r"(\d+):")
SAMPLE: Final = 400
"""Turns that are asked for by GET /v1/turns at the end, besides all that were stopped."""


@dataclass(slots=True)
class Logged:
    """One turn as its log has it, by the rule: the highest epoch claimed so far, and the next number."""

    epoch: int = -1
    next: int = 0
    claims: int = 0
    dropped: int = 0
    after_end: int = 0
    pieces: list[str] = field(default_factory=list)
    outcome: str = ""
    error_code: str = ""
    records: list[tuple[int, int, int, str, str]] = field(default_factory=list)

    def feed(self, offset: int, epoch: int, seq: int, kind: str, text: str) -> None:
        """Take the next record."""
        self.records.append((offset, epoch, seq, kind, text))
        if self.outcome:
            self.dropped += 1
        elif kind == "claim":
            if epoch > self.epoch:
                self.epoch, self.claims, self.next = epoch, self.claims + 1, self.next or 1
            else:
                self.dropped += 1
        elif not self.claims or epoch != self.epoch or seq != self.next:
            self.dropped += 1
        else:
            self.next += 1
            if kind == "token":
                self.pieces.append(text)
            elif kind == "end":
                end = msgspec.json.decode(text)
                self.outcome, self.error_code = end["outcome"], (end.get("error") or {}).get("code", "")

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(self.pieces)


@dataclass(slots=True)
class Tally:
    """The figures. Everything in ``bad`` has to be 0."""

    accepted: int = 0
    unfinished: int = 0
    lost: int = 0
    answered_twice: int = 0
    failed: int = 0
    tokens: int = 0
    tokens_lost: int = 0
    tokens_doubled: int = 0
    tokens_reordered: int = 0
    readers_wrong: int = 0
    tables_wrong: int = 0
    api_wrong: int = 0
    stopped: int = 0
    published_again: int = 0
    refused_repeats: int = 0
    fenced: int = 0
    claims: Counter[int] = field(default_factory=Counter)

    @property
    def bad(self) -> dict[str, int]:
        """What no campaign may have."""
        names = (
            "lost",
            "answered_twice",
            "unfinished",
            "failed",
            "tokens_lost",
            "tokens_doubled",
            "tokens_reordered",
            "readers_wrong",
            "tables_wrong",
            "api_wrong",
        )
        return {name: getattr(self, name) for name in names}


@dataclass(slots=True)
class Finding:
    """Something that is wrong with a turn, or with a conversation."""

    what: str
    turn: Turn | None = None
    log: Logged | None = None


@dataclass(slots=True)
class Verdict:
    """All that was found."""

    tally: Tally
    findings: list[Finding]


async def verify(
    turns: Sequence[Turn], conversations: Mapping[str, int], bootstrap: str, session: aiohttp.ClientSession, url: str
) -> Verdict:
    """Check everything. ``conversations`` has the tenant of each; ``url`` is a worker that is ready."""
    questions = await asyncio.to_thread(read_records, bootstrap, "chat.questions.v1")
    finished = await asyncio.to_thread(read_records, bootstrap, "chat.turns.v1")
    judge = Judge(turns, await asyncio.to_thread(read_log, bootstrap), questions)
    for turn in turns:
        judge.turn(turn)
    judge.finished(finished)
    judge.accepted_once()
    await judge.told(Told(session, url), conversations)
    return Verdict(judge.tally, judge.findings)


class Judge:
    """Compares what is known with what was found, and counts what is wrong."""

    def __init__(
        self, turns: Sequence[Turn], logs: Mapping[str, Logged], questions: Sequence[Mapping[str, Any]]
    ) -> None:
        self._turns = turns
        self._logs = logs
        self._questions = [one for one in questions if self._log(one["turn_id"]).error_code not in REFUSED]
        self.tally = Tally(accepted=len(turns))
        self.findings: list[Finding] = []

    def _log(self, turn_id: str) -> Logged:
        return self._logs.get(turn_id) or Logged()

    def _find(self, name: str, what: str, turn: Turn | None = None, *, by: int = 1) -> None:
        setattr(self.tally, name, getattr(self.tally, name) + by)
        self.findings.append(Finding(f"{name}: {what}", turn, self._logs.get(turn.turn_id) if turn else None))

    # -- readers and log

    def turn(self, turn: Turn) -> None:
        """Check one turn: what the log has of it, and what its reader saw."""
        log, seen = self._log(turn.turn_id), turn.seen
        self.tally.fenced += log.dropped
        self.tally.claims[log.claims] += 1
        if log.error_code in REFUSED:
            self.tally.refused_repeats += 1
            return
        if not log.records:
            self._find("lost", "the log has nothing of it", turn)
        elif not log.outcome:
            self._find("unfinished", f"the log ends after {log.next} pieces", turn)
        elif log.outcome == "failed":
            self._find("failed", f"it failed: {log.error_code}", turn)
        else:
            self._text(turn, log)
        for problem in seen.problems:
            self._find("readers_wrong", problem, turn)
        if log.outcome and (seen.text, seen.outcome) != (log.text, log.outcome):
            self._find("readers_wrong", f"its reader saw {seen.outcome or 'no end'}, {seen.text[-60:]!r}", turn)

    def _text(self, turn: Turn, log: Logged) -> None:
        text, expected = log.text, turn.expected
        self.tally.tokens += len(log.pieces)
        if log.outcome == "stopped":
            self.tally.stopped += 1
            if not turn.stop_asked:
                self._find("tokens_lost", "it was stopped, and nobody asked for that", turn)
            expected = expected[: len(text)]
        if text == expected:
            return
        numbers = [int(number) for number in NUMBER.findall(text)]
        wanted = {int(number) for number in NUMBER.findall(expected)}
        lost, doubled = len(wanted - set(numbers)), len(numbers) - len(set(numbers))
        reordered = 0 if doubled else sum(later < earlier for earlier, later in pairwise(numbers))
        for name, count in (("tokens_lost", lost), ("tokens_doubled", doubled), ("tokens_reordered", reordered)):
            if count:
                self._find(name, f"{count} of its tokens", turn, by=count)
        if not (lost or doubled or reordered):
            self._find("tokens_lost", f"its text is another: …{text[-60:]!r}", turn)

    # -- finished turns

    def finished(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Check that each turn that ended was published, and with one answer."""
        published: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for record in records:
            published[record["turn_id"]].append((record["answer"], record["outcome"]))
        for turn in self._turns:
            log, answers = self._log(turn.turn_id), published[turn.turn_id]
            self.tally.published_again += max(len(answers) - 1, 0)
            if log.outcome and not answers:
                self._find("lost", "its finished turn was never published", turn)
            elif log.outcome and set(answers) != {(log.text, log.outcome)}:
                self._find("answered_twice", "what was published is not what the log has", turn)

    def accepted_once(self) -> None:
        """Check that no question was accepted as two turns; a regenerated one is a question of its own.

        One turn may be in the topic twice, where a producer did not hear that Kafka had it: it is still one turn.
        """
        known = {turn.turn_id: turn for turn in self._turns}
        ids: dict[tuple[str, str], list[str]] = defaultdict(list)
        for question in self._questions:
            ids[question["input"], question.get("beside", "")].append(question["turn_id"])
        for (text, _), recorded in ids.items():
            same = sorted(set(recorded))
            if len(same) > 1:
                turn = next((known[turn_id] for turn_id in same if turn_id in known), None)
                self._find("answered_twice", f"{text} was accepted as {', '.join(same)}", turn)

    # -- what the API tells

    async def told(self, told: "Told", conversations: Mapping[str, int]) -> None:
        """Check what GET tells: of all conversations, of all stopped turns, and of a sample of the others."""
        # In the order of their records, each once: a producer that hears no answer writes a record again.
        asked: dict[str, dict[str, None]] = defaultdict(dict)
        for question in self._questions:
            asked[question["conversation_id"]].setdefault(question["turn_id"])
        step = max(1, len(self._turns) // SAMPLE)
        sample = [turn for number, turn in enumerate(self._turns) if number % step == 0 or turn.stop_asked]
        at_once = asyncio.Semaphore(8)

        async def conversation(conversation_id: str, tenant: int) -> None:
            async with at_once:
                status, whole = await told.get(f"/v1/conversations/{conversation_id}", tenant)
            self._conversation(conversation_id, status, whole, [*asked[conversation_id]])

        async def turn_(turn: Turn) -> None:
            async with at_once:
                status, found = await told.get(f"/v1/turns/{turn.turn_id}", turn.errand.tenant)
            self._turn_told(turn, status, found)

        await asyncio.gather(*(conversation(*each) for each in conversations.items()), *map(turn_, sample))

    def _conversation(self, conversation_id: str, status: int, whole: Any, asked: Sequence[str]) -> None:
        if status != 200:
            self._find("tables_wrong", f"conversation {conversation_id} is answered {status}: {whole}")
            return
        shown = [turn["turn_id"] for turn in whole["turns"]]
        if shown != list(asked):
            self._find("tables_wrong", f"conversation {conversation_id} has {shown}, asked were {asked}")
        for turn in whole["turns"]:
            if turn["answer"] != self._log(turn["turn_id"]).text:
                self._find("tables_wrong", f"conversation {conversation_id} has another answer in {turn['turn_id']}")

    def _turn_told(self, turn: Turn, status: int, found: Any) -> None:
        log = self._log(turn.turn_id)
        if status != 200:
            self._find("api_wrong", f"GET is answered {status}: {found}", turn)
        elif (found["status"], found["answer"], found["claims"]) != (log.outcome, log.text, log.claims):
            told = {name: found[name] for name in ("status", "claims", "answer")}
            self._find("api_wrong", f"GET tells {told}", turn)


@dataclass(frozen=True, slots=True)
class Told:
    """Asks one worker."""

    session: aiohttp.ClientSession
    url: str

    async def get(self, path: str, tenant: int) -> tuple[int, Any]:
        """Return the status and the JSON; where it is 503, after some patience."""
        headers = {"Authorization": f"Bearer {api_key(tenant)}"}
        for _ in range(20):
            try:
                async with self.session.get(self.url + path, headers=headers) as answer:
                    if answer.status != 503:
                        return answer.status, await answer.json()
            except (aiohttp.ClientError, TimeoutError) as error:
                return 0, repr(error)
            await asyncio.sleep(0.5)
        return 503, "for 10 s"


# -- reading Kafka raw


def read_log(bootstrap: str) -> dict[str, Logged]:
    """Return every turn of the tokens topic, folded."""
    logs: dict[str, Logged] = defaultdict(Logged)
    for message in read(bootstrap, "chat.tokens.v1"):
        _, tokens = msgspec.msgpack.decode(message.value() or b"")
        for turn_id, epoch, seq, kind, text in tokens:
            logs[turn_id].feed(message.offset() or 0, epoch, seq, kind, text)
    return dict(logs)


def read_records(bootstrap: str, topic: str) -> list[dict[str, Any]]:
    """Return the records of a JSON topic, each partition's in order."""
    return [msgspec.json.decode(message.value() or b"") for message in read(bootstrap, topic)]


def read(bootstrap: str, topic: str) -> Iterator[Message]:
    """Yield all messages of a topic up to its end of now, partition after partition."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "verifier", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        for number in sorted(partitions):
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)
            consumer.assign([TopicPartition(topic, number, low)])
            at = low
            while at < high:
                message = consumer.poll(30)
                if message is None:
                    raise RuntimeError(f"{topic}/{number} cannot be read beyond offset {at} of {high}")
                if message.error() is None:
                    yield message
                    at = (message.offset() or 0) + 1
    finally:
        consumer.close()
