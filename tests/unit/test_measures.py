"""Sums of turns: exact in any order, quantiles within 1 %, and rows as their schema says."""

import json
import random
from functools import reduce
from itertools import pairwise
from math import ceil
from operator import add
from pathlib import Path

import jsonschema
import msgspec
import pytest
from ddsketch import DDSketch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from domain.generation import Usage
from domain.knowledge import Citation
from domain.prices import Prices
from domain.sketches import ACCURACY, LEAST_MS, MOST_MS, bin_of
from domain.turns import Timings
from streams.records import Feedback, Turn, decode, encode
from tables.measures import ROWS_A_PART, Dimensions, Measures, Part, PartRow, measured, pieces, quantile, voted
from tables.metric_rows import METRIC_TYPES, MetricRow, rows_of

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/metrics.v1.schema.json").read_text())
ROUNDED_MS = 0.0005  # quantiles are given to the microsecond
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker())
counts = st.integers(0, 10**9)
bins = st.dictionaries(st.integers(bin_of(LEAST_MS), bin_of(MOST_MS)), st.integers(1, 10**6), max_size=8)
sums = st.builds(
    Measures,
    **{
        name: bins if "bins" in str(kind) or "dict" in str(kind) else counts
        for name, kind in Measures.__annotations__.items()
        if name != "votes"  # they are counted before anything is added to them
    },
)
dimensions = st.builds(Dimensions, *[st.text(max_size=5)] * 6)


def turn(**fields: object) -> Turn:
    given_fields = {
        "turn_id": "t", "conversation_id": "c", "tenant": "acme", "user": "u", "input": "?", "answer": "!",
        "model": "m", "outcome": "completed", "prompt": "assistant.v1",
    }  # fmt: skip
    return msgspec.convert(given_fields | fields, Turn)


@given(sums, sums, sums)
def test_sums_come_out_the_same_in_any_order_and_grouping(a: Measures, b: Measures, c: Measures) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Measures() == a


@given(sums)
def test_a_sum_comes_back_from_the_wire_as_it_was(a: Measures) -> None:
    part = Part(partition=1, epoch=2, size=10_000, closed_through=3, rows=[PartRow(Dimensions("a", "b", "c", "d"), a)])

    assert decode(encode(part), Part) == part


@example([0.21875], 0.0)
@given(st.lists(st.floats(LEAST_MS, MOST_MS), min_size=1), st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_one_percent_of_the_true_one(values: list[float], share: float) -> None:
    sketch: dict[int, int] = {}
    for value in values:
        sketch[bin_of(value)] = sketch.get(bin_of(value), 0) + 1

    found = quantile(sketch, share)

    true = sorted(values)[int(share * (len(values) - 1))]
    assert found is not None
    assert abs(found - true) <= true * ACCURACY * 1.001 + ROUNDED_MS


def test_a_sketch_is_that_of_the_library() -> None:
    chance = random.Random(1)  # noqa: S311
    values = [chance.lognormvariate(6, 1) for _ in range(2000)]
    library = DDSketch(ACCURACY)
    ours: dict[int, int] = {}
    for value in values:
        library.add(value)
        ours[bin_of(value)] = ours.get(bin_of(value), 0) + 1

    for share in (0.5, 0.95, 0.99):
        assert quantile(ours, share) == pytest.approx(library.get_quantile_value(share), abs=0.001)


def test_no_durations_have_no_quantile() -> None:
    assert quantile({}, 0.5) is None


@pytest.mark.parametrize("milliseconds", [-5.0, 0.0, 1e-9, 1e300, float("inf")])
def test_a_duration_out_of_bounds_counts_as_the_nearest_within(milliseconds: float) -> None:
    assert bin_of(milliseconds) in (bin_of(LEAST_MS), bin_of(MOST_MS))


def test_a_turn_counts_in_the_row_of_its_dimensions() -> None:
    found = measured(turn(claims=3, usage=Usage(100, 11), timings=Timings(5, 400, 1400)), Prices({"": 0.15}, {"": 0.6}))

    assert found == (
        Dimensions("acme", "m", "assistant.v1", "completed"),
        Measures(
            turns=1,
            resumed=1,
            input_tokens=100,
            output_tokens=11,
            cost_nano=150 * 100 + 600 * 11,
            duration={bin_of(1400): 1},
            first_token={bin_of(400): 1},
            token_gap={bin_of(100): 1},
        ),
    )


@pytest.mark.parametrize(
    ("fields", "first", "gap"),
    [
        ({"outcome": "failed"}, 0, 0),  # nothing was written
        ({"usage": Usage(3, 1), "timings": Timings(1, 2, 3)}, 1, 0),
        ({"timings": Timings(1, 2, 3)}, 1, 0),  # a server that tells no usage
        ({"usage": Usage(3, 2), "timings": Timings(1, 2, 2)}, 1, 1),
    ],
)
def test_a_duration_that_a_turn_does_not_have_is_not_counted(fields: dict[str, object], first: int, gap: int) -> None:
    _, found = measured(turn(**fields))

    assert (len(found.first_token), len(found.token_gap), len(found.duration)) == (first, gap, 1)


@pytest.mark.parametrize(
    ("fields", "dimension", "hits"),
    [
        ({}, "none", 0),
        ({"cache": "miss"}, "miss", 0),
        ({"cache": "hit"}, "hit", 1),
        ({"cache": "exact"}, "hit", 1),
    ],
)
def test_an_answer_that_is_given_again_is_a_hit_of_the_cache(
    fields: dict[str, object], dimension: str, hits: int
) -> None:
    where, found = measured(turn(**fields))

    assert (where.cache, found.cache_hits) == (dimension, hits)


@pytest.mark.parametrize(
    ("retrieval", "hits"), [(None, 0), ("found", 1), ("weak", 0), ("empty", 0), ("unavailable", 0)]
)
def test_a_search_that_found_passages_is_a_hit_of_retrieval(retrieval: str | None, hits: int) -> None:
    assert measured(turn(retrieval=retrieval))[1].retrieval_hits == hits


@pytest.mark.parametrize(
    ("answer", "named"),
    [("No source.", 0), ("So [1].", 1), ("So [2], and [1, 2].", 2), ("So [3] and [9].", 1), ("[9]", 0)],
)
def test_the_passages_that_an_answer_names_are_counted_once_each(answer: str, named: int) -> None:
    given_passages = [Citation(n, "d", "Manual", "", "…") for n in (1, 2, 3)]

    assert measured(turn(answer=answer, citations=given_passages))[1].citations == named


def test_a_stall_shows_among_the_gaps_of_a_turn() -> None:
    gaps = {bin_of(20): 95, bin_of(3000): 5}

    _, found = measured(turn(gaps=gaps, usage=Usage(3, 101), timings=Timings(1, 100, 17_000)))

    assert found.token_gap == gaps
    assert quantile(found.token_gap, 0.5) == pytest.approx(20, rel=0.01)
    assert quantile(found.token_gap, 0.99) == pytest.approx(3000, rel=0.01)


def test_turns_of_an_experiment_are_told_apart_by_their_arm() -> None:
    assert measured(turn(experiment="short-answers"))[0].experiment == "short-answers"
    assert measured(turn())[0].experiment == ""


@pytest.mark.parametrize(("model", "nano"), [("m", 100 * 150 + 7 * 600), ("large", 100 * 5000 + 7 * 600), ("free", 0)])
def test_a_model_has_a_price_of_its_own_or_that_of_the_others(model: str, nano: int) -> None:
    prices = Prices({"": 0.15, "large": 5.0, "free": 0.0}, {"": 0.6, "free": 0.0})

    assert measured(turn(model=model, usage=Usage(100, 7)), prices)[1].cost_nano == nano


def test_money_is_exact() -> None:
    cents = [measured(turn(usage=Usage(1, 0)), Prices({"": 0.1}))[1] for _ in range(1000)]

    assert reduce(add, cents).cost_nano == 100_000


def test_a_part_of_many_rows_is_divided_into_parts_that_kafka_takes() -> None:
    full = dict.fromkeys(range(bin_of(LEAST_MS), bin_of(MOST_MS) + 1), 10**6)
    row = PartRow(
        Dimensions("a" * 50, "b" * 50, "c", "d"), Measures(10**9, duration=full, first_token=full, token_gap=full)
    )
    part = Part(partition=0, epoch=1, size=10_000, closed_through=7, start=10_000, revision=3, rows=[row] * 100)

    found = list(pieces(part))

    assert [len(each.rows) for each in found] == [ROWS_A_PART] * 6 + [10]
    assert max(len(encode(each)) for each in found) < 1_000_000
    assert {(each.revision, each.start, each.closed_through) for each in found} == {(3, 10_000, 7)}
    assert list(pieces(msgspec.structs.replace(part, rows=[]))) == [msgspec.structs.replace(part, rows=[])]


@settings(max_examples=20)
@given(dimensions, sums, st.integers(0, 2**31), st.booleans())
def test_every_row_is_as_the_schema_says(where: Dimensions, a: Measures, revision: int, final: bool) -> None:
    for name, row in rows_of(60_000, 1_800_000_060_000, where, a, revision=revision, final=final):
        found = json.loads(encode(row))

        VALIDATOR.validate(found)
        assert decode(encode(row), MetricRow[METRIC_TYPES[name]]) == row  # type: ignore[valid-type]  # it is one


def test_the_schema_refuses_what_is_no_row() -> None:
    for _, row in rows_of(60_000, 0, Dimensions("a", "b", "c", "d"), Measures(), revision=1, final=True):
        found = json.loads(encode(row))
        for broken in ({**found, "revision": "1"}, {**found, "measures": {}}, {**found, "dimensions": {}}):
            with pytest.raises(jsonschema.ValidationError):
                VALIDATOR.validate(broken)


def test_a_row_says_its_window_its_key_and_its_quantiles() -> None:
    values = [*range(1, 101)]
    spread = reduce(add, (Measures(turns=1, duration={bin_of(each): 1}) for each in values))
    where = Dimensions("acme", "m", "p", "completed")

    (_, turns), (_, tokens), _ = rows_of(10_000, 1_700_000_000_000, where, spread, revision=4, final=False)

    found = json.loads(encode(turns))
    assert (found["window_start"], found["window_end"]) == ("2023-11-14T22:13:20Z", "2023-11-14T22:13:30Z")
    assert (found["window_seconds"], found["revision"], found["final"]) == (10, 4, False)
    assert json.loads(turns.key) == {"window_start": "2023-11-14T22:13:20Z", "dimensions": found["dimensions"]}
    assert found["measures"]["duration_ms"]["count"] == 100
    p50, p95, p99 = (found["measures"]["duration_ms"][name] for name in ("p50", "p95", "p99"))
    assert (ceil(p50 / 5), ceil(p95), ceil(p99)) == pytest.approx((10, 95, 99), rel=0.02)
    assert tokens.measures.first_token_ms.p50 is None


def thumb(turn_id: str, rating: int, **fields: object) -> Feedback:
    given_fields = {
        "turn_id": turn_id, "conversation_id": "c", "tenant": "acme", "user": "u", "rating": rating, "at": 1,
        "model": "m", "prompt": "assistant.v1", "outcome": "completed",
    }  # fmt: skip
    return msgspec.convert(given_fields | fields, Feedback)


@pytest.mark.parametrize("cache", [None, "exact", "hit", "miss"])
def test_what_is_said_of_a_turn_counts_in_the_turns_own_row(cache: str | None) -> None:
    about, _ = voted(thumb("t", 1, cache=cache, experiment="b"))

    assert about == measured(turn(cache=cache, experiment="b"))[0]


def test_of_what_is_said_of_a_turn_twice_the_later_counts() -> None:
    votes = [voted(thumb(turn_id, rating))[1] for turn_id, rating in (("a", 1), ("b", 1), ("a", -1), ("a", -1))]

    counted = reduce(add, votes).counted()

    assert counted == Measures(feedback_up=1, feedback_down=1)


def test_where_only_something_was_said_there_is_a_row_of_quality_alone() -> None:
    (only,) = rows_of(10_000, 0, Dimensions("a", "b", "c", "d"), Measures(feedback_down=2), revision=1, final=True)

    name, row = only
    assert (name, row.measures.turns, row.measures.feedback_down) == ("quality", 0, 2)


def test_bins_are_two_percent_apart() -> None:
    gamma = (1 + ACCURACY) / (1 - ACCURACY)

    assert all(after - before == 1 for before, after in pairwise(bin_of(gamma**n * 0.999) for n in range(-200, 900)))
