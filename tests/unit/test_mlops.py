"""What is measured is what is meant: the scores by hand, and the benchmark as it was published."""

import re
from random import Random

import pytest

from domain.retrieval import Signs
from mlops.evaluate import Measured, fit
from mlops.mtrag import Answerability, Asked, load
from mlops.scores import auc, cross_fitted, fitted, likelihood, ndcg, precision_recall, recall


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


def test_a_regression_finds_the_weights_that_rows_were_drawn_with() -> None:
    drawn = Random(7)  # noqa: S311 - the same each time
    signs = [(drawn.uniform(-1, 1), drawn.uniform(-1, 1)) for _ in range(4000)]
    true = [drawn.random() < likelihood([3.0, -1.0, 0.5], [*each, 1.0]) for each in signs]

    assert fitted(signs, true) == pytest.approx([3.0, -1.0, 0.5], abs=0.3)
    # What tells the classes apart without a mistake has no greatest likelihood; it stays a number all the same.
    assert fitted([(0.0,), (1.0,)], [False, True])[0] > 5


def test_what_a_group_says_of_itself_is_not_used_to_judge_it() -> None:
    drawn = Random(7)  # noqa: S311 - the same each time
    groups = [number // 2 for number in range(400)]
    truths = [drawn.random() < 0.5 for _ in range(200)]
    true = [truths[group] for group in groups]
    # One sign that is true in general, and one for each group of a fold, which only its other row could have taught.
    signs = [(is_true + drawn.gauss(0, 0.5), *((group == each) - 0.0 for each in range(8)))
             for group, is_true in zip(groups, true, strict=True)]  # fmt: skip

    likely = cross_fitted(signs, true, groups)

    by_truth = [[each for each, is_true in zip(likely, true, strict=True) if is_true is kind] for kind in (True, False)]
    assert auc(*by_truth) == pytest.approx(0.92, abs=0.04)
    only_group = cross_fitted([each[1:] for each in signs[:16]], true[:16], groups[:16], folds=8)
    assert len({(round(each, 6)) for each in only_group}) <= 2  # by how many of the others are true


def test_refusals_are_judged_on_what_they_were_fitted_without() -> None:
    kinds: list[Answerability] = ["answerable", "answerable", "partial", "unanswerable", "underspecified"]
    questions = [Asked(f"q{number}", f"c{number // 3}", kinds[number % 5], frozenset(), ()) for number in range(200)]
    told = {"answerable": 0.9, "partial": 0.6, "unanswerable": 0.1, "underspecified": 0.0}
    nearness = [told[each.answerability] + number % 7 / 100 for number, each in enumerate(questions)]
    measured = Measured(sure=[0.5] * 200, signs=[Signs(near, 0.2, 0.5) for near in nearness])

    said = fit(questions, measured)

    left_out, in_use = said.split("With the weights in use")
    assert "from 80 answerable ones: AUC 1.000" in left_out
    assert "At 0.7: precision 1.00, recall 1.00; 0.0% of the answerable refused" in left_out
    assert "from 80 answerable ones: AUC 0.500" in in_use
    assert re.search(r"nearness \d+\.\d\d, lead [-.\d]+, coverage [-.\d]+, bias -\d+\.\d\d\n", said)


def test_the_benchmark_is_whole() -> None:
    benchmark = load()

    known = {text.passage_id for text in benchmark.texts}
    assert (len(known), len(benchmark.questions)) == (1488, 401)
    assert all(question.relevant <= known for question in benchmark.questions)
    assert sum(bool(question.relevant) for question in benchmark.questions) == 322
    assert all(question.messages[-1]["role"] == "user" for question in benchmark.questions)
    assert all(text.text.strip() for text in benchmark.texts)
