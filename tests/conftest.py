"""Fixtures for all tests: the services, unique names on them, and workers that end with their test."""

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import hypothesis
import pytest

from tests.support.postgres import own_schema
from tests.support.services import Services, open_real_kafka, open_services
from tests.support.worker import Worker

# No deadline, because a busy machine is no bug. In CI the same examples every time, so that a red run can be repeated.
hypothesis.settings.register_profile("headrace", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("headrace")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark what uses a real Kafka or a browser, so that ``-m "not kafka"`` cannot miss any."""
    marks = {"real_kafka": pytest.mark.kafka, "browser": pytest.mark.browser}
    for item in items:
        for fixture in marks.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(marks[fixture])


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Kafka, Elasticsearch and Postgres: those of the environment, else embedded ones."""
    with open_services(tmp_path_factory.mktemp("services")) as found:
        yield found


@pytest.fixture(scope="session")
def real_kafka(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """The same services with a real Kafka; skips the test where there is none."""
    with open_real_kafka(tmp_path_factory.mktemp("kafka")) as bootstrap:
        yield replace(services, bootstrap=bootstrap, real=True)


@dataclass(frozen=True, slots=True)
class Names:
    """What keeps a test's topics, group and indices apart from everyone else's on the same services."""

    topic_prefix: str
    group: str

    @property
    def environ(self) -> dict[str, str]:
        """The variables that tell a worker."""
        return {
            "HEADRACE_TOPIC_PREFIX": self.topic_prefix,
            "HEADRACE_GROUP": self.group,
            "HEADRACE_INDEX_PREFIX": f"{self.group}-",
        }


@pytest.fixture
def names() -> Names:
    """Names that no other test has."""
    unique = uuid4().hex[:12]
    return Names(topic_prefix=f"test-{unique}.", group=f"test-{unique}")


class StartWorker(Protocol):
    """Starts a worker on these services, and returns when it is ready, unless ``ready`` is False.

    ``environ`` adds variables; ``folder`` names its folder below the test's own; ``supervised`` as in `Worker`.
    """

    async def __call__(
        self, on: Services, /, *, folder: str = ..., ready: bool = ..., supervised: bool = ..., **environ: str
    ) -> Worker: ...


@pytest.fixture
def database_url(services: Services) -> Iterator[str]:
    """Postgres, with tables of the test's own."""
    with own_schema(services.database_url) as url:
        yield url


@pytest.fixture
async def start_worker(names: Names, database_url: str, tmp_path: Path) -> AsyncIterator[StartWorker]:
    """Workers of one group, which accept everyone and share the test's topics and tables; all are stopped at its end.

    ``worker = await start_worker(services, OPENAI_BASE_URL=model.url)``
    """
    workers: list[Worker] = []

    async def start(
        on: Services, /, *, folder: str = "", ready: bool = True, supervised: bool = False, **environ: str
    ) -> Worker:
        own = names.environ | {"DATABASE_URL": database_url}
        # Without documents, unless the test is about them: an embedding model takes seconds of a core to start.
        usual = {"HEADRACE_AUTH": "dev", "HEADRACE_RETRIEVAL": "off", "HEADRACE_LOG_FORMAT": "text"}
        settings = on.environ | own | usual | environ
        name = folder or f"worker-{len(workers) + 1}"
        worker = Worker(tmp_path / name, settings, supervised=supervised)
        workers.append(worker)
        if ready:
            await worker.start()
        else:
            worker.launch()
        return worker

    yield start
    for worker in workers:
        await worker.stop()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the defaults, whatever the shell that runs them has set."""
    for name in os.environ:
        if name.startswith("HEADRACE_") and not name.startswith("HEADRACE_TEST_"):
            monkeypatch.delenv(name)
