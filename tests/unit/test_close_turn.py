"""The last step of a turn: it is published until its conversation has it, whoever owned the partition meanwhile."""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest

from agents import answer
from domain.ids import new_turn_id
from domain.tokens import Kind, Token
from domain.turns import End, Start
from streams.records import Question, Turn, decode, encode
from tables import conversations
from tests.support.fakes import FakeLoggedTurn
from tests.support.runner_fakes import question

TURN = new_turn_id(1_700_000_000_000, 0, 7)


def finished(asked: Question) -> Turn:
    """Return the turn of an answered question."""
    return Turn(
        turn_id=asked.turn_id,
        conversation_id=asked.conversation_id,
        tenant=asked.tenant,
        user=asked.user,
        input=asked.input,
        answer="a log in parts",
        model="m",
        outcome="completed",
    )


class Group:
    """A worker in the eyes of `close`: it notes what is published, and calls ``on_publish`` after it."""

    def __init__(self) -> None:
        self.generation = 1
        self.topics_of = SimpleNamespace(turns="turns")
        self.published: list[Turn] = []
        self.is_heard = True

    async def settled(self) -> None:
        await asyncio.sleep(0)

    async def publish(self, _topic: str, _key: str, record: Turn) -> int:
        self.published.append(record)
        if self.is_heard:
            asyncio.get_running_loop().call_soon(conversations.closed, record.turn_id)
        return len(self.published)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    """The app as `agents.answer` sees it."""
    found = Group()
    monkeypatch.setattr(answer, "app", found)
    monkeypatch.setattr(answer, "finished", lambda asked, _: finished(asked))
    monkeypatch.setattr(answer, "LOOK_SECONDS", 0.001)
    return found


@pytest.mark.parametrize(("model", "prompt"), [("", "assistant.v1"), ("small", "")])
def test_the_record_of_a_turn_has_what_its_question_and_its_end_say(model: str, prompt: str) -> None:
    asked = msgspec.structs.replace(
        question(TURN, messages=[{"role": "user", "content": "?"}], experiment="b"), model=model
    )
    logged = FakeLoggedTurn()
    end = End("completed", "small", gaps={7: 2}, retrieval="empty", cache="miss")
    for seq, (kind, text) in enumerate(
        [
            ("claim", msgspec.json.encode(Start("c", model)).decode()),
            ("token", "So."),
            ("end", msgspec.json.encode(end).decode()),
        ]
    ):
        logged.feed(Token(TURN, 1, seq, msgspec.convert(kind, Kind), text))

    turn = decode(encode(answer.finished(asked, logged)), Turn)

    assert (turn.answer, turn.model, turn.bare, turn.prompt) == ("So.", "small", bool(model), prompt)
    assert (turn.experiment, turn.gaps, turn.retrieval, turn.cache) == ("b", {7: 2}, "empty", "miss")


async def test_a_turn_is_published_once_where_it_comes_back(group: Group) -> None:
    await answer.close(question("a"), FakeLoggedTurn())

    assert len(group.published) == 1


async def test_a_turn_that_another_worker_has_read_in_between_is_published_again(group: Group) -> None:
    group.is_heard = False
    closing = asyncio.create_task(answer.close(question("a"), FakeLoggedTurn()))
    while not group.published:
        await asyncio.sleep(0)

    group.is_heard = True
    group.generation = 3  # the partition went away, and came back
    await asyncio.wait_for(closing, 5)

    assert len(group.published) == 2
