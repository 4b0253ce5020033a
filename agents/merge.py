"""parts -> metrics: what the partitions' windows add up to together"""

from collections.abc import Mapping
from typing import Any

import structlog

from config import metrics
from domain.errors import Rejected, Retriable
from domain.windows import SIZES_MS
from streams.app import app, now_ms
from streams.batches import Batches
from streams.topics import merged_in
from tables.measures import Part
from tables.metric_rows import AnyRow
from tables.parts import parts

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0


async def take(partition: int, found: Mapping[int, Part]) -> Mapping[int, Rejected]:
    """Keep parts, to be merged at the next tick."""
    return await parts.take(partition, found)


parts_in_order = Batches(app, app.topics_of.parts.name, Part, take)


@app.agent(app.raw_topic(app.topics_of.parts))
async def merge(stream: Any) -> None:
    """Keep each part."""
    await parts_in_order.run(stream)


@app.task  # type: ignore[untyped-decorator]  # Faust leaves it without types
async def publish_windows() -> None:
    """Publish windows as they become complete, or have waited for it long enough."""
    while not app.should_stop:
        await app.sleep(TICK_SECONDS)
        try:
            await tick(now_ms())
        except Retriable as error:
            log.info("metrics will be published at the next tick", reason=str(error))
        except Exception:
            # Raised from here, it would end the worker.
            log.exception("metrics could not be published")


async def tick(now: int) -> None:
    """Publish what is due of the sizes that this worker merges, and forget what cannot be corrected any more."""
    if app.ready():
        return
    owned = app.owned()
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
