"""The process that computes vectors is asked in order, comes back when it dies, and outlives nobody."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from adapters import embedding_child
from adapters.embedder import BUILT_IN, Embedder, folder_of
from adapters.embedding_child import Child
from domain.errors import EmbedderUnavailable, Rejected
from tests.support.model_client import until

SERVES = ("-m", "tests.support.embedding")
SERVES_WITHOUT_FORK = ("-c", "import os; del os.SCHED_IDLE; from tests.support.embedding import main; main()")


class Model:
    """A child process, and its journal."""

    def __init__(self, folder: Path, *python: str) -> None:
        self._journal = folder / "journal"
        self.child = Child([sys.executable, *(python or SERVES), self._journal], "fake")
        self.embedder = Embedder("fake", self.child)
        self.gate = folder / "gate"
        self.hold = f"hold {self.gate}"

    @property
    def fork(self) -> psutil.Process:
        """The process that documents are given to."""
        (fork,) = psutil.Process(self.pids[-1]).children()
        return fork

    @property
    def journal(self) -> list[str]:
        return self._journal.read_text().splitlines() if self._journal.exists() else []

    @property
    def texts(self) -> list[str]:
        return [line for line in self.journal if not line.startswith("pid ")]

    @property
    def pids(self) -> list[int]:
        return [int(line.removeprefix("pid ")) for line in self.journal if line.startswith("pid ")]


@pytest.fixture
async def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Model]:
    monkeypatch.setattr(embedding_child, "pause", lambda *_, **__: 0.01)
    found = Model(tmp_path)
    found.child.start()
    await found.embedder.loaded()
    yield found
    await found.child.stop()


async def test_texts_become_vectors_in_their_order(model: Model) -> None:
    texts = ["x" * length for length in range(1, 30)]

    assert await model.embedder.documents(texts) == [[float(len(text)), 1.0] for text in texts]
    assert model.embedder.dims == 2
    assert await model.embedder.documents([]) == []


async def test_no_question_waits_for_a_document(model: Model) -> None:
    learning = asyncio.create_task(model.embedder.documents([model.hold, *(f"text {n}" for n in range(20))]))
    await until(lambda: model.texts == [model.hold])

    assert await model.embedder.query("question") == [8.0, 1.0]
    assert not learning.done()
    model.gate.touch()
    assert len(await learning) == 21


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="only Linux has a class of idle work")
async def test_documents_are_idle_work_and_questions_are_not(model: Model) -> None:
    assert os.sched_getscheduler(model.fork.pid) == os.SCHED_IDLE
    assert os.getsid(model.fork.pid) == model.fork.pid  # among sessions Linux shares first
    assert os.sched_getscheduler(model.pids[0]) == os.SCHED_OTHER
    assert os.getsid(model.pids[0]) == os.getsid(0)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="the other tests show it")
async def test_where_there_is_no_class_of_idle_work_a_thread_takes_the_place_of_the_fork(tmp_path: Path) -> None:
    model = Model(tmp_path, *SERVES_WITHOUT_FORK)
    model.child.start()
    await model.embedder.loaded()
    learning = asyncio.create_task(model.embedder.documents([model.hold]))
    await until(lambda: model.texts == [model.hold])

    assert await model.embedder.query("question") == [8.0, 1.0]
    assert not psutil.Process(model.pids[0]).children()
    model.gate.touch()
    assert len(await learning) == 1
    await model.child.stop()
    assert not _lives(model.pids[0])


async def test_what_nobody_waits_for_any_more_is_not_asked(model: Model) -> None:
    learning = asyncio.create_task(model.embedder.query(model.hold))
    await until(lambda: model.texts == [model.hold])
    impatient = asyncio.create_task(model.embedder.query("impatient"))
    patient = asyncio.create_task(model.embedder.query("patient"))
    await asyncio.sleep(0)
    impatient.cancel()
    model.gate.touch()

    assert await patient == [7.0, 1.0]
    await learning
    assert model.texts == [model.hold, "patient"]


async def test_a_question_that_was_asked_lately_is_known(model: Model) -> None:
    assert await model.embedder.queries(["one", "three", "one"]) == [[3.0, 1.0], [5.0, 1.0], [3.0, 1.0]]
    assert await model.embedder.queries(["three", "four"]) == [[5.0, 1.0], [4.0, 1.0]]

    assert model.texts == ["one", "three", "four"]


async def test_what_a_killed_process_was_doing_is_done_by_the_next(model: Model) -> None:
    learning = asyncio.create_task(model.embedder.documents([model.hold, *(f"text {n}" for n in range(20))]))
    asking = asyncio.create_task(model.embedder.query(model.hold))
    waiting = asyncio.create_task(model.embedder.query("question"))
    await until(lambda: model.texts == [model.hold] * 2)
    os.kill(model.pids[0], signal.SIGKILL)

    for each in (asking, waiting):
        with pytest.raises(EmbedderUnavailable):
            await each
    with pytest.raises(EmbedderUnavailable, match="being loaded"):
        await model.embedder.query("question")
    assert not model.embedder.ready
    model.gate.touch()
    assert len(await learning) == 21
    assert len(model.pids) == 2
    assert await model.embedder.query("question") == [8.0, 1.0]


async def test_a_fork_that_dies_takes_no_document_along(model: Model) -> None:
    learning = asyncio.create_task(model.embedder.documents([model.hold, *(f"text {n}" for n in range(20))]))
    await until(lambda: model.texts == [model.hold])
    model.fork.kill()
    await until(lambda: len(model.pids) == 2)
    model.gate.touch()

    assert len(await learning) == 21
    assert not _lives(model.pids[0])


async def test_a_fork_that_dies_while_it_has_nothing_to_do_comes_back_for_the_next_document(model: Model) -> None:
    model.fork.kill()

    assert await model.embedder.documents(["one", "three"]) == [[3.0, 1.0], [5.0, 1.0]]
    assert len(model.pids) == 2


async def test_a_process_that_dies_while_it_has_nothing_to_do_comes_back(model: Model) -> None:
    os.kill(model.pids[0], signal.SIGKILL)

    await until(lambda: not model.embedder.ready)
    await model.embedder.loaded()
    assert await model.embedder.query("question") == [8.0, 1.0]


async def test_a_text_that_kills_is_refused_and_its_neighbours_are_not(model: Model) -> None:
    with pytest.raises(Rejected, match="died 3 times"):
        await model.embedder.documents(["good", "die", "better"])

    assert len(model.pids) >= embedding_child.DEATHS
    await model.embedder.loaded()
    processes = len(model.pids)
    with pytest.raises(Rejected):
        await model.embedder.documents(["die"])
    assert await model.embedder.documents(["good", "better"]) == [[4.0, 1.0], [6.0, 1.0]]
    assert len(model.pids) == processes


async def test_a_question_that_kills_cannot_do_it_for_ever(model: Model) -> None:
    for _ in range(embedding_child.DEATHS):
        await model.embedder.loaded()
        with pytest.raises(EmbedderUnavailable):
            await model.embedder.query("die")
    await model.embedder.loaded()

    with pytest.raises(Rejected):
        await model.embedder.query("die")
    assert model.texts == ["die"] * embedding_child.DEATHS


async def test_a_text_that_cannot_be_read_ends_nothing(model: Model) -> None:
    with pytest.raises(Rejected, match="ValueError: bad text"):
        await model.embedder.documents(["bad"])

    assert await model.embedder.query("good") == [4.0, 1.0]
    assert len(model.pids) == 1


async def test_texts_are_scored_for_a_question(model: Model) -> None:
    assert await model.child.scores("question", ["a", "abc"]) == [1.0, 3.0]


async def test_nobody_waits_for_a_model_that_was_stopped(model: Model) -> None:
    learning = asyncio.create_task(model.embedder.documents([model.hold]))
    await until(lambda: model.texts == [model.hold])
    fork = model.fork.pid
    await model.child.stop()

    with pytest.raises(EmbedderUnavailable):
        await learning
    await until(lambda: not _lives(model.pids[0]) and not _lives(fork))


STARTS_A_CHILD = """
import asyncio, sys
from adapters.embedding_child import Child

async def main():
    child = Child([sys.executable, "-m", "tests.support.embedding", sys.argv[1]], "fake")
    child.start()
    await child.loaded()
    await child.vectors([sys.argv[2]], first=True)

asyncio.run(main())
"""


async def test_the_process_dies_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    model = Model(tmp_path)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTS_A_CHILD, tmp_path / "journal", model.hold
    )  # fmt: skip
    await until(lambda: model.texts == [model.hold])
    worker.kill()
    await worker.wait()
    assert _lives(model.pids[0])  # it is in work
    model.gate.touch()

    await until(lambda: not _lives(model.pids[0]))


def test_a_model_that_is_not_there_is_named_with_its_setting(tmp_path: Path) -> None:
    assert (folder_of(BUILT_IN) / "modules.json").exists()
    with pytest.raises(FileNotFoundError, match="HEADRACE_EMBEDDING_MODEL"):
        folder_of(str(tmp_path))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
