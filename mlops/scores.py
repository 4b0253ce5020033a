"""What a ranking and a decision are worth: nDCG, recall, AUC, precision; and the regression behind a decision."""

from collections.abc import Collection, Hashable, Sequence
from math import exp, log2

PENALTY = 1e-3


def ndcg(ranked: Sequence[str], relevant: Collection[str], depth: int = 5) -> float:
    """Return the normalised discounted cumulative gain of a ranking, each relevant one being worth the same."""
    gained = sum(1 / log2(place + 2) for place, each in enumerate(ranked[:depth]) if each in relevant)
    best = sum(1 / log2(place + 2) for place in range(min(depth, len(relevant))))
    return gained / best if best else 0.0


def recall(ranked: Sequence[str], relevant: Collection[str], depth: int = 5) -> float:
    """Return the share of the relevant ones that is ranked among the first."""
    return len(set(ranked[:depth]) & set(relevant)) / len(relevant) if relevant else 0.0


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return how likely a positive has a higher score than a negative; ties count half."""
    pairs = len(positive) * len(negative)
    wins = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
    return wins / pairs if pairs else 0.0


def precision_recall(said: Sequence[bool], true: Sequence[bool]) -> tuple[float, float]:
    """Return which share of those said to be so are, and which share of those that are so was said to be."""
    both = sum(s and t for s, t in zip(said, true, strict=True))
    return (both / sum(said) if any(said) else 0.0), (both / sum(true) if any(true) else 0.0)


def fitted(signs: Sequence[Sequence[float]], true: Sequence[bool], *, rounds: int = 25) -> list[float]:
    """Return the weights of a logistic regression, the last of which is the bias: Newton's method on the likelihood.

    Weights of no use are held at 0 by a trace of a penalty, as is what would grow without end.
    """
    rows = [[*each, 1.0] for each in signs]
    weights = [0.0] * len(rows[0])
    for _ in range(rounds):
        slope = [-PENALTY * weight for weight in weights]
        curve = [[PENALTY * (i == j) for j in range(len(weights))] for i in range(len(weights))]
        for row, is_true in zip(rows, true, strict=True):
            sure = likelihood(weights, row)
            for i, x in enumerate(row):
                slope[i] += (is_true - sure) * x
                for j, y in enumerate(row):
                    curve[i][j] += sure * (1 - sure) * x * y
        weights = [weight + step for weight, step in zip(weights, _solved(curve, slope), strict=True)]
    return weights


def likelihood(weights: Sequence[float], row: Sequence[float]) -> float:
    """Return what a logistic regression says of one row, which has a 1 for the bias."""
    speaks = sum(weight * x for weight, x in zip(weights, row, strict=True))
    return 1 / (1 + exp(-max(-500.0, min(500.0, speaks))))


def cross_fitted(
    signs: Sequence[Sequence[float]],
    true: Sequence[bool],
    groups: Sequence[Hashable],
    *,
    taught: Sequence[bool] | None = None,
    folds: int = 10,
) -> list[float]:
    """Return how likely each row is to be true, by a regression that was fitted without its fold. Groups stay whole.

    ``taught``: which rows are fitted on at all.
    """
    order = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    fold_of = [order[group] % folds for group in groups]
    likely = [0.0] * len(signs)
    for fold in range(folds):
        others = [place for place, each in enumerate(fold_of) if each != fold and (taught is None or taught[place])]
        weights = fitted([signs[place] for place in others], [true[place] for place in others])
        for place, each in enumerate(fold_of):
            if each == fold:
                likely[place] = likelihood(weights, [*signs[place], 1.0])
    return likely


def _solved(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Return x of ``matrix`` x = ``right``, by elimination. The matrix is positive definite: no pivot is 0."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i, pivot in enumerate(rows):
        for row in rows[i + 1 :]:
            factor = row[i] / pivot[i]
            row[i:] = [x - factor * y for x, y in zip(row[i:], pivot[i:], strict=True)]
    found = [0.0] * len(rows)
    for i in reversed(range(len(rows))):
        known = sum(x * y for x, y in zip(rows[i][i + 1 : -1], found[i + 1 :], strict=True))
        found[i] = (rows[i][-1] - known) / rows[i][i]
    return found
