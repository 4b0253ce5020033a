"""metrics -> Postgres: the one-minute rows, for whoever would rather ask SQL"""

from typing import Final

from streams.app import app
from streams.tabulating import Tabulator
from streams.topics import METRICS, merged_in

MINUTE_MS: Final = 60_000


@app.task  # type: ignore[untyped-decorator]  # Faust leaves it without types
async def tabulate() -> None:
    """Bring the rows into Postgres, on the worker that makes them."""
    topics = {metric: app.topics_of.metrics[metric, MINUTE_MS].name for metric in METRICS}
    await Tabulator(
        app.services.metric_store,
        app.services.archive_reader,
        topics,
        is_ours=lambda: merged_in(MINUTE_MS, app.settings.partitions) in app.owned(),
    ).run()
