"""What the metrics topics carry: a window's sums as an analyst reads them.

docs/metrics.v1.schema.json is written from these types (`make docs`), their descriptions with them. New fields may
come; a change of meaning gets new topics.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec
from msgspec import Meta

from domain.prices import NANO
from domain.sketches import Bins
from streams.records import Wire
from tables.measures import Dimensions, Measures, quantile

Count = Annotated[int, Meta(ge=0)]
Milliseconds = Annotated[float, Meta(ge=0)] | None


class Spread(msgspec.Struct, frozen=True):
    """How long something took, each quantile within 1 %. null where nothing did."""

    count: Count
    p50: Milliseconds
    p95: Milliseconds
    p99: Milliseconds
    sketch: Annotated[
        Bins,
        Meta(
            description="How many values fell into each bin of a DDSketch of 1 % accuracy: bin i holds what is longer"
            " than g^(i-1) ms and not longer than g^i, g = 1.01 / 0.99. To merge sketches, add them bin by bin."
        ),
    ]

    @classmethod
    def of(cls, bins: Bins) -> "Spread":
        """Return the spread of these bins."""
        p50, p95, p99 = (quantile(bins, share) for share in (0.5, 0.95, 0.99))
        return cls(sum(bins.values()), p50, p95, p99, {key: bins[key] for key in sorted(bins)})


class TurnsMeasures(msgspec.Struct, frozen=True):
    """What happened."""

    turns: Annotated[Count, Meta(description="Turns that ended in the window.")]
    resumed: Annotated[Count, Meta(description="Those of them that were taken up more than once.")]
    duration_ms: Annotated[Spread, Meta(description="From the question's acceptance to the turn's end.")]

    @classmethod
    def of(cls, sums: Measures) -> "TurnsMeasures":
        """Return these of the sums."""
        return cls(sums.turns, sums.resumed, Spread.of(sums.duration))


class TokensMeasures(msgspec.Struct, frozen=True):
    """What was read and written, and how fast."""

    input_tokens: Annotated[Count, Meta(description="Model tokens of prompts.")]
    output_tokens: Annotated[Count, Meta(description="Model tokens of answers.")]
    cost: Annotated[float, Meta(ge=0, description="At HEADRACE_INPUT_PRICE and HEADRACE_OUTPUT_PRICE.")]
    first_token_ms: Annotated[Spread, Meta(description="From the question's acceptance to the first token.")]
    token_gap_ms: Annotated[
        Spread,
        Meta(
            description="Between two tokens of an answer as they came from the model. A turn of which that is not known"
            " counts as one: its average."
        ),
    ]

    @classmethod
    def of(cls, sums: Measures) -> "TokensMeasures":
        """Return these of the sums."""
        return cls(
            sums.input_tokens,
            sums.output_tokens,
            sums.cost_nano / NANO,
            Spread.of(sums.first_token),
            Spread.of(sums.token_gap),
        )


class QualityMeasures(msgspec.Struct, frozen=True):
    """How well it was answered."""

    turns: Annotated[Count, Meta(description="Turns that ended in the window: what the others are shares of.")]
    cache_hits: Annotated[Count, Meta(description="Turns answered from the cache.")]
    retrieval_hits: Annotated[Count, Meta(description="Turns for which passages were found.")]
    citations: Annotated[Count, Meta(description="Passages that answers name.")]
    feedback_up: Annotated[
        Count,
        Meta(
            description="Thumbs up that were given in the window, whenever the turn ended. Of what was said of one turn"
            " in it the latest counts."
        ),
    ]
    feedback_down: Annotated[Count, Meta(description="Thumbs down, likewise.")]

    @classmethod
    def of(cls, sums: Measures) -> "QualityMeasures":
        """Return these of the sums."""
        return cls(
            sums.turns,
            sums.cache_hits,
            sums.retrieval_hits,
            sums.citations,
            sums.feedback_up,
            sums.feedback_down,
        )


M = TypeVar("M")


class MetricRow(Wire, Generic[M], frozen=True, kw_only=True):
    """One row of a metrics topic: the turns of the same dimensions that ended in one window."""

    window_start: Annotated[datetime, Meta(tz=True, description="In event time: that of the turns' ends.")]
    window_end: Annotated[datetime, Meta(tz=True, description="The first moment after the window.")]
    window_seconds: Annotated[int, Meta(ge=1)]
    dimensions: Dimensions
    measures: M
    revision: Annotated[
        Count,
        Meta(description="Of rows with the same key the one with the highest counts. It grows, with gaps."),
    ]
    final: Annotated[
        bool,
        Meta(
            description="Whether every partition's turns are in. A later revision still corrects it where a turn comes"
            " after that, within HEADRACE_METRICS_CORRECT_SECONDS."
        ),
    ]

    @property
    def key(self) -> str:
        """The record's key."""
        return msgspec.json.encode({"window_start": self.window_start, "dimensions": self.dimensions}).decode()


AnyRow = MetricRow[Any]

METRIC_TYPES: Final[Mapping[str, type[TurnsMeasures | TokensMeasures | QualityMeasures]]] = {
    "turns": TurnsMeasures,
    "tokens": TokensMeasures,
    "quality": QualityMeasures,
}


def rows_of(
    size: int, start: int, dimensions: Dimensions, sums: Measures, *, revision: int, final: bool
) -> Iterator[tuple[str, AnyRow]]:
    """Yield the row of each metric, with its name. Size and start in ms.

    Where no turn ended in the window, but something was said of earlier ones, that is of their quality alone.
    """
    for name, kind in METRIC_TYPES.items():
        if not sums.turns and kind is not QualityMeasures:
            continue
        yield (
            name,
            MetricRow(
                window_start=datetime.fromtimestamp(start / 1000, UTC),
                window_end=datetime.fromtimestamp((start + size) / 1000, UTC),
                window_seconds=size // 1000,
                dimensions=dimensions,
                measures=kind.of(sums),
                revision=revision,
                final=final,
            ),
        )
