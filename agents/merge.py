"""parts -> metrics: what the partitions' windows add up to together"""

from typing import Any

from config import metrics
from domain.windows import SIZES_MS
from streams.app import app, now_ms
from streams.batches import Batches
from streams.ticks import tick_for_ever
from streams.topics import merged_in
from tables.measures import Part
from tables.metric_rows import AnyRow
from tables.parts import parts


@app.agent(app.raw_topic(app.topics_of.parts))
async def merge(stream: Any) -> None:
    """Keep each part, to be merged at the next tick."""
    await Batches(app, app.topics_of.parts.name, Part, parts.take).run(stream)


@app.task  # type: ignore[untyped-decorator]  # Faust leaves it without types
async def publish_windows() -> None:
    """Publish windows as they become complete, or have waited for it long enough."""
    await tick_for_ever("publishing metrics", tick)


async def tick() -> None:
    """Publish what is due of the sizes that this worker merges, and forget what cannot be corrected any more."""
    if app.ready():
        return
    now, owned = now_ms(), app.owned()
    for size in SIZES_MS:
        if (partition := merged_in(size, app.settings.partitions)) in owned:
            await parts.publish(partition, size, now, send)
            await parts.purge(partition, size, now, keep=round(app.settings.metrics_correct_seconds * 1000))


async def send(metric: str, size: int, row: AnyRow) -> None:
    """Publish one row; return when Kafka has it."""
    # The time of the record is that of the window, so that readers find a moment by it.
    await app.publish(
        app.topics_of.metrics[metric, size], row.key, row, at_ms=round(row.window_start.timestamp() * 1000)
    )
    metrics.metric_rows.labels(metric, str(row.final).lower()).inc()
