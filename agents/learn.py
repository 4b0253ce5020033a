"""documents -> passages: every document of this worker's partitions is cut, embedded and indexed"""

from streams.app import app
from streams.learning import Learner


@app.task  # type: ignore[untyped-decorator]  # Faust leaves it without types
async def learn() -> None:
    """Learn what comes, for as long as the worker lives."""
    if app.settings.retrieval == "off":
        return
    services = app.services
    await Learner(
        services.archive_reader,
        app.topics_of.documents.name,
        index=services.passage_index,
        statuses=services.documents,
        embedders=services.embedders,
        parsers=services.parsers,
        model=app.settings.embedding_model,
        owned=app.owned,
        set_aside=app.dead_letter,
    ).run()
