"""questions -> answer -> tokens, turns"""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from time import monotonic
from typing import Any

import msgspec
import structlog

from config import metrics
from domain import prompt
from domain.conversation import parent_of_next, path_to
from domain.errors import BadRequest, LogUnavailable, ModelBusy, Rejected
from domain.generation import Delta, Generation, Usage
from domain.ids import place_of
from domain.resume import Overlap
from domain.tokens import Kind, Token, TurnInLog, next_epoch, text_of
from domain.turns import End, Failure, Outcome, Start, Timings
from streams.app import app, now_ms
from streams.records import Question, Turn
from streams.turn_runner import Event, Job
from tables import conversations

log = structlog.get_logger(__name__)

INSTRUCTIONS = prompt.load_prompt()
ZOMBIE_SECONDS = 15.0  # how long to believe that a newer owner exists before taking the turn from it
CLOSE_SECONDS = 30.0
LONGEST_PAUSE = 5.0  # between two attempts, unless the model server asks for more
HEADRACE = "headrace"  # the model name that means: the default model, with our instructions


@app.agent(app.raw_topic(app.topics_of.questions))
async def answer(stream: Any) -> None:
    """Answer every question, many at once, each conversation's in order."""
    await app.runner.run(stream.noack(), answer_one, give_up)


async def answer_one(job: Job) -> None:
    """Bring one question to its logged end, from wherever its log stands, and close its turn."""
    question = job.question
    if app.partition(question.conversation_id) != job.partition:
        raise Rejected(f"the question's conversation does not belong to partition {job.partition}")
    async with app.services.token_log.attach(question.turn_id, job.partition, question.tokens_from) as logged:
        if not logged.fold.ended:
            await Answer(job, logged).until_ended()
        await close(question, logged)


async def give_up(event: Event, question: Question | None, error: Exception) -> None:
    """Set a question aside, and end its turn visibly if there is one."""
    message = event.message
    await app.dead_letter(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        error=error,
        key=event.key,
        value=event.value,
    )
    if question is None or app.partition(question.conversation_id) != message.partition:
        return
    job = Job(event, question)
    async with app.services.token_log.attach(question.turn_id, job.partition, question.tokens_from) as logged:
        failure = failure_of(error)
        answering = Answer(job, logged)
        while not logged.fold.ended:
            if await answering.claim():
                await answering.end("failed", error=failure)
        await close(question, logged)


def failure_of(error: Exception) -> Failure:
    """Return what the person is told of an error: what it says, if it was meant for them."""
    if isinstance(error, Rejected):
        return Failure(str(error), error.code)
    return Failure("The answer could not be written. It was set aside for the operator to look at.", "turn_failed")


class Answer:
    """The answering of one question by this worker: claim, generate from where the log stands, end.

    A piece counts only if the fold of the log says so. So every attempt begins with a claim, waits until this
    worker has read its own claim back, and goes on from the text and the number that the fold then has.
    """

    def __init__(self, job: Job, logged: TurnInLog) -> None:
        self.job = job
        self.question = job.question
        self.logged = logged
        self.model = ""
        self.read: list[Mapping[str, Any]] | None = None
        self.epoch = -1
        self.seq = 0
        self.began = monotonic()
        self.asked_at = asked_at(job.question)
        self.started_ms = now_ms() - self.asked_at
        self.first_token_ms = 0
        self.finish = "stop"
        self.usage = Usage()

    async def until_ended(self) -> None:
        """Try until the log has the turn's end, or the attempts or the time are used up; then end it as failed."""
        fruitless = 0
        while not self.logged.fold.ended:
            if self.logged.cut:
                raise LogUnavailable("the log lost the place of this worker's tail")
            if await self.claim():
                base = self.seq
                broken = await self.attempt()
                if broken is not None:
                    fruitless = 1 if self.seq > base else fruitless + 1
                    await self.try_again(broken, fruitless)

    async def attempt(self) -> ModelBusy | None:
        """Go on with the answer to its end; return why the model broke it off, if it did."""
        try:
            if self.job.stopping.is_set() or await self.speak(await self.messages()):
                await self.end("stopped" if self.job.stopping.is_set() else "completed")
        except BadRequest as error:
            await self.end("failed", error=Failure(str(error), error.code))
        except LogUnavailable as error:  # what the log has of it counts, and the rest is written again
            log.warning("tokens were not logged", turn_id=self.question.turn_id, reason=str(error))
        except ModelBusy as error:
            return error
        return None

    async def try_again(self, broken: ModelBusy, fruitless: int) -> None:
        """Wait before the next attempt, or end the turn as failed after the last."""
        log.warning("model broke off", turn_id=self.question.turn_id, attempt=fruitless, reason=str(broken))
        if fruitless >= app.settings.model_attempts or self.overdue():
            await self.end("failed", error=Failure(f"The model server did not answer: {broken}", broken.code))
        else:
            await self.pause(broken.retry_after or min(0.2 * 2**fruitless, LONGEST_PAUSE))

    async def claim(self) -> bool:
        """Fence every older writer of the turn; return whether the turn is ours to go on with."""
        fold = self.logged.fold
        waited = monotonic()
        while fold.epoch >> 16 > app.generation and monotonic() - waited < ZOMBIE_SECONDS:  # noqa: ASYNC110 - see below
            # A newer owner exists, in another process: a rebalance is about to cancel this task.
            await asyncio.sleep(0.05)
        self.epoch = next_epoch(app.generation, fold.epoch)
        start = Start(self.question.conversation_id, self.question.model or HEADRACE)
        await self.put("claim", 0, _json(start))
        self.seq = fold.next
        return fold.epoch == self.epoch and not fold.ended

    async def messages(self) -> list[Mapping[str, Any]]:
        """Return what the model is to read; the same for every attempt."""
        if self.read is None:
            self.model = await model_for(self.question)
            await app.settled()
            self.read = messages_for(self.question)
        return self.read

    async def speak(self, messages: list[Mapping[str, Any]]) -> bool:
        """Write what the model says to the log; return whether it came to its end or was told to stop."""
        generating = asyncio.create_task(self.generate(messages))
        stopping = asyncio.create_task(self.job.stopping.wait())
        try:
            await asyncio.wait((generating, stopping), return_when=asyncio.FIRST_COMPLETED)
            return generating.result() if generating.done() else True
        finally:
            stopping.cancel()
            if generating.cancel():
                await asyncio.wait((generating,))

    async def generate(self, messages: list[Mapping[str, Any]]) -> bool:
        """Append the model's tokens from where the log stands; False if another worker took the turn over."""
        token_log, fold, partition = app.services.token_log, self.logged.fold, self.job.partition
        so_far = self.logged.text
        overlap = Overlap(so_far) if so_far and app.settings.model_resume == "auto" else None
        request = Generation(self.model, prompt.continued(messages, so_far), self.options())
        async with aclosing(app.services.model.stream(request)) as stream:
            async for deltas in stream:
                for delta in deltas:
                    self.take(delta, overlap)
                if fold.epoch != self.epoch:
                    return False
                await token_log.room(partition)
                if self.overdue():
                    raise ModelBusy(f"no end after {app.settings.turn_seconds:.0f} s")
        if overlap is not None:
            self.append("token", overlap.close())
        return True

    def take(self, delta: Delta, overlap: Overlap | None) -> None:
        """Append one step of the model's stream."""
        if delta.text:
            self.append("token", overlap.push(delta.text) if overlap is not None else delta.text)
        if delta.tools:
            self.append("tool", delta.tools)
        if delta.finish:
            self.finish = delta.finish
        if delta.usage:
            self.usage = delta.usage

    def append(self, kind: Kind, text: str) -> None:
        """Put a piece into the next frame."""
        if text:
            if not self.first_token_ms:
                self.first_token_ms = now_ms() - self.asked_at
            app.services.token_log.append(
                self.job.partition, Token(self.question.turn_id, self.epoch, self.seq, kind, text)
            )
            self.seq += 1

    async def end(self, outcome: Outcome, *, error: Failure | None = None) -> None:
        """Log the turn's end. Whether it counts, the fold tells."""
        timings = Timings(self.started_ms, self.first_token_ms, now_ms() - self.asked_at)
        usage = self.usage if self.usage.output_tokens else Usage(self.usage.input_tokens, max(self.seq - 1, 0))
        await self.put("end", self.seq, _json(End(outcome, self.model, self.finish, usage, timings, error)))

    async def put(self, kind: Kind, seq: int, text: str) -> None:
        """Write a record by itself, and wait until this worker has read it back."""
        token_log, partition = app.services.token_log, self.job.partition
        offset = await token_log.put(partition, Token(self.question.turn_id, self.epoch, seq, kind, text))
        await token_log.until(partition, offset)

    def options(self) -> dict[str, Any]:
        """Return the client's options, with a bound on the answer's length."""
        options, limit = dict(self.question.options), app.settings.answer_tokens
        # OpenAI's newer models know only the one name, other servers only the older: the client knows which.
        name = "max_completion_tokens" if "max_completion_tokens" in options else "max_tokens"
        options[name] = min(options.get(name) or limit, limit)
        return options

    def overdue(self) -> bool:
        """Return whether the turn has had its time."""
        return monotonic() - self.began > app.settings.turn_seconds

    async def pause(self, seconds: float) -> None:
        """Wait, but not when told to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self.job.stopping.wait()
        except TimeoutError:
            pass


def messages_for(question: Question) -> list[Mapping[str, Any]]:
    """Return the messages for a question, after its conversation's turns or those that its client sent."""
    if question.messages:
        return prompt.for_client(INSTRUCTIONS, question.messages, bare=question.model not in {"", HEADRACE})
    turns = conversations.context(question)
    path = path_to(turns, parent_of_next(turns, question.beside))
    return prompt.for_conversation(INSTRUCTIONS, path, question.input, budget=app.settings.context_tokens)


async def close(question: Question, logged: TurnInLog) -> None:
    """Publish the finished turn, and wait until its conversation has it: the next question needs it there."""
    remembered = conversations.expect(question.turn_id)
    try:
        await app.settled()
        turn = finished(question, logged)
        await app.publish(app.topics_of.turns, question.conversation_id, turn)
        async with asyncio.timeout(CLOSE_SECONDS):
            await remembered.wait()
        count(turn)
    except TimeoutError as error:
        raise LogUnavailable("the finished turn did not come back from the turns topic") from error
    finally:
        conversations.forget(question.turn_id)


def count(turn: Turn) -> None:
    """Put a finished turn into the metrics."""
    metrics.turns_finished.labels(turn.outcome).inc()
    metrics.turns_resumed.inc(turn.claims - 1)
    metrics.turn_duration.observe(turn.timings.total_ms / 1000)
    if turn.timings.first_token_ms:
        metrics.time_to_first_token.observe(turn.timings.first_token_ms / 1000)


def finished(question: Question, logged: TurnInLog) -> Turn:
    """Return the turn's record from what the log says; after a crash as before it."""
    start = msgspec.json.decode(logged.pieces[0].text, type=Start)
    end = msgspec.json.decode(logged.pieces[-1].text, type=End)
    stateless = bool(question.messages)
    asked = asked_at(question)
    return Turn(
        turn_id=question.turn_id,
        conversation_id=question.conversation_id,
        tenant=question.tenant,
        user=question.user,
        input=question.input,
        answer=text_of(logged.pieces),
        model=end.model or start.model,
        outcome=end.outcome,
        finish=end.finish,
        usage=end.usage,
        timings=end.timings,
        claims=logged.fold.claims,
        error=end.error,
        asked_at=asked,
        ended_at=asked + end.timings.total_ms,
        parent="" if stateless else conversations.parent_of(question),
        prompt=INSTRUCTIONS.name,
        stateless=stateless,
        metadata=question.metadata,
    )


async def model_for(question: Question) -> str:
    """Return the model server's name of the model that is to answer."""
    if question.model not in {"", HEADRACE}:
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
