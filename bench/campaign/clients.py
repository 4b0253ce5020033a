"""Many clients in one process: they ask, read, drop, stop, repeat, come back, and note what they saw.

Each behaves as a careful client behind a load balancer: a request that was not answered is repeated under its
Idempotency-Key, on another worker that is ready; a stream that breaks, or says nothing for three of the server's
comments, is taken up again elsewhere with Last-Event-ID. What they note is judged later, in `verify`.
"""

import asyncio
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from time import monotonic, time
from typing import Any, Final

import aiohttp

from bench.campaign.cluster import TENANTS, api_key
from bench.campaign.schedule import MODEL_FAULTS, Errand, errand
from tests.support.scripted_answer import expected_answer

SLOTS: Final = 80
TURNS_OF_A_CONVERSATION: Final = 20
FIRST_SHARE: Final = 0.2
FULL_RATE_AFTER_SECONDS: Final = 40.0
ASK_SECONDS: Final = 5.0
GIVE_UP_SECONDS: Final = 120.0
SILENT_SECONDS: Final = 3.0
PAUSE_SECONDS: Final = 2.5
FELT_SECONDS: Final = 0.3
"""A wait for the next word counts as silence if it is longer than the model's own by this."""

# What a worker says that has not read a turn's end yet, which the client has seen elsewhere.
NOT_FINISHED: Final = '"turn_not_finished"'
STARTED: Final = b"turn.started"
FINAL: Final = frozenset({"turn.completed", "turn.stopped", "turn.failed", "turn.handed_over"})


class Dropped(Exception):
    """A reader leaves, on purpose."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Silence before or in the middle of an answer, by the monotonic clock; ``seconds`` is without the model's own."""

    since: float
    until: float
    seconds: float


@dataclass(slots=True)
class Seen:
    """What one reader saw of a turn. ``problems``: what no server may do, in words.

    ``last_at``: since when it waits for the next word, 0 as long as that is another turn's doing.
    """

    next_id: int = 0
    pieces: list[str] = field(default_factory=list)
    outcome: str = ""
    error: str = ""
    connections: int = 0
    last_at: float = 0.0
    ended_at: float = 0.0
    gaps: list[Gap] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The answer as it was shown."""
        return "".join(self.pieces)


@dataclass(slots=True)
class Turn:
    """A turn that a server accepted, and all that its client knows of it.

    ``behind``: when it was accepted, another turn of its conversation was open, or may have been.
    """

    errand: Errand
    question: str
    conversation_id: str
    turn_id: str
    asked_at: float
    accepted_at: float
    accepted_wall: float
    affliction: str = ""
    again: bool = False
    behind: bool = False
    stop_asked: bool = False
    seen: Seen = field(default_factory=Seen)

    @property
    def expected(self) -> str:
        """The whole right answer."""
        return "".join(expected_answer(self.question))


class Load:
    """A steady rate of questions. ``urls`` says which workers are ready at the moment."""

    def __init__(
        self, seed: int, session: aiohttp.ClientSession, urls: Callable[[], list[str]], all_urls: list[str]
    ) -> None:
        self._seed = seed
        self._session = session
        self._ready, self._all = urls, all_urls
        self._random = Random(seed)  # noqa: S311 - where a client goes
        self._slots: dict[int, tuple[str, int]] = {}
        self._opening = [asyncio.Lock() for _ in range(SLOTS)]
        self._afflictions: deque[str] = deque()
        self._open: set[aiohttp.ClientResponse] = set()
        self._asking: Counter[str] = Counter()  # by conversation: the clients that ask there, or read their answer
        self._unclear: set[str] = set()  # conversations that may have a turn that no client knows
        self._tasks: set[asyncio.Task[None]] = set()
        self.turns: list[Turn] = []
        self.conversations: dict[str, int] = {}
        self.started = 0
        self.unanswered = 0
        self.repeated = 0
        self.too_early = 0
        self.failures: list[str] = []

    # -- what faults do (`faults.Talk`)

    def afflict(self, kind: str, turns: int) -> None:
        """Let the next turns have a fault of the model."""
        self._afflictions.extend([kind] * turns)

    def drop(self) -> int:
        """Break the connections of all readers; return how many had one."""
        dropped = list(self._open)
        for response in dropped:
            response.close()
        return len(dropped)

    # -- the rate

    async def run(self, rate: float, until: asyncio.Event) -> None:
        """Begin so many errands a second until told to stop; what was begun goes on."""
        began = due = monotonic()
        while not until.is_set():
            task = asyncio.create_task(self._errand(errand(self._seed, self.started, slots=SLOTS, tenants=TENANTS)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self.started += 1
            # Slowly at first: what a new JVM does takes it three times as long.
            due += 1 / (rate * min(1.0, FIRST_SHARE + (monotonic() - began) / FULL_RATE_AFTER_SECONDS))
            await asyncio.sleep(max(0.0, due - monotonic()))

    async def reached(self, turns: int) -> None:
        """Wait until so many turns were accepted."""
        while len(self.turns) < turns:  # noqa: ASYNC110 - nothing is in a hurry
            await asyncio.sleep(0.5)

    async def drained(self, within: float) -> int:
        """Wait until all clients are done; return how many are not."""
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=within)
            for task in left:
                task.cancel()
            return len(left)
        return 0

    @property
    def running(self) -> int:
        """How many clients are at work."""
        return len(self._tasks)

    async def _errand(self, job: Errand) -> None:
        try:
            await self._run(job)
        except (TimeoutError, AssertionError, aiohttp.ClientError, OSError) as error:
            self.failures.append(f"client {job.number}: {error!r}")

    async def _run(self, job: Errand) -> None:
        conversation_id = await self._conversation(job)
        affliction = self._afflictions.popleft() if self._afflictions else ""
        directives = f"tokens={job.tokens} pace={job.pace} {MODEL_FAULTS.get(affliction, '')}".strip()
        question = f"q{job.number} [{directives}]"
        path = f"/v1/conversations/{conversation_id}/turns"
        with self._at_work(conversation_id):
            turn = await self._ask(job, path, {"input": question}, f"ask {job.number}", question, conversation_id)
            if turn is None:
                return
            turn.affliction = affliction
            await self._follow(turn)
        if job.regenerates and turn.seen.outcome == "completed":
            path = f"/v1/turns/{turn.turn_id}/regenerate"
            with self._at_work(conversation_id):
                again = await self._ask(job, path, {}, f"again {job.number}", question, conversation_id)
                if again is not None:
                    again.again = True
                    await self._follow(again)

    # -- asking

    @contextmanager
    def _at_work(self, conversation_id: str) -> Iterator[None]:
        self._asking[conversation_id] += 1
        try:
            yield
        finally:
            self._asking[conversation_id] -= 1

    async def _conversation(self, job: Errand) -> str:
        async with self._opening[job.slot]:
            conversation_id, asked = self._slots.get(job.slot, ("", 0))
            if not conversation_id or asked >= TURNS_OF_A_CONVERSATION:
                body = await self._until_answered("/v1/conversations", {}, job.tenant, f"begin {job.number}")
                conversation_id, asked = body["id"], 0
                self.conversations[conversation_id] = job.tenant
            self._slots[job.slot] = (conversation_id, asked + 1)
            return conversation_id

    async def _ask(
        self, job: Errand, path: str, body: Any, key: str, question: str, conversation_id: str
    ) -> Turn | None:
        asked_at = monotonic()
        if job.keyed:
            answer = await self._until_answered(path, body, job.tenant, key)
        else:
            answer = await self._once(path, body, job.tenant)
            if answer is None:  # nobody knows whether it was accepted: neither a promise nor a loss
                self.unanswered += 1
                self._unclear.add(conversation_id)
                return None
        turn = Turn(job, question, conversation_id, answer["turn_id"], asked_at, monotonic(), time())
        turn.behind = self._asking[conversation_id] > 1 or conversation_id in self._unclear
        self.turns.append(turn)
        if job.repeats:
            self.repeated += 1
            repeated = await self._until_answered(path, body, job.tenant, key)
            if repeated["turn_id"] != turn.turn_id:
                turn.seen.problems.append(f"its repeated request was given the turn {repeated['turn_id']}")
        return turn

    async def _once(self, path: str, body: Any, tenant: int) -> Any:
        """Send a request that may not be repeated once it is under way; None if it was not answered."""
        while True:
            try:
                status, answer = await self._post(path, body, tenant, "")
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)
                continue
            except (aiohttp.ClientError, TimeoutError, OSError):
                return None
            if status < 300:
                return answer
            if NOT_FINISHED in answer:
                self.too_early += 1
                await asyncio.sleep(0.1)
                continue
            if status != 503:
                raise AssertionError(f"POST {path}: {status} {answer}")
            return None

    async def _until_answered(self, path: str, body: Any, tenant: int, key: str) -> Any:
        async with asyncio.timeout(GIVE_UP_SECONDS):
            while True:
                with suppress(aiohttp.ClientError, TimeoutError, OSError):
                    status, answer = await self._post(path, body, tenant, key)
                    if status < 300:
                        return answer
                    if NOT_FINISHED in answer:
                        self.too_early += 1
                    elif status != 503:
                        raise AssertionError(f"POST {path}: {status} {answer}")
                await asyncio.sleep(0.1)

    async def _post(self, path: str, body: Any, tenant: int, key: str) -> tuple[int, Any]:
        headers = _authorized(tenant) | ({"Idempotency-Key": key} if key else {})
        timeout = aiohttp.ClientTimeout(total=ASK_SECONDS, sock_connect=1)
        async with self._session.post(self._pick() + path, json=body, headers=headers, timeout=timeout) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.status < 300 else text

    def _pick(self) -> str:
        return self._random.choice(self._ready() or self._all)

    # -- reading

    async def _follow(self, turn: Turn) -> None:
        """Read a turn to its end, in its client's way."""
        if turn.errand.reading == "late":
            await asyncio.sleep(turn.errand.tokens / turn.errand.pace + self._random.uniform(0, 5))
        drops = list(turn.errand.drop_after)
        stops: list[asyncio.Task[None]] = []
        seen, deadline = turn.seen, monotonic() + GIVE_UP_SECONDS
        seen.last_at = 0.0 if turn.behind else monotonic()
        while not seen.outcome:
            if monotonic() > deadline:
                seen.problems.append(f"no end within {GIVE_UP_SECONDS:.0f} s, after {seen.next_id} events")
                return
            seen.connections += 1
            try:
                async for _ in self._events(turn):
                    if turn.errand.stop_after == seen.next_id - 1 and not turn.again and not stops:
                        turn.stop_asked = True
                        stops.append(asyncio.create_task(self._stop(turn)))
                    if turn.errand.reading == "pauses" and seen.next_id == 5:
                        await asyncio.sleep(PAUSE_SECONDS)
                        raise Dropped
                    if drops and seen.next_id >= drops[0]:
                        drops.pop(0)
                        raise Dropped
            except (aiohttp.ClientError, TimeoutError, OSError):
                await asyncio.sleep(0.05)
            except Dropped:
                await asyncio.sleep(self._random.uniform(0, 0.5))
        await asyncio.gather(*stops)

    async def _stop(self, turn: Turn) -> None:
        await self._until_answered(f"/v1/turns/{turn.turn_id}/stop", {}, turn.errand.tenant, "")

    async def _events(self, turn: Turn) -> AsyncIterator[None]:
        """Read one connection; yields after each event."""
        seen = turn.seen
        headers = _authorized(turn.errand.tenant) | ({"Last-Event-ID": str(seen.next_id - 1)} if seen.next_id else {})
        url = f"{self._pick()}/v1/turns/{turn.turn_id}/events"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=1, sock_read=SILENT_SECONDS)
        async with self._session.get(url, headers=headers, timeout=timeout) as answer:
            if answer.status != 200:
                problem = f"events answered {answer.status}"
                if answer.status != 503 and problem not in seen.problems:
                    seen.problems.append(problem)
                await asyncio.sleep(0.1)
                return
            self._open.add(answer)
            try:
                rest = b""
                async for chunk in answer.content.iter_any():
                    now = monotonic()
                    *events, rest = (rest + chunk).split(b"\n\n")
                    for event in events:
                        if event.startswith(b"id: "):
                            take(turn, event, now)
                            yield
                    if seen.outcome:
                        return
            finally:
                self._open.discard(answer)


def take(turn: Turn, event: bytes, now: float) -> None:
    """Note one event."""
    seen = turn.seen
    number, name, data = (line.partition(b": ")[2] for line in event.split(b"\n", 2))
    if int(number) != seen.next_id:
        seen.problems.append(f"event {int(number)} came after {seen.next_id} events")
    seen.next_id = int(number) + 1
    if name == b"token":
        seen.pieces.append(json.loads(data)["text"])
    elif name.decode() in FINAL:
        seen.outcome = name.decode().removeprefix("turn.")
        seen.ended_at = now
        seen.error = json.dumps(json.loads(data).get("error")) if seen.outcome == "failed" else ""
    if name != STARTED or turn.behind:  # a reader sees nothing of it, but a turn that was behind has its begin there
        _felt(turn, now)


def _felt(turn: Turn, now: float) -> None:
    """Note how long the reader waited for what it sees now."""
    seen = turn.seen
    of_the_model = 1 / turn.errand.pace if len(seen.pieces) > 1 else 0.0  # its first word comes at once
    silent = now - seen.last_at - of_the_model
    if seen.last_at and silent > FELT_SECONDS and turn.errand.reading == "steady":
        seen.gaps.append(Gap(seen.last_at, now, silent))
    seen.last_at = now


def _authorized(tenant: int) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key(tenant)}"}
