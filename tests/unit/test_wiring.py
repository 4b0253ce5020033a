"""What the app consists of. Faust starts without what it does not find, so it is written down here once more."""

import resource
from importlib import import_module
from pathlib import Path

import pytest

from streams.app import MODULES, app, raise_open_files
from streams.topics import METRICS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", MODULES)
def test_each_named_module_can_be_imported(module: str) -> None:
    import_module(module)


def test_the_app_consists_of_these_agents_tables_and_topics() -> None:
    for module in MODULES:
        import_module(module)

    assert set(app.agents) == {
        "agents.answer.answer",
        "agents.close.close",
        "agents.control.control",
        "agents.measure.count",
        "agents.measure.measure",
        "agents.merge.merge",
        "agents.remember.propose",
        "agents.remember.remember",
    }
    assert set(app.tables) == {"conversations", "listing", "memories", "parts", "replays", "votes", "windows"}
    assert [topic.name for topic in app.topics_of.all()] == [
        "chat.questions.v1",
        "chat.controls.v1",
        "chat.tokens.v1",
        "chat.turns.v1",
        "chat.feedback.v1",
        "chat.dead-letters.v1",
        "chat.documents.v1",
        "chat.document-outcomes.v1",
        "chat.memory-changes.v1",
        "chat.memories.v1",
        "chat.metrics.parts.v1",
        *(f"chat.metrics.{metric}.{window}.v1" for metric in METRICS for window in ("10s", "1m", "5m")),
        "chat.workers.v1",
    ]


@pytest.mark.parametrize("name", ["config", "domain", "adapters", "streams", "tables", "agents", "web"])
def test_our_packages_are_ours(name: str) -> None:
    """`agents` is also what OpenAI's Agents SDK calls itself, `tables` is PyTables, `web` is web.py."""
    found = import_module(name).__file__

    assert found is not None
    assert Path(found).is_relative_to(ROOT)


def test_a_worker_opens_as_many_files_as_it_is_let() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        raise_open_files()

        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
