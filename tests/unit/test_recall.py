"""What an answer knows of who asks: nothing where that is switched off or out of reach, and never an error."""

from types import SimpleNamespace

import pytest

from agents import recall
from config.settings import Settings
from domain.errors import SinkUnavailable
from domain.memory import Fact, Memories
from tests.support.runner_fakes import question

NAME = Fact("1", "The user's name is Ann.", "name", "identity", 1, 1)
OLD = Fact("0", "The user's name is Old.", "name", "identity", 0, 0, valid_to=1)


class Store:
    """Has this of whoever it is asked about; ``asked`` is by whom."""

    def __init__(self, known: Memories | Exception) -> None:
        self.known = known
        self.asked: list[tuple[str, str]] = []

    async def of(self, tenant: str, user: str, *, within: float) -> Memories:
        assert within <= 0.5
        self.asked.append((tenant, user))
        if isinstance(self.known, Exception):
            raise self.known
        return self.known


async def recalled(monkeypatch: pytest.MonkeyPatch, store: Store, **settings: str) -> list[str]:
    worker = SimpleNamespace(settings=Settings(**settings), services=SimpleNamespace(memories=store))  # type: ignore[arg-type]  # as the environment has them
    monkeypatch.setattr(recall, "app", worker)
    return await recall.recall(question("turn"))


async def test_what_is_true_of_the_asker_is_recalled(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(Memories("t", "u", facts=[OLD, NAME]))

    assert await recalled(monkeypatch, store) == ["The user's name is Ann."]
    assert store.asked == [("t", "u")]


async def test_nothing_is_recalled_that_its_user_has_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await recalled(monkeypatch, Store(Memories("t", "u", enabled=False, facts=[NAME]))) == []


async def test_nothing_is_looked_up_that_the_operator_has_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(Memories("t", "u", facts=[NAME]))

    assert await recalled(monkeypatch, store, memory="off") == []
    assert store.asked == []


async def test_an_answer_does_without_what_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await recalled(monkeypatch, Store(SinkUnavailable("Elasticsearch is not there"))) == []
