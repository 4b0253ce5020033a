"""The turn runner: in order within a conversation, side by side across them, and through rebalances."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
import pytest_asyncio

from domain.errors import LogUnavailable, NotOwner, Rejected
from domain.turns import Failure
from streams import turn_runner
from streams.patience import MAX_ATTEMPTS
from streams.records import Question
from streams.turn_runner import Event, Job, Limits, TurnRunner
from tests.support.runner_fakes import FakeGroup


class Answers:
    """A handler whose answers end when the test says so."""

    def __init__(self) -> None:
        self.runner: TurnRunner
        self.begun: list[str] = []
        self.logged: list[str] = []
        self.refused: list[Failure] = []
        self.had_ended: set[str] = set()
        self.ended: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.log = asyncio.Event()  # the token log, which takes an end while this is set
        self.log.set()
        self.fail: dict[str, list[Exception]] = {}
        self.set_aside: list[tuple[int, str]] = []
        self.refuse_aside = 0

    async def __call__(self, job: Job) -> None:
        turn_id = job.question.turn_id
        self.begun.append(turn_id)
        if self.fail.get(turn_id):
            raise self.fail[turn_id].pop(0)
        if turn_id in self.had_ended:
            job.ended.set()
            return
        self.runner.answers(job)
        if job.refusal is not None:
            self.refused.append(job.refusal)
        if job.refusal is None and not job.stopping.is_set():
            gate = asyncio.create_task(self.gates.setdefault(turn_id, asyncio.Event()).wait())
            stopped = asyncio.create_task(job.stopping.wait())
            _, pending = await asyncio.wait((gate, stopped), return_when=asyncio.FIRST_COMPLETED)
            for each in pending:
                each.cancel()
        await self.log.wait()
        self.logged.append(turn_id)
        job.ended.set()
        await job.first.wait()
        self.ended.append(turn_id)

    async def give_up(self, event: Event, question: Question | None, error: Exception) -> None:
        if self.refuse_aside:
            self.refuse_aside -= 1
            raise LogUnavailable("not now")
        self.set_aside.append((event.message.offset, str(error)))

    def end(self, *turn_ids: str) -> None:
        for turn_id in turn_ids:
            self.gates.setdefault(turn_id, asyncio.Event()).set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
def group() -> FakeGroup:
    return FakeGroup()


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest_asyncio.fixture
async def runner(group: FakeGroup, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TurnRunner]:
    monkeypatch.setattr(turn_runner, "pause", lambda _: 0)
    monkeypatch.setattr(turn_runner, "LOOK_SECONDS", 0)
    runner = TurnRunner(group, Limits(running=3, held=4, held_bytes=10_000))
    answers.runner = runner
    task = asyncio.create_task(runner.run(group, answers, answers.give_up))
    yield runner
    group.close()
    await runner.hand_over()
    task.cancel()


async def test_questions_of_one_conversation_are_answered_one_after_the_other(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    group.ask("a1", "a")
    group.ask("a2", "a")
    await until(lambda: answers.begun == ["a1"])
    assert [question.turn_id for question in runner.in_work("a")] == ["a1", "a2"]

    answers.end("a2", "a1")
    await until(lambda: answers.ended == ["a1", "a2"])
    await until(lambda: group.acked == [0, 1])


async def test_conversations_do_not_wait_for_each_other(group: FakeGroup, answers: Answers, runner: TurnRunner) -> None:
    group.ask("a1", "a")
    group.ask("b1", "b")
    answers.end("b1")

    await until(lambda: group.acked == [1])
    assert answers.ended == ["b1"]


async def test_at_the_limit_questions_wait_for_a_place(group: FakeGroup, answers: Answers, runner: TurnRunner) -> None:
    for name in "abcde":
        group.ask(name, name)
    await until(lambda: len(runner) == 5 and len(answers.begun) == 3)
    assert answers.begun == ["a", "b", "c"]
    assert (runner.running, runner.held) == (3, 2)

    answers.end("a")
    await until(lambda: answers.begun == ["a", "b", "c", "d"])
    assert runner.running == 3


async def test_a_question_does_not_wait_for_the_thousand_of_another_tenant(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    for number in range(6):
        group.ask(f"a{number}", f"a{number}", tenant="many")
    group.ask("b", "b", tenant="one")
    await until(lambda: len(runner) == 7)

    answers.end("a0")

    await until(lambda: len(answers.begun) == 4)
    assert answers.begun[-1] == "b"


async def test_beyond_what_may_be_held_questions_wait_in_kafka_until_half_of_it_is_free(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    for name in "abcdef":
        group.ask(name, name)
    was_held_back = [group.held_back]

    group.ask("g", "g")
    await until(lambda: runner.held == 4)
    was_held_back.append(group.held_back)
    answers.end("a")
    await until(lambda: runner.held == 3)
    was_held_back.append(group.held_back)
    answers.end("b")
    await until(lambda: runner.held == 2)
    was_held_back.append(group.held_back)

    assert was_held_back == [False, True, True, False]


async def test_questions_are_held_by_their_size_too(group: FakeGroup, answers: Answers, runner: TurnRunner) -> None:
    group.ask("a", "a", metadata={"long": "x" * 10_000})
    await until(lambda: group.held_back)

    answers.end("a")
    await until(lambda: runner.held == 0)
    await until(lambda: group.held_back is False)


async def test_an_answer_goes_on_through_a_rebalance_and_is_acknowledged_in_the_new_generation(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    group.ask("a1", "a")
    await until(lambda: answers.begun == ["a1"])

    group.rebalance({0})
    await runner.keep({0})
    answers.end("a1")

    await until(lambda: group.acked == [0])
    assert answers.begun == ["a1"]


async def test_an_answer_that_ends_during_a_rebalance_is_acknowledged_when_it_is_delivered_again(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    group.ask("a1", "a")
    await until(lambda: answers.begun == ["a1"])
    group.rebalancing = True
    answers.end("a1")
    await until(lambda: answers.ended == ["a1"])
    assert group.acked == []

    group.rebalancing = False
    group.rebalance({0})

    await until(lambda: group.acked == [0])
    assert answers.begun == ["a1"]


async def test_a_turn_that_a_rebalance_holds_up_goes_on_as_soon_as_that_is_over(
    group: FakeGroup, answers: Answers, runner: TurnRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_runner, "pause", lambda _: 60.0)
    group.rebalancing = True
    answers.fail["a1"] = [NotOwner("partitions are being shared out")]
    group.ask("a1", "a")
    await until(lambda: answers.begun == ["a1"])
    await asyncio.sleep(0.1)
    assert answers.begun == ["a1"]

    group.rebalancing = False

    await until(lambda: answers.begun == ["a1", "a1"])


async def test_answers_of_a_lost_partition_are_cancelled_and_not_acknowledged(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    group.ask("a1", "a", partition=0)
    group.ask("b1", "b", partition=1)
    await until(lambda: len(answers.begun) == 2)

    group.rebalance({1})
    await runner.keep({1})
    answers.end("a1", "b1")

    await until(lambda: group.acked == [1])
    assert answers.ended == ["b1"]
    assert runner.in_work("a") == []


async def test_an_answer_that_ends_although_it_was_cancelled_is_left_to_whoever_has_it_now(
    group: FakeGroup, runner: TurnRunner
) -> None:
    async def deaf(_: Job) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    runner.handler = deaf
    group.ask("a1", "a", partition=0)
    await until(lambda: runner.running == 1)
    (job,) = runner.jobs_of("a")
    assert job.task is not None
    await asyncio.sleep(0)

    await runner.keep({1})

    assert job.task.done()
    assert job.task.exception() is None
    assert not job.done
    assert group.acked == []
    assert runner.running == 0


async def test_a_partition_that_comes_back_is_taken_up_again(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    group.ask("a1", "a")
    await until(lambda: answers.begun == ["a1"])
    group.rebalance(set())
    await runner.keep(set())

    group.rebalance({0})
    await runner.keep({0})
    answers.end("a1")

    await until(lambda: group.acked == [0])
    assert answers.begun == ["a1", "a1"]


async def test_a_full_runner_still_adopts_what_a_rebalance_delivers_again(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    for name in "abcd":
        group.ask(name, name)
    await until(lambda: len(answers.begun) == 3)

    group.rebalance({0})
    answers.end(*"abcd")

    await until(lambda: sorted(group.acked) == [0, 1, 2, 3])
    assert sorted(answers.ended) == list("abcd")


async def test_a_passing_failure_is_tried_again_however_often(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    answers.fail["a1"] = [LogUnavailable("busy") for _ in range(3 * MAX_ATTEMPTS)]
    answers.end("a1")

    group.ask("a1", "a")

    await until(lambda: group.acked == [0])
    assert answers.ended == ["a1"]
    assert answers.set_aside == []


async def test_an_unforeseen_error_is_set_aside_after_some_attempts(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    answers.fail["a1"] = [ZeroDivisionError("oh") for _ in range(MAX_ATTEMPTS)]

    group.ask("a1", "a")

    await until(lambda: group.acked == [0])
    assert answers.begun == ["a1"] * MAX_ATTEMPTS
    assert answers.set_aside == [(0, "oh")]


async def test_what_is_rejected_is_set_aside_at_once_and_the_stream_goes_on(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    answers.fail["a1"] = [Rejected("never")]
    group.ask("a1", "a")
    group.deliver(b"not json")
    group.ask("a2", "a")
    answers.end("a2")

    await until(lambda: sorted(group.acked) == [0, 1, 2])
    assert [offset for offset, _ in sorted(answers.set_aside)] == [0, 1]
    assert answers.ended == ["a2"]


async def test_what_cannot_be_set_aside_yet_is_not_acknowledged(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    answers.refuse_aside = 3
    group.deliver(b"not json")

    await until(lambda: group.acked == [0])
    assert answers.refuse_aside == 0
    assert len(answers.set_aside) == 1


async def test_replace_stops_what_is_in_work_in_the_conversation(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    group.ask("a1", "a")
    group.ask("b1", "b")
    group.ask("a2", "a", on_busy="replace")
    await until(lambda: len(runner.jobs_of("a")) == 2)

    await until(lambda: answers.ended == ["a1"])
    assert [question.turn_id for question in runner.in_work("a")] == ["a2"]
    assert [question.turn_id for question in runner.in_work("b")] == ["b1"]


async def test_replace_also_stops_what_is_queued(group: FakeGroup, answers: Answers, runner: TurnRunner) -> None:
    group.ask("a1", "a")
    group.ask("a2", "a")
    group.ask("a3", "a", on_busy="replace")

    await until(lambda: answers.ended == ["a1", "a2"])
    await until(lambda: answers.begun[-1] == "a3")
    assert sorted(answers.logged) == ["a1", "a2"]


async def test_a_queued_turn_that_is_stopped_ends_at_once_and_closes_after_the_one_before(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    group.ask("a1", "a")
    group.ask("a2", "a")
    await until(lambda: len(runner.in_work("a")) == 2)

    await runner.stop("a2")

    assert answers.logged == ["a2"]
    assert (answers.ended, runner.running) == ([], 1)
    answers.end("a1")
    await until(lambda: answers.ended == ["a1", "a2"])
    await until(lambda: sorted(group.acked) == [0, 1])


async def test_a_stop_needs_no_place(group: FakeGroup, answers: Answers, runner: TurnRunner) -> None:
    for name in "abcd":
        group.ask(name, name)
    await until(lambda: runner.held == 1)

    await runner.stop("d")

    await until(lambda: answers.ended == ["d"])
    assert (runner.running, runner.held) == (3, 0)


async def test_reject_refuses_a_question_while_another_is_answered(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    group.ask("a1", "a")
    await until(lambda: answers.begun == ["a1"])
    group.ask("a2", "a", on_busy="reject")

    await until(lambda: answers.logged == ["a2"])
    refused = runner.jobs_of("a")[1].refusal
    assert refused is not None
    assert refused.code == "conversation_busy"


async def test_reject_does_not_mind_a_turn_that_ended_and_was_only_delivered_again(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    answers.had_ended.add("a1")
    group.ask("a1", "a")
    group.ask("a2", "a", on_busy="reject")

    await until(lambda: answers.begun == ["a1", "a2"])
    answers.end("a2")

    await until(lambda: group.acked == [0, 1])
    assert answers.refused == []


async def test_a_request_that_is_made_twice_is_refused_and_told_of_the_first(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    group.ask("a1", "a", replay_key="k")
    group.ask("a2", "a", replay_key="k")
    group.ask("a3", "a", replay_key="other")

    await until(lambda: answers.logged == ["a2"])
    assert [refused.code for refused in answers.refused] == ["duplicate_request"]
    assert "turn a1" in answers.refused[0].message
    first = runner.by_key("a", "k")
    assert first is not None
    assert first.turn_id == "a1"
    assert runner.by_key("a", "nobody's") is None


async def test_a_question_that_kafka_took_twice_is_not_refused(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    for _ in range(2):
        group.ask("a1", "a", replay_key="k", on_busy="reject")
    answers.end("a1")

    await until(lambda: group.acked == [0, 1])
    assert answers.refused == []


async def test_the_position_is_where_delivery_began_or_what_was_taken(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    group.begins = {0: 7, 1: 3}
    assert (runner.position(0), runner.position(1)) == (7, 3)
    for number in range(9):
        group.ask(f"a{number}", "a")
    group.deliver(b"not json")
    await until(lambda: runner.position(0) == 10)
    assert runner.position(1) == 3

    group.rebalancing = True
    assert runner.position(0) == -1
    group.rebalancing = False
    group.generation += 1  # what was delivered before it counts no more
    assert runner.position(0) == 7

    await runner.hand_over()  # what was in work is not any more, and nobody has finished it
    assert (runner.position(0), runner.position(1)) == (-1, -1)


async def test_whoever_stops_a_turn_that_is_not_here_is_told_so(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    assert not await runner.stop("a1")

    group.ask("a1", "a")
    await until(lambda: answers.begun == ["a1"])

    assert await runner.stop("a1")


async def test_a_stop_does_not_wait_for_a_turns_next_try(
    group: FakeGroup, answers: Answers, runner: TurnRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_runner, "pause", lambda _: 3600.0)
    answers.fail["a1"] = [LogUnavailable("busy")]
    group.ask("a1", "a")
    await until(lambda: answers.begun == ["a1"])

    assert await asyncio.wait_for(runner.stop("a1"), 5)
    assert answers.logged == ["a1"]


async def test_a_worker_that_has_handed_over_takes_no_question(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    await runner.hand_over()

    group.ask("a1", "a")
    group.ask("b1", "b")
    await until(group.queue.empty)
    for _ in range(10):
        await asyncio.sleep(0)

    assert (answers.begun, len(runner), group.acked) == ([], 0, [])


async def stop_without_a_log(group: FakeGroup, answers: Answers, runner: TurnRunner) -> "asyncio.Task[bool]":
    """Return the stop of an answer whose end the log does not take yet."""
    group.ask("a1", "a")
    await until(lambda: answers.begun == ["a1"])
    answers.log.clear()
    stop = asyncio.create_task(runner.stop("a1"))
    await until(runner.jobs_of("a")[0].stopping.is_set)
    return stop


async def test_a_stop_is_done_with_once_the_end_is_logged(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    stop = await stop_without_a_log(group, answers, runner)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not stop.done()
    answers.log.set()

    await asyncio.wait_for(stop, 5)
    assert answers.logged == ["a1"]


async def test_a_stop_of_a_turn_that_goes_to_another_worker_before_its_end_is_not_done_with(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    stop = await stop_without_a_log(group, answers, runner)

    await runner.keep(set())

    with pytest.raises(NotOwner):
        await asyncio.wait_for(stop, 5)


async def test_a_worker_that_has_handed_over_takes_no_stop(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    await runner.hand_over()

    with pytest.raises(NotOwner):
        await runner.stop("a1")


async def test_a_stop_of_a_turn_that_is_set_aside_is_done_with(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    group.ask("a1", "a")
    await until(lambda: answers.begun == ["a1"])
    answers.fail["a2"] = [Rejected("no")]
    group.ask("a2", "a")
    await until(lambda: len(runner.jobs_of("a")) == 2)

    stop = asyncio.create_task(runner.stop("a2"))
    answers.end("a1")

    await asyncio.wait_for(stop, 5)
    assert [reason for _, reason in answers.set_aside] == ["no"]


async def test_on_shutdown_answers_are_handed_over_unacknowledged(
    group: FakeGroup, answers: Answers, runner: TurnRunner
) -> None:
    group.ask("a1", "a")
    await until(lambda: answers.begun == ["a1"])

    await runner.hand_over()

    assert group.acked == []
    assert answers.ended == []
    assert len(runner) == 0
