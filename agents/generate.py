"""question, seed, model -> claims, citations, tokens, end"""

import asyncio
from collections.abc import Awaitable
from time import monotonic
from typing import Any, Final

import msgspec
import structlog

from agents.ground import HEADRACE, Seed, citations_in, has_begun, is_bare, seed
from config import metrics
from domain import reasons
from domain.answer_cache import Source
from domain.backoff import pause
from domain.errors import BadRequest, LogUnavailable, ModelBusy, Rejected, TurnFailed
from domain.generation import LIMITS, Delta, Generation, Usage
from domain.grounding import CitationFilter, without_note
from domain.hearing import Enough, heard
from domain.ids import place_of
from domain.sketches import Gaps
from domain.tokens import Kind, Token, TurnInLog, next_epoch
from domain.turns import End, Failure, Outcome, Start, Timings
from streams.app import app, now_ms
from streams.records import Question
from streams.turn_runner import Work

log = structlog.get_logger(__name__)
new = tuple.__new__  # for every token: a NamedTuple's own is a function of Python's, at twice the price

ZOMBIE_SECONDS: Final = 15.0  # how long to believe that a newer owner exists before taking the turn from it
RUNAWAY: Final = 4  # pieces for each model token allowed, before a server that knows no limit is cut off


class Answer:
    """The answering of one question by this worker: claim, generate from where the log stands, end.

    A piece counts only if the fold of the log says so. So every attempt begins with a claim, and nothing of it is
    written before this worker has read its own claim back, which tells the text so far and the next number. A turn
    of which the log has nothing yet can only begin at the beginning: while its claim is under way, its passages are
    searched and its model is asked.
    """

    def __init__(self, job: Work, logged: TurnInLog) -> None:
        self.job = job
        self.question = job.question
        self.logged = logged
        self.model = ""
        self.seed: Seed | None = None
        self.marks: CitationFilter | None = None  # of an answer that could have passages
        self.claiming: asyncio.Task[bool] | None = None
        self.owned = False
        self.epoch = -1
        self.seq = 0
        self.appended = 0
        self.began = monotonic()
        self.asked_at = asked_at(job.question)
        self.started_ms = now_ms() - self.asked_at
        self.first_token_ms = 0
        self.gaps = Gaps()
        self.write = app.services.token_log.append
        self.finish = "stop"

    async def until_ended(self) -> None:
        """Try until the log has the turn's end, or the attempts or the time are used up; then end it as failed."""
        fruitless = 0
        while not self.logged.fold.ended:
            if self.logged.cut:
                raise LogUnavailable("the log lost the place of this worker's tail")
            self.owned, self.appended = False, 0
            self.claiming = asyncio.create_task(self.claim())
            try:
                fresh = not self.logged.fold.next
                broken = await self.attempt() if fresh or await self.claiming else None
                await self.claiming
            finally:
                self.claiming.cancel()
            if broken is not None:
                fruitless = 1 if self.appended else fruitless + 1
                await self.try_again(broken, fruitless)

    async def claim(self) -> bool:
        """Fence every older writer of the turn; return whether the turn is ours to go on with."""
        fold, stopping = self.logged.fold, self.job.stopping
        waited = monotonic()
        while fold.epoch >> 16 > app.generation and monotonic() - waited < ZOMBIE_SECONDS and not stopping.is_set():
            # A newer owner exists, in another process: a rebalance is about to cancel this task. But a turn that is to
            # stop may be ended by anyone.
            await self.wait(0.05)
        self.epoch = next_epoch(app.generation, fold.epoch)
        start = Start(self.question.conversation_id, self.question.model or HEADRACE)
        await self.put("claim", 0, _json(start))
        self.seq = fold.next
        if self.job.usage is None:  # what workers before this one wrote, of whose usage nothing else is known
            self.job.usage = Usage(0, self.written())
        self.owned = fold.epoch == self.epoch and not fold.ended
        return self.owned

    async def attempt(self) -> ModelBusy | None:
        """Go on with the answer to its end; return why the model broke it off, if it did."""
        try:
            if self.job.refusal is not None:
                await self.end("failed", error=self.job.refusal)
            elif self.logged.fold.claims > app.settings.turn_claims:
                raise TurnFailed(reasons.taken_up_too_often(self.logged.fold.claims))
            elif self.job.stopping.is_set() or await self.speak():
                await self.end("stopped" if self.job.stopping.is_set() else "completed")
        except (BadRequest, TurnFailed) as error:
            log.warning("turn failed", turn_id=self.question.turn_id, reason=str(error))
            await self.end("failed", error=Failure(reasons.refused(str(error)), error.code))
        except LogUnavailable as error:
            if not self.owned:
                raise
            # What the log has of it counts, and the rest is written again.
            log.warning("tokens were not logged", turn_id=self.question.turn_id, reason=str(error))
        except ModelBusy as error:
            return error
        return None

    async def try_again(self, broken: ModelBusy, fruitless: int) -> None:
        """Wait before the next attempt, or end the turn as failed after the last."""
        log.warning("model broke off", turn_id=self.question.turn_id, attempt=fruitless, reason=str(broken))
        seconds = pause(fruitless)
        if broken.retry_after is not None:
            # 0: another server is there. Else all who were told to wait would come back in the same moment.
            seconds = broken.retry_after and broken.retry_after + pause(1)
        if fruitless >= app.settings.model_attempts:
            begun = bool(self.logged.text)
            await self.end("failed", error=Failure(reasons.no_answer(fruitless, begun=begun), broken.code))
        elif seconds >= self.time_left():
            why = reasons.not_asked() if broken.retry_after else reasons.no_time(app.settings.turn_seconds)
            await self.end("failed", error=Failure(why, TurnFailed.code))
        else:
            await self.wait(seconds)

    async def seeded(self) -> Seed:
        """Return what the answer grows from: the same for every attempt, unless another worker was first.

        That may turn out while this one searches.
        """
        while self.seed is None or (has_begun(self.logged) and self.seed.citations != citations_in(self.logged)):
            self.model = await model_for(self.question)
            self.seed = await seed(self.question, self.logged, self.model)
        return self.seed

    async def speak(self) -> bool:
        """Write what the model says to the log; return whether it came to its end or was told to stop."""
        generating = asyncio.create_task(self.generate())
        stopping = asyncio.create_task(self.job.stopping.wait())
        try:
            _ = await asyncio.wait(
                (generating, stopping), timeout=self.time_left(), return_when=asyncio.FIRST_COMPLETED
            )
            if generating.done():
                return generating.result()
            if stopping.done():
                return True
            raise TurnFailed(reasons.no_time(app.settings.turn_seconds))
        finally:
            stopping.cancel()
            if generating.cancel():
                _ = await asyncio.wait((generating,))

    async def generate(self) -> bool:
        """Append the model's tokens from where the log stands; False if the turn is another worker's."""
        grown = await self.seeded()
        seen, so_far = self.logged.fold.next, without_note(self.logged.text)
        request = Generation(self.model, grown.messages, self.options(), so_far, self.written())
        if self.has_all_of(request):
            return True
        if not await self.opened(grown, seen):
            return False
        if grown.is_whole:
            return True
        if grown.has_marks:
            self.marks = CitationFilter((each.n for each in grown.citations), so_far)
        return await self.follow(request, seen)

    async def left_alone(self) -> None:
        """Wait until a model server may be asked. Meanwhile nobody is asked, so that it counts as no attempt.

        Raises `TurnFailed` where that takes longer than the turn has.
        """
        while seconds := app.services.model.wait():
            seconds += pause(1)  # else all who wait would come back in the same moment
            if seconds >= self.time_left():
                raise TurnFailed(reasons.not_asked())
            await asyncio.sleep(seconds)

    async def follow(self, request: Generation, seen: int) -> bool:
        """Append what a model says; False if the turn is another worker's, or its log not as it was ``seen``."""
        await self.left_alone()
        hearing = Hearing(self, request, seen)
        try:
            await app.services.model.stream(request, hearing)
            if self.marks is not None:
                self.say(self.marks.close())
        except Enough:
            return hearing.is_ours
        finally:
            self.count(request, hearing.reported, heard=hearing.began)
        return self.owned or await self.confirmed(seen)

    async def opened(self, grown: Seed, seen: int) -> bool:
        """Append what comes before the model's words, if that is not there; False if the turn is another worker's."""
        if has_begun(self.logged) or not (grown.citations or grown.pieces):
            return True
        if not await self.confirmed(seen):
            return False
        if grown.citations:
            self.append("citations", _json(grown.citations))
        for piece in grown.pieces:
            self.append("token", piece)
        return True

    def written(self) -> int:
        """Return how many pieces of the answer itself the log has."""
        return sum(piece.kind in {"token", "tool"} for piece in self.logged.pieces)

    def has_all_of(self, request: Generation) -> bool:
        """Tell whether the log has all that the answer may have, so that only its end is missing."""
        if any(piece.kind == "tool" for piece in self.logged.pieces):
            self.finish = "tool_calls"
        elif request.limit is not None and request.written >= request.limit:
            self.finish = "length"
        else:
            return False
        return True

    async def confirmed(self, seen: int) -> bool:
        """Wait for the claim of a fresh turn; return whether the turn is ours, and the log has what we saw of it."""
        assert self.claiming is not None
        since = monotonic()
        owned = await asyncio.shield(self.claiming)
        metrics.claim_wait.observe(monotonic() - since)
        return owned and self.logged.fold.next == max(seen, 1)

    def say(self, text: str) -> None:
        """Append text, if there is any."""
        if text:
            self.append("token", text)

    def append(self, kind: Kind, text: str) -> None:
        """Put a piece into the next frame."""
        if not self.first_token_ms and kind != "citations":
            self.first_token_ms = now_ms() - self.asked_at
        self.write(self.job.partition, new(Token, (self.question.turn_id, self.epoch, self.seq, kind, text)))
        self.seq += 1
        self.appended += 1

    def count(self, request: Generation, reported: Usage | None, *, heard: bool) -> None:
        """Add an attempt to the turn's usage: what the server reported, else about what it must have been."""
        read, written = (reported.input_tokens, reported.output_tokens) if reported else (0, 0)
        if heard and not read:
            read = app.services.model.counts.about(request)
        self.job.usage = (self.job.usage or Usage()) + Usage(read, written or self.appended)

    async def end(self, outcome: Outcome, *, error: Failure | None = None) -> None:
        """Log the turn's end, if the turn is ours. Whether it counts, the fold tells."""
        if not self.owned and (self.claiming is None or not await asyncio.shield(self.claiming)):
            return
        timings = Timings(self.started_ms, self.first_token_ms, now_ms() - self.asked_at)
        retrieval, cache = (self.seed.retrieval, self.seed.cache) if self.seed else (None, None)
        usage, gaps = self.job.usage or Usage(), self.gaps.bins
        end = End(outcome, self.model, self.finish, usage, timings, error, retrieval, cache, gaps)
        await self.put("end", self.seq, _json(end))
        self.keep(end)

    def keep(self, end: End) -> None:
        """Have the answer given to others, if it is one that may be."""
        grown, question = self.seed, self.question
        if grown is None or grown.place is None or not self.logged.fold.ended:
            return
        app.services.answer_cache.keep(
            grown.place,
            grown.retrieved,
            Source(question.tenant, question.user, question.conversation_id, question.turn_id),
            self.logged.text,
            outcome=end.outcome,
            finish=end.finish,
            usage=end.usage,
        )

    async def put(self, kind: Kind, seq: int, text: str) -> None:
        """Write a record by itself, and wait until this worker knows the log up to it."""
        token_log, partition = app.services.token_log, self.job.partition
        offset = await token_log.put(partition, Token(self.question.turn_id, self.epoch, seq, kind, text))
        await token_log.until(partition, offset)

    def options(self) -> dict[str, Any]:
        """Return the client's options, with a bound on the answer's length."""
        options, limit = dict(self.question.options), app.settings.answer_tokens
        name = next((name for name in LIMITS if name in options), LIMITS[-1])
        options[name] = min(options.get(name) or limit, limit)
        return options

    def time_left(self) -> float:
        """Return the seconds that the turn may still take."""
        return self.began + app.settings.turn_seconds - monotonic()

    async def wait(self, seconds: float) -> None:
        """Wait, but not when told to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self.job.stopping.wait()
        except TimeoutError:
            pass


class Hearing:
    """Appends to an answer what its model says. Raises `Enough` where the turn is another worker's, or too long.

    ``reported``: the usage that the model reports; ``began``: whether it said anything that could count.
    """

    __slots__ = (
        "_answer",
        "_came",
        "_fold",
        "_fresh",
        "_most",
        "_partition",
        "_room",
        "_seen",
        "began",
        "is_ours",
        "reported",
    )

    def __init__(self, answer: Answer, request: Generation, seen: int) -> None:
        self.is_ours = True
        self.began = False
        self.reported: Usage | None = None
        self._answer = answer
        self._fold = answer.logged.fold
        self._partition = answer.job.partition
        self._seen = seen
        self._fresh = not answer.owned
        self._most = RUNAWAY * (request.limit or app.settings.answer_tokens)
        self._room = app.services.token_log.room
        self._came = answer.gaps.token

    def __call__(self, deltas: list[Delta]) -> Awaitable[object] | None:
        """Append the next steps; return what to wait for before there are more."""
        if self._fresh:
            return self._confirm(deltas)
        self.began = True
        answer = self._answer
        for text, tools, finish, usage in deltas:
            if text:
                self._came(monotonic())
                if answer.marks is None:
                    answer.append("token", text)
                else:
                    answer.say(answer.marks.push(text))
            if tools:
                answer.append("tool", tools)
            if finish:
                answer.finish = finish
            if usage is not None:
                self.reported = usage
        if self._fold.epoch != answer.epoch:
            self.is_ours = False
            raise Enough
        if answer.appended > self._most:
            answer.finish = "length"
            raise Enough
        return self._room(self._partition)

    async def _confirm(self, deltas: list[Delta]) -> None:
        """Append the first steps once the claim is known to be ours."""
        self.is_ours = await self._answer.confirmed(self._seen)
        if not self.is_ours:
            raise Enough
        self._fresh = False
        await heard(self, deltas)


async def model_for(question: Question) -> str:
    """Return the model server's name of the model that is to answer."""
    if is_bare(question):
        return question.model
    return app.settings.model or next(iter(await app.services.model.models()), "default")


def asked_at(question: Question) -> int:
    """Return when a question was accepted, in Unix ms: its turn id says it."""
    place = place_of(question.turn_id)
    if place is None:
        raise Rejected(f"{question.turn_id!r} is not a turn id")
    return place.milliseconds


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
