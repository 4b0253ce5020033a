"""From a finished turn to changes of what is known: each once, from the question alone, by a model if one is set."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from adapters.model_group import open_model_group
from agents import asking_model, remember
from config.settings import Settings
from domain.errors import Rejected
from domain.memory import Memories
from domain.proposed import proposed
from domain.statements import Told
from domain.turns import CONVERSATION_BUSY, Failure
from streams.records import MemoryChange, Turn, UserMemories
from tables import memories
from tests.support.model_server import ModelServer

NAME = Told("The user's name is Ann.", "name", "identity")


def turn(text: str, **more: Any) -> Turn:
    usual: dict[str, Any] = {"outcome": "completed", "answer": "I'm Bob.", "parent": "turn-1", "asked_at": 7}
    who = {"turn_id": "turn-2", "conversation_id": "c", "tenant": "t", "user": "u"}
    return Turn(input=text, model="m", **(usual | who | more))


class Worker:
    """The app as `agents.remember` sees it: it notes what is published."""

    def __init__(self, model: Any = None, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.topics_of = SimpleNamespace(memory_changes="changes", memories="memories")
        self.services = SimpleNamespace(model=model, memories=self)
        self.published: list[tuple[str, str, Any]] = []
        self.kept: list[Memories] = []
        self.generation = 1

    async def publish(self, topic: str, key: str, record: Any) -> int:
        await asyncio.sleep(0)
        self.published.append((topic, key, record))
        return 0

    async def keep(self, known: Memories) -> None:
        self.kept.append(known)

    def ready(self) -> str:
        return ""

    def owned(self) -> set[int]:
        return {0, 1}

    def partition(self, _key: str) -> int:
        return 3

    @property
    def changes(self) -> list[MemoryChange]:
        return [record for topic, key, record in self.published if (topic, key) == ("changes", "t/u")]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker without a model for it."""
    found = Worker()
    monkeypatch.setattr(remember, "app", found)
    return found


async def test_a_question_s_facts_go_to_the_user_s_partition_with_where_they_were_told(worker: Worker) -> None:
    await remember.propose_of(turn("My name is Ann. We use Kafka 4."), 0)

    name, tool = worker.changes
    assert (name.action, Told(name.text, name.slot, name.kind), name.at) == ("remember", NAME, 7)
    assert (name.turn_id, name.conversation_id, name.tenant, name.user) == ("turn-2", "c", "t", "u")
    assert tool.slot == "tool:kafka"
    assert name.change_id != tool.change_id


async def test_a_turn_that_comes_twice_makes_the_same_changes(worker: Worker) -> None:
    for _ in range(2):
        await remember.propose_of(turn("My name is Ann. We use Kafka 4."), 0)

    assert worker.changes[:2] == worker.changes[2:]


@pytest.mark.parametrize(
    "of",
    [
        turn("What is your name?"),
        turn("My name is Ann", bare=True),
        turn("My name is Ann", outcome="failed", error=Failure("busy", CONVERSATION_BUSY)),
    ],
    ids=["the answer is not looked at", "a bare model has no memory", "a refused question was not heard"],
)
async def test_nothing_is_proposed_from_these(worker: Worker, of: Turn) -> None:
    await remember.propose_of(of, 0)

    assert worker.published == []


async def test_nothing_is_proposed_where_the_operator_has_switched_memory_off(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "settings", Settings(memory="off"))
    await remember.propose_of(turn("My name is Ann"), 0)

    assert worker.published == []


async def test_what_a_user_wants_forgotten_is_named_by_slot_by_the_turn_before_or_is_everything(worker: Worker) -> None:
    for text in ("Forget my name.", "Forget that.", "Forget everything you know about me."):
        await remember.propose_of(turn(text), 0)
    await remember.propose_of(turn("Forget that.", parent=""), 0)

    assert [(each.action, each.slot, each.turn_id) for each in worker.changes] == [
        ("forget", "name", ""),
        ("forget", "", "turn-1"),
        ("forget_all", "", ""),
    ]


async def test_a_change_is_in_the_topic_and_in_the_mirror_when_it_is_carried_out(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Memories("t", "u", revision=5)

    async def change(_order: MemoryChange) -> Memories:
        return known

    monkeypatch.setattr(memories, "change", change)
    order = MemoryChange(change_id="1", action="forget_all", tenant="t", user="u", at=1)
    await remember.carry_out(order, 3)

    state = UserMemories(tenant="t", user="u", enabled=True, facts=[], revision=5)
    assert worker.published == [("memories", "t/u", state)]
    assert worker.kept == [known]
    with pytest.raises(Rejected):
        await remember.carry_out(order, 2)


# -- the mirror


async def test_what_the_mirror_has_lost_is_written_again_after_each_assignment(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [Memories("t", f"u{n}", revision=1) for n in range(250)]
    lost = known[100:102]

    def some(partition: int, after: str = "") -> tuple[list[Memories], str | None]:
        start = int(after or 0) if partition == 1 else len(known)
        return known[start : start + 100], str(start + 100) if start + 100 < len(known) else None

    async def without(of: Sequence[Memories]) -> list[Memories]:
        await asyncio.sleep(0)
        return [each for each in of if each in lost]

    monkeypatch.setattr(memories, "some", some)
    monkeypatch.setattr(memories, "read", lambda tenant, user: Memories(tenant, user, revision=2))
    monkeypatch.setattr(worker, "without", without, raising=False)
    mirroring = remember.Mirroring()
    await mirroring.tick()
    await mirroring.tick()

    assert [(each.user, each.revision) for each in worker.kept] == [("u100", 2), ("u101", 2)]

    worker.generation += 1
    await mirroring.tick()
    assert len(worker.kept) == 4


# -- by a model


FACTS = '{"facts": [{"text": "The user\'s name is Ann.", "slot": "name", "kind": "identity"}]}'


@pytest.mark.parametrize("answer", [FACTS, f"Sure!\n```json\n{FACTS}\n```"])
def test_a_model_s_json_is_believed_where_it_speaks_of_what_was_said(answer: str) -> None:
    assert proposed(answer, "Ich heiße Ann.") == [NAME]
    assert proposed(answer, "What is the capital of France?") == []


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no",
        "[]",
        "{",
        '{"facts": 3}',
        '{"facts": [1]}',
        '{"facts": [{"text": 1, "slot": "a", "kind": "note"}]}',
        "{}" * 2,
    ],
)
def test_what_is_not_the_json_that_was_asked_for_is_not_believed(answer: str) -> None:
    assert proposed(answer, "My name is Ann") is None


@pytest.mark.parametrize(
    "change",
    [{"text": ""}, {"text": "Ann " * 200}, {"slot": ""}, {"slot": "x" * 99}, {"kind": "secret"},
     {"text": "Ann's password is hunter2"}],
)  # fmt: skip
def test_a_proposal_out_of_bounds_is_left_out(change: dict[str, str]) -> None:
    fact = {"text": "The user's name is Ann.", "slot": "name", "kind": "identity"} | change

    assert proposed(msgspec.json.encode({"facts": [fact]}).decode(), "My name is Ann, password hunter2") == []


async def test_where_the_model_fails_or_talks_nonsense_patterns_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ModelServer() as server:
        settings: dict[str, Any] = {"openai_base_url": server.base_url, "memory_model": "scripted"}
        async with open_model_group(Settings(**settings)) as model:
            worker = Worker(model, **settings)
            monkeypatch.setattr(remember, "app", worker)
            monkeypatch.setattr(asking_model, "app", worker)
            await remember.propose_of(turn("My name is Ann. Forget my dog. [tokens=3 pace=0]"), 0)
            await remember.propose_of(turn("My name is Ann. [status=500]"), 0)

    assert [each.slot for each in worker.changes] == ["name", "my:dog", "name"]
    assert "My name is Ann." in server.requests[0]["messages"][1]["content"]


async def test_what_the_model_proposes_is_taken_and_what_is_to_be_forgotten_is_still_read_by_patterns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer_of(*_: Any, **__: Any) -> str:
        await asyncio.sleep(0)
        return FACTS

    worker = Worker(memory_model="any")
    monkeypatch.setattr(remember, "app", worker)
    monkeypatch.setattr(remember, "answer_of", answer_of)
    await remember.propose_of(turn("Ich heiße Ann, we use Kafka. Forget my dog."), 0)

    assert [(each.action, each.slot) for each in worker.changes] == [("forget", "my:dog"), ("remember", "name")]
