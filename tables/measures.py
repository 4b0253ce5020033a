"""What is measured of turns, and how sums of it are added up again: exactly, in any order and any grouping.

Counts are whole numbers, money too (in millionths of a thousandth, so that no price is rounded twice). A duration is
in a sketch: how many values fell into each of DDSketch's bins, which are 2 % apart, so that a quantile of any merged
sketches is within 1 % of the true one. Adding is commutative and associative, and nothing is lost by it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Final

import msgspec
from ddsketch.mapping import LogarithmicMapping
from msgspec import Meta

from domain.grounding import cited
from domain.prices import FREE, Prices
from domain.sketches import ACCURACY, Bins, bin_of
from streams.records import Feedback, Turn, Wire

# A row with every bin of its three sketches is 50 kB, and Kafka's largest record 1 MB.
ROWS_A_PART: Final = 15

_bins = LogarithmicMapping(ACCURACY)


class Dimensions(msgspec.Struct, frozen=True, order=True):
    """What rows are told apart by. A value that turns do not have yet is that of all of them."""

    tenant: str
    model: str
    prompt: Annotated[str, Meta(description="Name and version of the assistant's instructions.")]
    outcome: Annotated[str, Meta(description="How the turn ended: completed, stopped, failed, handed_over.")]
    cache: Annotated[str, Meta(description="hit or miss; none where no cache was asked.")] = "none"
    experiment: Annotated[str, Meta(description="Arm of the experiment; empty outside of one.")] = ""


class Measures(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sums over turns. The bins are those of milliseconds.

    ``votes``: within one partition, what was said of each turn, by its id, the later in the log if it was said twice.
    """

    turns: int = 0
    resumed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    cache_hits: int = 0
    retrieval_hits: int = 0
    citations: int = 0
    feedback_up: int = 0
    feedback_down: int = 0
    votes: dict[str, int] = {}
    duration: Bins = {}
    first_token: Bins = {}
    token_gap: Bins = {}

    def __add__(self, other: "Measures") -> "Measures":
        """Return both together."""
        return Measures(
            turns=self.turns + other.turns,
            resumed=self.resumed + other.resumed,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_nano=self.cost_nano + other.cost_nano,
            cache_hits=self.cache_hits + other.cache_hits,
            retrieval_hits=self.retrieval_hits + other.retrieval_hits,
            citations=self.citations + other.citations,
            feedback_up=self.feedback_up + other.feedback_up,
            feedback_down=self.feedback_down + other.feedback_down,
            votes=self.votes | other.votes,
            duration=_merged(self.duration, other.duration),
            first_token=_merged(self.first_token, other.first_token),
            token_gap=_merged(self.token_gap, other.token_gap),
        )

    def counted(self) -> "Measures":
        """Return these with the votes as numbers of them: what other partitions' can be added to."""
        if not self.votes:
            return self
        up = sum(rating > 0 for rating in self.votes.values())
        return msgspec.structs.replace(self, votes={}, feedback_up=up, feedback_down=len(self.votes) - up)


class PartRow(msgspec.Struct, frozen=True):
    """The turns of the same dimensions in a part's window."""

    dimensions: Dimensions
    measures: Measures


class Part(Wire, frozen=True, kw_only=True):
    """What one partition's turns add up to in one window. Times are Unix ms.

    Each row counts by itself, the one of the highest ``(epoch, revision)``: so a part may hold all rows of its window
    or some, and what a worker writes that was replaced and does not know it yet, under a lower epoch, is harmless.
    ``closed_through``: every window of this size that ended by then was published before this part. A part without
    rows says only that. ``partition``: those of the feedback are numbered after those of the turns.
    """

    partition: int
    epoch: int
    size: int
    closed_through: int
    start: int = 0
    revision: int = 0
    rows: Sequence[PartRow] = ()


def measured(turn: Turn, prices: Prices = FREE) -> tuple[Dimensions, Measures]:
    """Return which row a turn belongs to, and what it adds to it.

    Where a turn does not say how far apart its tokens were, it counts as one gap: that of its answer's average.
    """
    timings, usage, dimensions = turn.timings, turn.usage, _dimensions(turn)
    writing, gaps = timings.total_ms - timings.first_token_ms, usage.output_tokens - 1
    average = {bin_of(writing / gaps): 1} if timings.first_token_ms and gaps > 0 else {}
    return (
        dimensions,
        Measures(
            turns=1,
            resumed=int(turn.claims > 1),
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_nano=prices.of(turn.model, usage.input_tokens, usage.output_tokens) or 0,
            cache_hits=int(dimensions.cache == "hit"),
            retrieval_hits=int(turn.retrieval == "found"),
            citations=len(cited(turn.answer, turn.citations)),
            duration={bin_of(timings.total_ms): 1},
            first_token={bin_of(timings.first_token_ms): 1} if timings.first_token_ms else {},
            token_gap=turn.gaps or average,
        ),
    )


def voted(feedback: Feedback) -> tuple[Dimensions, Measures]:
    """Return which row what was said of a turn belongs to, which is the turn's, and what it adds to it."""
    return _dimensions(feedback), Measures(votes={feedback.turn_id: feedback.rating})


def _dimensions(of: Turn | Feedback) -> Dimensions:
    cache = {"exact": "hit"}.get(of.cache, of.cache) if of.cache else "none"
    return Dimensions(of.tenant, of.model, of.prompt, of.outcome, cache, of.experiment)


def pieces(part: Part) -> Iterator[Part]:
    """Yield a part as parts that Kafka takes, however many rows it has."""
    for first in range(0, max(1, len(part.rows)), ROWS_A_PART):
        yield msgspec.structs.replace(part, rows=part.rows[first : first + ROWS_A_PART])


def quantile(bins: Mapping[int, int], share: float) -> float | None:
    """Return the duration in ms that this share of all is not longer than, None of no durations at all."""
    rank = share * (sum(bins.values()) - 1)
    seen = 0
    for key in sorted(bins):
        seen += bins[key]
        if seen > rank:
            return round(float(_bins.value(key)), 3)
    return None


def _merged(one: Bins, other: Bins) -> Bins:
    merged = dict(one)
    for key, count in other.items():
        merged[key] = merged.get(key, 0) + count
    return merged
