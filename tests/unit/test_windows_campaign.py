"""The windows' campaign says the truth of what it wrote, and notices each thing that is otherwise."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import reduce
from operator import add
from typing import Any, Final

import msgspec
import pytest

from bench.windows_campaign import truth
from bench.windows_campaign.check import Compared, compare
from bench.windows_campaign.found import DIMENSIONS, plain
from bench.windows_campaign.load import PRICES, Author, Written
from bench.windows_campaign.truth import MEASURES
from domain.prices import Prices
from streams.records import Feedback, Turn, decode
from streams.turn_rows import citation_rows, feedback_row, row_of
from tables.measures import Measures, measured, voted
from tables.metric_rows import rows_of

NOW: Final = 1_790_000_000_000
PRICED: Final = Prices(
    *({model: float(price[which]) for model, price in PRICES.items() if price is not None} for which in (0, 1))
)
Rows = list[tuple[Any, dict[str, Any]]]


def written() -> Written:
    """Return some minutes of turns and votes."""
    author, all_of_it = Author(random.Random(1), 8, NOW), Written()  # noqa: S311
    for number in range(800):
        turn = author.turn(NOW + number * 50)
        all_of_it.turns[turn.turn_id] = turn
        if vote := author.vote(NOW + number * 50):
            all_of_it.votes.append(vote)
    return all_of_it


WRITTEN: Final = written()
TURNS: Final = [decode(json.dumps(each.record()).encode(), Turn) for each in WRITTEN.turns.values()]
VOTES: Final = [decode(json.dumps(each.record()).encode(), Feedback) for each in WRITTEN.votes]
# Of two votes of one turn Postgres keeps the later.
LATEST: Final = {vote.turn_id: vote for vote in sorted(VOTES, key=lambda vote: vote.at)}


def by_the_product(metric: str, width: int) -> Rows:
    """Return the rows that the product makes of it."""
    sums: defaultdict[Any, list[Measures]] = defaultdict(list)
    moments = [(turn.ended_at, measured(turn, PRICED)) for turn in TURNS] + [(vote.at, voted(vote)) for vote in VOTES]
    for at, (dimensions, measures) in moments:
        sums[at // (width * 1000) * width, dimensions].append(measures)
    found: Rows = []
    for (start, dimensions), each in sums.items():
        rows = rows_of(width * 1000, start * 1000, dimensions, reduce(add, each).counted(), revision=1, final=True)
        key = (start, *(getattr(dimensions, name) for name in DIMENSIONS))
        found += [(key, json.loads(msgspec.json.encode(row.measures))) for name, row in rows if name == metric]
    return found


def stored(row: Any, *key: str) -> tuple[Any, dict[str, Any]]:
    """Return a row of a store as it is read back, with what tells it apart."""
    values = {name: plain(value, name) for name, value in row._asdict().items()}
    found = tuple(values.pop(name) for name in key)
    return found if len(found) > 1 else found[0], values


FOUND: Final[Mapping[str, Rows]] = {
    "turns": [stored(row_of(turn, PRICED), "turn_id") for turn in TURNS],
    "citations": [stored(row, "turn_id", "n") for turn in TURNS for row in citation_rows(turn)],
    "feedback": [stored(feedback_row(vote), "turn_id") for vote in LATEST.values()],
    **{metric: by_the_product(metric, 10) for metric in MEASURES if metric != "turns"},
    "metrics of turns": by_the_product("turns", 10),
}
EXPECTED: Final[Mapping[str, truth.Rows]] = {
    **{name: getattr(truth, name)(WRITTEN) for name in ("turns", "citations", "feedback")},
    **{metric: truth.metrics(WRITTEN, metric, 10) for metric in MEASURES if metric != "turns"},
    "metrics of turns": truth.metrics(WRITTEN, "turns", 10),
}


def compared(what: str, change: Callable[[Rows], object] = lambda _: None) -> Compared:
    """Return how rows compare that are as they should be but for a change."""
    rows = deepcopy(FOUND[what])
    change(rows)
    return compare(what, EXPECTED[what], rows)


@pytest.mark.parametrize("what", FOUND)
def test_what_the_product_makes_of_what_was_written_is_right(what: str) -> None:
    assert list(compared(what).examples()) == []
    assert compared(what).expected >= 50


@pytest.mark.parametrize("what", FOUND)
def test_a_row_that_is_missing_twice_or_of_nobody_is_noticed(what: str) -> None:
    assert len(compared(what, lambda rows: rows.pop()).missing) >= 1
    assert len(compared(what, lambda rows: rows.append(rows[0])).twice) == 1
    assert len(compared(what, lambda rows: rows.append(("nobody", {}))).unknown) == 1


def fields() -> list[tuple[str, str]]:
    """Return every field of every row that is compared."""
    return [(what, name) for what, rows in EXPECTED.items() for name in next(iter(rows.values()))]


@pytest.mark.parametrize(("what", "name"), fields())
def test_a_field_that_is_otherwise_is_noticed(what: str, name: str) -> None:
    def spoil(rows: Rows) -> None:
        row = rows[0][1]
        value = row[name]
        if isinstance(value, dict) and "sketch" in value:
            bins = value["sketch"] or {"300": 0}
            last = max(bins, key=int)
            bins |= {str(int(last) + 3): bins.pop(last) or 1}
            value["sketch"] = bins
        else:
            row[name] = "another" if not isinstance(value, int | float) else value + 1

    assert len(compared(what, spoil).otherwise) == 1


@pytest.mark.parametrize("quantile", ["p50", "p95", "p99", "count"])
def test_a_quantile_that_is_2_percent_off_is_noticed(quantile: str) -> None:
    def spoil(rows: Rows) -> None:
        rows[0][1]["duration_ms"][quantile] *= 1.021

    assert compared("metrics of turns", spoil).wrong == 1
