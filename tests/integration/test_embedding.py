"""Models in processes of their own: what means the same is near, and a cross-encoder says what its library does."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from adapters.embedder import open_embedders
from adapters.embedding_child import Child, command_for
from config.settings import Settings


async def test_the_built_in_model_knows_what_is_near() -> None:
    async with open_embedders(Settings()) as embedders:
        model = embedders.of(Settings().embedding_model)
        await model.loaded()
        question = await model.query("How many days off do I get?")
        leave, engine = await model.documents(["Employees have thirty days of annual leave.", "The engine has no oil."])

        assert model.dims == len(question) == 384
        assert dot(question, question) == pytest.approx(1, abs=1e-4)
        assert dot(question, leave) > 0.4
        assert dot(question, engine) < 0.2


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


QUESTION = "which port does the broker use"
TEXTS = ["the broker listens on 9092", "bread is baked", "it"]


@pytest.fixture
def ranker(tmp_path: Path) -> tuple[Path, list[float]]:
    """A cross-encoder's folder, and its scores of the texts as the library gives them."""
    folder = tmp_path / "ranker"
    make = [sys.executable, "-m", "tests.support.cross_encoder", str(folder), QUESTION, *TEXTS]
    return folder, json.loads(subprocess.run(make, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout)


async def test_a_cross_encoder_in_its_process_says_what_the_library_does(ranker: tuple[Path, list[float]]) -> None:
    folder, wanted = ranker
    child = Child(command_for(folder, "scores"), "ranker")
    child.start()
    try:
        async with asyncio.timeout(60):
            await child.loaded()
        assert len(set(wanted)) == len(TEXTS)
        assert await child.scores(QUESTION, TEXTS) == pytest.approx(wanted, rel=1e-4)
        assert await child.scores(QUESTION, TEXTS[::-1]) == pytest.approx(wanted[::-1], rel=1e-4)
    finally:
        await child.stop()
