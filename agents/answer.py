"""questions -> answer -> tokens, turns"""

import asyncio
from contextlib import suppress
from typing import Any

import msgspec
import structlog

from agents.generate import Answer, asked_at
from agents.ground import citations_in, is_bare, prompt_of
from config import metrics
from domain.errors import LogUnavailable, Rejected
from domain.ids import place_of
from domain.tokens import TurnInLog, text_of
from domain.turns import End, Failure, Start
from streams.app import app
from streams.records import Question, Turn
from streams.turn_lookup import find_question, find_turn
from streams.turn_runner import Event, Job, Work, duplicate_of
from tables import conversations, replays

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 30.0
LOOK_SECONDS = 0.1


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
            if logged.expired and await was_finished(question):
                return
            await not_asked_twice(job)
            app.runner.answers(job)
            await Answer(job, logged).until_ended()
        job.ended.set()
        # A turn that was stopped while it waited has ended before the one that it follows.
        await job.first.wait()
        await close(question, logged)


async def stop_unseen(turn_id: str, partition: int) -> None:
    """Log the end of a turn that is to stop, and whose question is not in work here but waits in Kafka.

    So it ends at once, and nobody has to remember the stop: whoever gets the question finds the turn ended.
    """
    place = place_of(turn_id)
    if place is None or place.partition != partition:
        return
    question = await find_question(app.services.log_reader, app.topics_of, turn_id, place)
    if question is None:
        return
    work = Work(question, partition)
    work.stopping.set()
    async with app.services.token_log.attach(turn_id, partition, question.tokens_from) as logged:
        if not (logged.fold.ended or (logged.expired and await was_finished(question))):
            await Answer(work, logged).until_ended()


async def was_finished(question: Question) -> bool:
    """Tell whether a turn of which the log has deleted tokens was finished.

    Such a question comes again where Kafka has forgotten how far the workers were: it does so when none of them was
    there for `offsets.retention.minutes`.
    """
    place = place_of(question.turn_id)
    if place is None:
        return False
    seconds = app.settings.turn_seconds
    reader, topics = app.services.log_reader, app.topics_of
    return await find_turn(reader, topics, question.turn_id, place, turn_seconds=seconds) is not None


async def not_asked_twice(job: Job) -> None:
    """Refuse a question whose Idempotency-Key has a finished turn."""
    if job.question.replay_key:
        await app.settled()
        if earlier := replays.replayed(job.question):
            job.refusal = duplicate_of(earlier)


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
    work = Work(question, message.partition)
    work.refusal = failure_of(error)
    async with app.services.token_log.attach(question.turn_id, work.partition, question.tokens_from) as logged:
        await Answer(work, logged).until_ended()
        await close(question, logged)


def failure_of(error: Exception) -> Failure:
    """Return what the person is told of an error: what it says, if it was meant for them."""
    if isinstance(error, Rejected):
        return Failure(str(error), error.code)
    return Failure("The answer could not be written. It was set aside for the operator to look at.", "turn_failed")


async def close(question: Question, logged: TurnInLog) -> None:
    """Publish the finished turn, and wait until its conversation has it: the next question needs it there."""
    remembered = conversations.expect(question.turn_id)
    turn = finished(question, logged)
    try:
        while not remembered.is_set():
            await app.settled()
            generation = app.generation
            await app.publish(app.topics_of.turns, question.conversation_id, turn)
            await _back(remembered, generation)
        count(turn)
    finally:
        conversations.forget(question.turn_id)


async def _back(remembered: asyncio.Event, generation: int) -> None:
    """Return when the turn has come back from its topic, or partitions were assigned anew.

    Who owned the partition in between has it then in its conversation and will not read it again: this worker would
    wait in vain, and the conversation's next question with it.
    """
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            while not remembered.is_set() and app.generation == generation:
                with suppress(TimeoutError):
                    await asyncio.wait_for(remembered.wait(), LOOK_SECONDS)
    except TimeoutError as error:
        raise LogUnavailable("the finished turn did not come back from the turns topic") from error


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
    citations = citations_in(logged)
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
        prompt=prompt_of(question, citations),
        stateless=stateless,
        bare=is_bare(question),
        citations=list(citations),
        retrieval=end.retrieval,
        cache=end.cache,
        gaps=end.gaps,
        experiment=question.experiment,
        metadata=question.metadata,
        replay_key=question.replay_key,
        fingerprint=question.fingerprint,
    )
