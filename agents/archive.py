"""turns, controls, feedback -> Postgres, Elasticsearch: a window at a time"""

from domain.prices import Prices
from streams.app import app
from streams.archiving import Archiver, Limits, Sink
from streams.postgres_sink import PostgresSink
from streams.search_sink import SearchSink


@app.task  # type: ignore[untyped-decorator]  # Faust leaves it without types
async def to_postgres() -> None:
    """Bring what is finished into Postgres."""
    await archive(PostgresSink(app.services.turn_store, Prices(*app.settings.prices)))


@app.task  # type: ignore[untyped-decorator]  # Faust leaves it without types
async def to_elasticsearch() -> None:
    """Bring what is finished into Elasticsearch."""
    await archive(SearchSink(app.services.search_index, Prices(*app.settings.prices)))


async def archive(sink: Sink) -> None:
    """Bring what is finished into one sink, for as long as the worker lives."""
    settings = app.settings
    await Archiver(
        sink,
        app.services.archive_reader,
        Limits(settings.window_seconds, settings.window_turns, settings.window_bytes),
        turns=app.topics_of.turns.name,
        controls=app.topics_of.controls.name,
        feedback=app.topics_of.feedback.name,
        owned=app.owned,
        set_aside=app.dead_letter,
    ).run()
