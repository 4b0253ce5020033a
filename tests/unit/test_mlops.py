"""What is measured is what is meant: the scores by hand, and the benchmark as it was published."""

import pytest

from mlops.mtrag import load
from mlops.scores import auc, ndcg, precision_recall, recall


def test_the_gain_of_a_place_falls_with_its_logarithm() -> None:
    assert ndcg(["a", "b"], {"a", "b"}) == 1
    assert ndcg(["x", "a"], {"a"}) == pytest.approx(0.6309, abs=1e-4)
    assert ndcg(["a", "x", "b"], {"a", "b"}) == pytest.approx((1 + 0.5) / (1 + 0.6309), abs=1e-4)
    assert ndcg(["x"] * 5 + ["a"], {"a"}) == 0


def test_recall_is_the_share_that_was_found() -> None:
    assert recall(["a", "x", "b"], {"a", "b", "c", "d"}) == 0.5
    assert recall(["x"] * 5 + ["a"], {"a"}) == 0


def test_the_area_under_the_curve_counts_pairs() -> None:
    assert auc([3, 2], [1, 0]) == 1
    assert auc([1], [1]) == 0.5
    assert auc([2, 0], [1]) == 0.5


def test_precision_and_recall_are_of_what_is_said_and_of_what_is_so() -> None:
    assert precision_recall([True, True, False], [True, False, True]) == (0.5, 0.5)
    assert precision_recall([False], [True]) == (0, 0)


def test_the_benchmark_is_whole() -> None:
    benchmark = load()

    known = {text.passage_id for text in benchmark.texts}
    assert (len(known), len(benchmark.questions)) == (1488, 401)
    assert all(question.relevant <= known for question in benchmark.questions)
    assert sum(bool(question.relevant) for question in benchmark.questions) == 322
    assert all(question.messages[-1]["role"] == "user" for question in benchmark.questions)
    assert all(text.text.strip() for text in benchmark.texts)
