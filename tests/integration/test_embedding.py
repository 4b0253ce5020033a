"""The built-in model, in its process: texts that mean the same are near to each other."""

from collections.abc import Sequence

import pytest

from adapters.embedder import open_embedders
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
