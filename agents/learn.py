"""documents -> passages, outcomes: every document of this worker's partitions is cut, embedded and indexed"""

from streams.app import app
from streams.learning import Learner
from streams.records import DocumentOutcome, document_key


@app.task  # type: ignore[untyped-decorator]  # Faust leaves it without types
async def learn() -> None:
    """Learn what comes, for as long as the worker lives."""
    if app.settings.retrieval == "off":
        return
    services = app.services
    await Learner(
        services.document_reader,
        app.topics_of.documents.name,
        index=services.passage_index,
        statuses=services.documents,
        embedders=services.embedders,
        parsers=services.parsers,
        model=app.settings.embedding_model,
        owned=app.owned,
        set_aside=app.dead_letter,
        tell=tell,
    ).run()


async def tell(outcome: DocumentOutcome) -> None:
    """Publish what became of a document."""
    key = document_key(outcome.tenant, outcome.document_id)
    await app.publish(app.topics_of.document_outcomes, key, outcome)
