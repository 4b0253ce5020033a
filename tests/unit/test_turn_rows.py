"""Records become rows, or are named with the reason why they cannot: whatever a client has put into them."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from domain.errors import SinkRefused
from domain.generation import Usage
from domain.ids import uuid7
from domain.knowledge import Citation
from domain.prices import Prices
from streams.records import Control, Turn
from streams.turn_rows import citation_rows, converted, order_of, row_of

ID = uuid7(1_790_000_000_000, 0, 1)


def turn(**fields: Any) -> Turn:
    usual = {
        "turn_id": ID, "conversation_id": ID, "tenant": "t", "user": "u", "input": "?", "answer": "!", "model": "m",
        "outcome": "completed",
    }  # fmt: skip
    return msgspec.convert(usual | fields, Turn)


def deep(levels: int) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for _ in range(levels):
        nested = {"a": [nested]}
    return nested


def control(metadata: dict[str, Any]) -> Control:
    return Control(action="create", conversation_id=ID, tenant="t", user="u", at=1, metadata=metadata)


def test_what_is_nested_too_deeply_is_named_and_the_rest_converted() -> None:
    with pytest.raises(SinkRefused) as of_turns:
        converted({3: turn(), 4: turn(metadata=deep(5000)), 5: turn()}, row_of)
    with pytest.raises(SinkRefused) as of_controls:
        converted({7: control(deep(5000)), 8: control({})}, order_of)

    assert list(of_turns.value.reasons) == [4]
    assert list(of_controls.value.reasons) == [7]
    assert list(converted({1: turn(metadata=deep(16))}, row_of)) == [1]


@pytest.mark.parametrize(
    ("model", "cost"),
    [("m", Decimal("0.0000171")), ("large", Decimal("0.0005006")), ("own", None), ("free", Decimal(0))],
)
def test_a_row_says_what_its_turn_cost_if_its_model_has_a_price(model: str, cost: Decimal | None) -> None:
    prices = Prices({"m": 0.15, "large": 5.0, "free": 0.0}, {"m": 0.3, "large": 0.1})

    assert row_of(turn(model=model, usage=Usage(100, 7 if model == "m" else 6)), prices).cost == cost


def test_without_prices_nothing_is_known_of_the_cost() -> None:
    assert row_of(turn(usage=Usage(100, 7))).cost is None


def test_a_passage_that_was_given_is_a_row_whether_it_is_named_or_not() -> None:
    given = [Citation(n, f"d{n}", "Manual", "", "…") for n in (1, 2, 3)]

    found = citation_rows(turn(answer="So it is [2], and so [1, 2].", citations=given))

    assert [(row.n, row.named) for row in found] == [(1, True), (2, True), (3, False)]


def test_a_row_has_what_the_record_says_besides() -> None:
    row = row_of(turn(retrieval="weak", cache="hit", experiment="b\0", bare=True))

    assert (row.retrieval, row.cache, row.experiment, row.bare) == ("weak", "hit", "b\N{REPLACEMENT CHARACTER}", True)
