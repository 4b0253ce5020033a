"""metrics, document outcomes -> Postgres: the one-minute rows and the documents, for whoever would rather ask SQL"""

from typing import Final

from streams.app import app
from streams.tabulating import DocumentTable, MetricTable, Table, Tabulator
from streams.topics import METRICS, merged_in

MINUTE_MS: Final = 60_000


@app.task  # type: ignore[untyped-decorator]  # Faust leaves it without types
async def tabulate() -> None:
    """Bring the rows into Postgres, on the worker that makes those of metrics."""
    services, topics = app.services, app.topics_of
    tables: dict[str, Table] = {
        topics.metrics[metric, MINUTE_MS].name: MetricTable(services.metric_store, metric) for metric in METRICS
    }
    await Tabulator(
        services.metric_store,
        services.archive_reader,
        {**tables, topics.document_outcomes.name: DocumentTable(services.document_store)},
        is_ours=lambda: merged_in(MINUTE_MS, app.settings.partitions) in app.owned(),
    ).run()
