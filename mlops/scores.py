"""What a ranking and a decision are worth: nDCG, recall, AUC, precision."""

from collections.abc import Collection, Sequence
from math import log2


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
