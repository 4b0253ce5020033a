"""A question's way beside its answer: its turn is stopped in Kafka, was finished long ago, or has to be set aside."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agents import answer, control
from domain.errors import LogUnavailable, Rejected
from domain.ids import place_of
from streams.records import Turn, encode
from streams.topics import Topics, TopicSpec
from streams.turn_runner import Limits, TurnRunner
from tests.support.answering import TURN, Answering, answering
from tests.support.fakes import FakeKafka, FakeLoggedTurn, FakeLogReader, Record, finished_turn
from tests.support.model_client import until
from tests.support.model_server import ModelServer
from tests.support.runner_fakes import FakeGroup
from tests.support.scripted_answer import expected_answer

QUESTION = "[tokens=10 pace=0]"


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


class Owner:
    """The worker that owns the question's partition. ``kafka``: its other topics; ``closed``: turns that it closed."""

    def __init__(self, turn: Answering, group: FakeGroup) -> None:
        self.turn = turn
        self.group = group
        self.kafka = FakeKafka()
        self.topics = Topics.of(turn.worker.settings)
        self.closed: list[str] = []
        self.runner = TurnRunner(group, Limits(running=3, held=4, held_bytes=10_000))

    def ask(self) -> None:
        """Have the runner be given the question."""
        asked = self.turn.job.question
        self.group.ask(asked.turn_id, asked.conversation_id, messages=asked.messages)

    def keep(self, topic: TopicSpec, record: Any) -> None:
        """Put a record of the turn where Kafka has it."""
        place = place_of(TURN)
        assert place is not None
        records = self.kafka.records.setdefault(topic.name, [])
        records.append(Record(place.partition, place.milliseconds + 900, encode(record)))

    @asynccontextmanager
    async def attach(self, *_: object) -> AsyncIterator[FakeLoggedTurn]:
        yield self.turn.log.turn


@asynccontextmanager
async def owning(
    monkeypatch: pytest.MonkeyPatch, server: ModelServer, question: str = QUESTION
) -> AsyncIterator[Owner]:
    async with answering(monkeypatch, [server.base_url], question) as turn:
        group = FakeGroup()
        owner = Owner(turn, group)
        worker = turn.worker
        worker.topics_of, worker.runner, worker.partition = owner.topics, owner.runner, lambda _: 0
        worker.services.log_reader = FakeLogReader(owner.kafka)
        worker.services.token_log.attach = owner.attach

        async def dead_letter(**_: object) -> None:
            pass

        async def close(question: Any, _: object) -> None:
            owner.closed.append(question.turn_id)

        worker.dead_letter = dead_letter
        monkeypatch.setattr(answer, "app", worker)
        monkeypatch.setattr(control, "app", worker)
        monkeypatch.setattr(answer, "close", close)
        reading = asyncio.create_task(owner.runner.run(group, answer.answer_one, answer.give_up))
        yield owner
        await owner.runner.hand_over()
        group.close()
        await reading


# -- a stop whose question waits in Kafka


async def test_a_turn_that_waits_in_kafka_is_stopped_in_the_log_and_never_answered(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owning(monkeypatch, server) as owner:
        owner.keep(owner.topics.questions, owner.turn.job.question)

        await control.stop(TURN, 0)
        assert (owner.turn.end.outcome, owner.turn.kinds) == ("stopped", ["claim", "end"])
        owner.ask()  # perhaps of the next owner, after any number of deaths

        await until(lambda: owner.group.acked == [0])
        assert (owner.closed, owner.turn.kinds, server.stats.requests) == ([TURN], ["claim", "end"], 0)


async def test_a_turn_that_comes_while_it_is_being_stopped_is_stopped(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "[tokens=500]"
    async with owning(monkeypatch, server, question) as owner:
        owner.keep(owner.topics.questions, owner.turn.job.question)
        owner.turn.log.open.clear()
        stopping = asyncio.create_task(control.stop(TURN, 0))
        await asyncio.sleep(0)
        owner.ask()
        await until(lambda: server.stats.tokens > 3)

        owner.turn.log.open.set()
        await asyncio.wait_for(stopping, 10)

        assert owner.turn.end.outcome == "stopped"
        assert "".join(expected_answer(question)).startswith(owner.turn.text)
        await until(lambda: owner.group.acked == [0])
        await until(lambda: not server.stats.active)
        assert server.stats.cancelled == 1


async def test_a_stop_of_a_turn_that_kafka_does_not_have_writes_nothing(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owning(monkeypatch, server) as owner:
        for turn_id, partition in ((TURN, 0), (TURN, 3), ("no turn", 0)):
            await control.stop(turn_id, partition)

        assert owner.turn.log.records == []


async def test_a_stop_of_a_turn_that_ended_long_ago_writes_nothing(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owning(monkeypatch, server) as owner:
        owner.keep(owner.topics.questions, owner.turn.job.question)
        owner.keep(owner.topics.turns, turn_of(owner))
        owner.turn.log.turn.expired = True

        await control.stop(TURN, 0)

        assert owner.turn.log.records == []


# -- a question that comes again, of which the log has deleted the tokens


def turn_of(owner: Owner) -> Turn:
    return finished_turn(owner.turn.job.question, "told long ago")


async def test_a_question_whose_turn_was_finished_and_whose_tokens_are_deleted_is_not_answered_again(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owning(monkeypatch, server) as owner:
        owner.keep(owner.topics.turns, turn_of(owner))
        owner.turn.log.turn.expired = True

        owner.ask()

        await until(lambda: owner.group.acked == [0])
        assert (owner.turn.log.records, server.stats.requests) == ([], 0)


async def test_one_that_waited_for_so_long_unanswered_is_answered(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owning(monkeypatch, server) as owner:
        owner.turn.log.turn.expired = True

        owner.ask()

        await until(lambda: owner.group.acked == [0])
        assert owner.turn.text == "".join(expected_answer(QUESTION))


# -- a question that is set aside


async def test_a_turn_that_is_set_aside_fails_visibly(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with owning(monkeypatch, server) as owner:
        await answer.give_up(owner.turn.job.event, owner.turn.job.question, Rejected("never"))

        assert owner.turn.end.outcome == "failed"
        assert owner.turn.end.error is not None
        assert owner.turn.end.error.message == "never"
        assert owner.closed == [TURN]


async def test_a_turn_cannot_be_set_aside_while_the_log_has_lost_its_place(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owning(monkeypatch, server) as owner:
        owner.turn.log.turn.cut = True

        with pytest.raises(LogUnavailable):
            async with asyncio.timeout(5):
                await answer.give_up(owner.turn.job.event, owner.turn.job.question, Rejected("never"))

        assert owner.turn.log.records == []
